"""The table of methods for people: a paragraph each, as wide as the terminal."""

import shutil
from collections.abc import Iterable
from textwrap import fill

from pipeline.methods import GROUPINGS, METHODS, Method

INDENT = "    "


def methods_text(methods: Iterable[Method]) -> str:
    """Name, cost class and needs of each method, then its formula, settings with defaults, and source."""
    width = max(60, shutil.get_terminal_size().columns)
    return "\n".join("\n".join(_paragraph(method, width)) for method in methods)


def _paragraph(method: Method, width: int) -> list[str]:
    needs = f"needs {', '.join(method.needs)}" if method.needs else ""
    lines = [f"{method.name:<26}{method.cost:<8}{needs}".rstrip(), *_wrapped(_formula(method), width)]
    if method.settings:
        settings = ", ".join(
            f"{setting.name}={'null' if setting.default is None else setting.default}" for setting in method.settings
        )
        lines += _wrapped(settings, width)
    return [*lines, *_wrapped(method.source, width)]


def _formula(method: Method) -> str:
    """The formula, short where the rule has been spelled out for single samples already."""
    if method.grouping in {None, "sample"} or method.rule not in METHODS or method.rule == method.name:
        return method.formula
    return f"λ as {method.rule}; {GROUPINGS[method.grouping].remark}"


def _wrapped(text: str, width: int) -> list[str]:
    return fill(text, width, initial_indent=INDENT, subsequent_indent=INDENT).splitlines()
