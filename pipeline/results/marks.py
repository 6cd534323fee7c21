"""Marks: what a reader must know of a figure before trusting it, and what each sign beside a figure means."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.archives.archive import Archive
from pipeline.errors import ArchiveError, RunDirectoryError
from pipeline.store.fingerprints import digest_json

CHECKS_NAME = "checks.json"
COLLAPSE = "majority-collapse"
"""Mark of a method that predicts one class only for a set in which more than one occurs."""


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
        "The set holds images that a model was trained or validated on, equal to the last pixel as the model sees "
        "them, or corrupted versions of such images: accuracy on them is no evidence.",
    ),
    Mark(
        "near-duplicates",
        "‡",
        "near copies seen in training",
        "The set holds images that are almost those of a training or validation set (another frame of the same scene, "
        "or the same file stored anew), or corrupted versions of such images: accuracy on them overstates what to "
        "expect.",
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
        "The method answers one class for every image of a set although several occur: its accuracy there is the share "
        "of that class and says nothing, and it has no interval; look at balanced accuracy.",
    ),
)
MARKS = {mark.code: mark for mark in _TABLE}


def sort_codes(codes: Sequence[str]) -> list[str]:
    """Codes in the order of the table, each once; unknown ones last."""
    order = {code: place for place, code in enumerate(MARKS)}
    return sorted(dict.fromkeys(codes), key=lambda code: (order.get(code, len(order)), code))


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many of the ``images`` of an evaluation set were found again elsewhere; ``code`` is the mark that says how.

    ``where`` names the set, such as ``training set breast``, and ``model`` whose it is; both are empty where images
    were found in the evaluation set itself. ``through_base``: so many images are corrupted ones and count as their
    base images.
    """

    code: str
    evaluation_set: str
    count: int
    images: int
    through_base: int
    where: str = ""
    model: str = ""


def read_overlaps(run: Path) -> list[Overlap]:
    """What `pipeline check` counted, evaluation set by evaluation set; nothing of sets that have changed since.

    Empty where it was not run. :class:`RunDirectoryError` when the file is damaged.
    """
    return [
        Overlap(code, name, counts[kind], entry["images"], entry["through_base"], where, model)
        for name, entry in _current(run).items()
        for where, model, counts, kinds in _counted(entry)
        for code, kind in kinds
        if counts[kind]
    ]


def read_unknown(run: Path) -> list[str]:
    """What `pipeline check` could not look into, a sentence each: training data not known, sets without an archive.

    An evaluation set whose archive is no longer the one that was looked into was not checked either. Empty where the
    check was not run. :class:`RunDirectoryError` when the file is damaged.
    """
    found, current = _read(run), _current(run)
    unknown = [f"what {entry['model']} was trained on: {entry['reason']}" for entry in found.get("unknown", [])]
    unknown += [f"evaluation set {name}: {reason}" for name, reason in found.get("not_checked", {}).items()]
    return unknown + [
        f"evaluation set {name}: not checked since its archive has changed; run `pipeline check` again"
        for name in found.get("evaluation_sets", {})
        if name not in current
    ]


def read_marks(run: Path) -> dict[str, list[str]]:
    """Codes of the marks that ``pipeline check`` gave each evaluation set of a run; empty where it was not run.

    A set that could not be checked is not listed, nor is one whose archive has changed since.
    :class:`RunDirectoryError` when the file is damaged.
    """
    return {name: sort_codes(entry["marks"]) for name, entry in _current(run).items()}


_KINDS = (("leak", "exact"), ("near-duplicates", "near"))


def _counted(entry: dict[str, Any]) -> list[tuple[str, str, dict[str, int], tuple[tuple[str, str], ...]]]:
    """Where, whose, the counts, and which of them belong to which mark; files without counts give none."""
    found = [(f"{each['role']} set {each['set']}", each["model"], each, _KINDS) for each in entry.get("training", [])]
    within = [("", "", entry["within"], (("duplicates-within", "exact"),))] if "within" in entry else []
    return [*found, *within]


def _current(run: Path) -> dict[str, dict[str, Any]]:
    """Entries of the evaluation sets whose archive is the one that was checked, or is not at hand to be compared."""
    found = _read(run)
    entries: dict[str, dict[str, Any]] = found.get("evaluation_sets", {})
    folder, recorded = _archives_of(run), found.get("inputs", {})
    if folder is None:
        return entries
    return {
        name: entry
        for name, entry in entries.items()
        if (known := recorded.get(f"archive.{name}")) is None or _archive_digest(folder / name) in {None, known}
    }


def _archives_of(run: Path) -> Path | None:
    """Folder of the archives that the run's manifest names; None where there is no run yet."""
    try:
        folder = json.loads((run / "run.json").read_text(encoding="utf-8"))["manifest"]["archives"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(str(folder))


def _archive_digest(path: Path) -> str | None:
    """Digest of all parts, as :func:`pipeline.drivers.check.check` records it; None where the archive is not whole."""
    try:
        archive = Archive.open(path)
        return digest_json([archive.part_digest(part) for part in range(archive.parts)])
    except ArchiveError:
        return None


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
