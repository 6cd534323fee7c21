"""Marks: what a reader must know of a figure before trusting it, and what each sign beside a figure means."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RunDirectoryError

CHECKS_NAME = "checks.json"
COLLAPSE = "majority-collapse"
"""Code of a method that predicts one class only for a set in which more than one occurs."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A kind of finding: its ``code`` in tables, the ``symbol`` beside a figure, a short title and what it means."""

    code: str
    symbol: str
    title: str
    explanation: str


_TABLE = (
    Mark(
        "leak",
        "†",
        "images seen in training",
        "The set holds images, equal to the last pixel as the model sees them, that a model was trained or validated "
        "on: accuracy on them is no evidence.",
    ),
    Mark(
        "near-duplicates",
        "‡",
        "near copies seen in training",
        "The set holds images that are almost those of a training or validation set (another frame of the same scene, "
        "or the same file stored anew): accuracy on them overstates what to expect.",
    ),
    Mark(
        "duplicates-within",
        "§",
        "images twice in the set",
        "The set holds an image more than once: intervals that take its images as independent are too narrow.",
    ),
    Mark(
        "class-names",
        "¶",
        "class names do not line up",
        "The set names classes that the expert was not trained on under these names: prompts carry names only, so a "
        "misspelt or foreign name makes a wrong answer likely.",
    ),
    Mark(
        COLLAPSE,
        "‖",
        "one class for all images",
        "The method answers one class for every image although several occur: its accuracy is the share of that class "
        "and says nothing; look at balanced accuracy.",
    ),
)
MARKS = {mark.code: mark for mark in _TABLE}


def sort_codes(codes: Sequence[str]) -> list[str]:
    """Codes in the order of the table, each once; unknown ones last."""
    order = {code: place for place, code in enumerate(MARKS)}
    return sorted(dict.fromkeys(codes), key=lambda code: (order.get(code, len(order)), code))


def read_unknown(run: Path) -> list[str]:
    """What `pipeline check` could not look into, a sentence each: training data not known, sets without an archive.

    Empty where it was not run. :class:`RunDirectoryError` when the file is damaged.
    """
    found = _read(run)
    unknown = [f"what {entry['model']} was trained on: {entry['reason']}" for entry in found.get("unknown", [])]
    return unknown + [f"evaluation set {name}: {reason}" for name, reason in found.get("not_checked", {}).items()]


def read_marks(run: Path) -> dict[str, list[str]]:
    """Codes of the marks that ``pipeline check`` gave each evaluation set of a run; empty where it was not run.

    A set that could not be checked is not listed. :class:`RunDirectoryError` when the file is damaged.
    """
    return {name: sort_codes(entry["marks"]) for name, entry in _read(run).get("evaluation_sets", {}).items()}


def _read(run: Path) -> dict[str, Any]:
    path = run / CHECKS_NAME
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for entry in found["evaluation_sets"].values():
            sort_codes(entry["marks"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunDirectoryError(f"{path}: is damaged ({reason}); run `pipeline check` again") from error
    return found
