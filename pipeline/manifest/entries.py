"""Entries of ``methods``: the name of a method, or a mapping of its name and settings."""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pipeline.methods import GROUPINGS, METHODS, Method, is_user_rule, source_method, user_method
from pipeline.settings import Value

# What stands beside a rule's own settings where they are stored.
RESERVED = frozenset(
    {"name", "seed", "window"} | {s.name for grouping in GROUPINGS.values() for s in grouping.settings}
)
# Stands for every method that the models allow.
ALL = "all"
USER_RULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(-batch|-lambda|-mixture)?")


def check_entries(entries: object, sources: Collection[str]) -> None:
    """ValueError unless ``entries`` is a list that :func:`check_entry` accepts; a line for each that is not."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"must be all, or a list of names and of mappings of a name and settings, got {entries!r}")
    problems = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, str | dict):
            problems.append(f"[{position}]: must be a name, or a mapping of a name and settings, got {entry!r}")
        elif entry != ALL:
            try:
                check_entry(entry, sources)
            except ValueError as error:
                problems.append(f"[{position}]: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def check_entry(entry: str | Mapping[str, Any], sources: Iterable[str]) -> tuple[Method, dict[str, Value]]:
    """Method and settings that one entry of ``methods`` names: a name, or a mapping of ``name`` and settings.

    ValueError, with the nearest known word, for an unknown method or setting, and for a value out of range.
    """
    if isinstance(entry, str):
        return find_method(entry, sources), {}
    if unnamed := [key for key in entry if not isinstance(key, str)]:
        raise ValueError(f"settings have names, got {unnamed[0]!r}")
    if not isinstance(entry.get("name"), str):
        raise ValueError(f"name is required, got {dict(entry)!r}")  # noqa: TRY004 - as pydantic wants it
    method = find_method(entry["name"], sources)
    return method, check_settings(method, {key: value for key, value in entry.items() if key != "name"})


def check_settings(method: Method, given: Mapping[str, Any]) -> dict[str, Value]:
    """Values of a method's settings, checked; a user's rule may have settings that only it knows."""
    known = {setting.name: setting for setting in method.settings}
    values: dict[str, Value] = {}
    for name, value in given.items():
        if name in known:
            try:
                values[name] = known[name].parse(value)
            except ValueError as error:
                raise ValueError(f"{method.name}: {error}") from None
        elif method.rule is not None and is_user_rule(method.rule):
            if name in RESERVED:
                raise ValueError(
                    f"{method.name}: {name!r} is a word of this program; give the rule's setting another name"
                )
            if not isinstance(value, int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(f"{method.name}: {name} must be a finite number or text, got {value!r}")
            values[name] = value
        else:
            listed = ", ".join(known) or "none"
            raise ValueError(f"{method.name} has no setting {name!r}{did_you_mean(name, known)}; known: {listed}")
    return values


def find_method(name: str, sources: Iterable[str]) -> Method:
    """The method of this name, a source's plain model, or one of a user's rule; ValueError with the nearest name."""
    if name in sources and name not in METHODS:
        return source_method(name)
    if USER_RULE.fullmatch(name):
        return user_method(name)
    if name not in METHODS:
        near = did_you_mean(name, [*METHODS, *sources])
        raise ValueError(f"unknown method {name!r}{near}; `pipeline methods` lists all")
    return METHODS[name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the nearest of ``known``, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
