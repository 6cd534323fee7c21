"""The images on which generalist and expert disagree most, with what each says and what the merged model answers."""

import base64
import heapq
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.archives.archive import Archive
from pipeline.coefficients.divergence import log_softmax
from pipeline.errors import PipelineError, one_line
from pipeline.methods import LABELS, METHODS, RULE_NAMES
from pipeline.results.layout import method_folders, method_labels, parts, sort_methods
from pipeline.results.report.pairs import LOGITS, has_pair, read_logits
from pipeline.results.report.places import Place, places
from pipeline.stages.reading import read_block
from pipeline.store.tables import read_table

LIMIT = 12
LARGEST_SIDE = 160
"""Longest side of a picture in pixels; larger ones are made smaller, so that the page stays small."""
PREFERRED = "t3"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says: the class, and the probability that it gives it."""

    class_name: str
    probability: float


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """An image on which generalist and expert disagree.

    ``image`` is a PNG as a data URI, None where it cannot be had, and ``missing`` says why. ``true_class`` is None for
    an image without a label. ``merged``, ``method`` (its label) and ``lam`` are of T³, or of the run's first method
    that merges by λ; None where there is no such answer. ``sample_id`` is the archive's, not a patient's. ``title``
    names the evaluation set, ``note`` the seed, where there are several.
    """

    run: Path
    evaluation_set: str
    title: str
    note: str
    row: int
    sample_id: str
    js: float
    true_class: str | None
    generalist: Answer
    expert: Answer
    method: str | None = None
    lam: float | None = None
    merged: Answer | None = None
    image: str | None = None
    missing: str | None = None

    @property
    def description(self) -> str:
        """Alternative text: what the picture is of and what was said of it."""
        truth = f"true class {self.true_class}" if self.true_class is not None else "no label"
        said = [("generalist", self.generalist), ("expert", self.expert)]
        said += [(self.method or "merged", self.merged)] if self.merged else []
        answers = ", ".join(f"{name}: {answer.class_name} {100 * answer.probability:.0f} %" for name, answer in said)
        return f"Image {self.sample_id} of {self.title}, {truth}; {answers}."


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A row of evidence: ``place`` is its evaluation set, ``cluster`` what it is one picture of, within its study."""

    js: float
    place: int
    row: int
    sample_id: str
    cluster: tuple[str, str]
    part: Path


def disagreements(runs: Sequence[Path], limit: int = LIMIT, *, per_set: bool = False) -> list[GalleryItem]:
    """The ``limit`` images with the largest js, over all evaluation sets or in each, largest first.

    One image for each cluster (``group_id`` where the evidence has one, else the sample), so that five severities of
    one image are not five pictures. Equal js go by evaluation set and row. Of several runs of one manifest the first
    seed is shown. An archive that is gone, or holds other images by now, costs the pictures and nothing else.
    """
    found = list(places(runs, lambda run, name: has_pair(run / "evidence" / name)))
    ranked = [_largest(place, index, limit) for index, place in enumerate(found)]
    if not per_set:
        ranked = [_first_of_clusters(heapq.merge(*ranked, key=_rank), limit)]
    chosen = [candidate for candidates in ranked for candidate in candidates]
    items: dict[_Candidate, GalleryItem] = {}
    for index, place in enumerate(found):
        mine = [candidate for candidate in chosen if candidate.place == index]
        items |= zip(mine, _items(place, mine), strict=True)
    return [items[candidate] for candidate in chosen]


def _rank(candidate: _Candidate) -> tuple[float, int, int]:
    return (-candidate.js, candidate.place, candidate.row)


def _largest(place: Place, index: int, limit: int) -> list[_Candidate]:
    """Candidates of one set, the largest js first, read part by part."""
    best: list[_Candidate] = []
    for path in parts(place.run / "evidence" / place.evaluation_set).values():
        best = _first_of_clusters(heapq.merge(best, _by_js(path, place.study.name, index), key=_rank), limit)
    return best


def _by_js(path: Path, study: str, index: int) -> Iterator[_Candidate]:
    """Rows of one part, the largest js first; only those that are asked for are made."""
    table = read_table(path, ["row", "sample_id", "js", "group_id"])
    rows, js = table["row"].to_numpy(), table["js"].to_numpy()
    groups = table["group_id"] if "group_id" in table.column_names else None
    for at in np.lexsort((rows, -js)).tolist():
        sample_id = table["sample_id"][at].as_py()
        group = None if groups is None else groups[at].as_py()
        yield _Candidate(float(js[at]), index, int(rows[at]), sample_id, (study, group or sample_id), path)


def _first_of_clusters(candidates: Iterable[_Candidate], limit: int) -> list[_Candidate]:
    kept: dict[tuple[str, str], _Candidate] = {}
    for candidate in candidates:
        kept.setdefault(candidate.cluster, candidate)
        if len(kept) == limit:
            break
    return list(kept.values())


def _items(place: Place, candidates: Sequence[_Candidate]) -> list[GalleryItem]:
    if not candidates:
        return []
    names = place.run_json.get("class_names", {}).get(place.evaluation_set, [])
    items = [_plain_answers(place, candidate, names) for candidate in candidates]
    return _with_pictures(place, _with_merged(place, items, names))


def _plain_answers(place: Place, candidate: _Candidate, names: Sequence[str]) -> GalleryItem:
    table = read_table(candidate.part, ["row", "label"])
    at = int(np.flatnonzero(table["row"].to_numpy() == candidate.row)[0])
    label = table["label"][at].as_py()
    generalist, expert = (
        _answer(np.exp(log_softmax(logits[at : at + 1]))[0], names) for logits in read_logits(candidate.part, LOGITS)
    )
    return GalleryItem(
        run=place.run,
        evaluation_set=place.evaluation_set,
        title=place.title,
        note=place.note,
        row=candidate.row,
        sample_id=candidate.sample_id,
        js=candidate.js,
        true_class=None if label is None else _class_name(label, names),
        generalist=generalist,
        expert=expert,
    )


def _with_merged(place: Place, items: Sequence[GalleryItem], names: Sequence[str]) -> list[GalleryItem]:
    method = _merging_method(place)
    if method is None:
        return list(items)
    label = method_labels(place.run, method_folders(place.run, place.run_json))[method]
    by_row = {item.row: item for item in items}
    for path in parts(place.run / "predictions" / method / place.evaluation_set).values():
        rows = read_table(path, ["row"])["row"].to_numpy()
        positions = np.flatnonzero(np.isin(rows, list(by_row)))
        if not len(positions):
            continue
        lambdas = read_table(path, ["lambda"])["lambda"]
        (probabilities,) = read_logits(path, ["probabilities"])
        for at in positions.tolist():
            row, merged = int(rows[at]), _answer(probabilities[at], names)
            by_row[row] = replace(by_row[row], method=label, lam=lambdas[at].as_py(), merged=merged)
    return list(by_row.values())


def _merging_method(place: Place) -> str | None:
    """Folder of T³ at its first settings, else of the first method whose λ needs no labels, else None."""
    root = place.run / "predictions"
    present = [name for name in method_folders(place.run, place.run_json) if parts(root / name / place.evaluation_set)]
    known = {name: METHODS.get(name.split("@", maxsplit=1)[0]) for name in sort_methods(present, place.run_json)}
    merging = [
        name
        for name, method in known.items()
        if method is not None and method.rule in RULE_NAMES and LABELS not in method.needs
    ]
    preferred = (name for name in merging if name.split("@", maxsplit=1)[0] == PREFERRED)
    return next(preferred, next(iter(merging), None))


def _with_pictures(place: Place, items: Sequence[GalleryItem]) -> list[GalleryItem]:
    path = Path(str(place.run_json["manifest"].get("archives", ""))) / place.evaluation_set
    try:
        archive = Archive.open(path)
        known = _sample_ids(archive, items)
        block = read_block(archive, np.array([item.row for item in items], np.int64))
    except (PipelineError, OSError) as error:
        return [replace(item, missing=f"no picture: {one_line(error)}") for item in items]
    return [
        replace(item, missing=f"no picture: {block.unreadable[at]}")
        if at in block.unreadable
        else replace(item, image=_data_uri(block.pixels[at]))
        if known.get(item.row) == item.sample_id
        else replace(item, missing=f"no picture: {path} holds another image at row {item.row} by now")
        for at, item in enumerate(items)
    ]


def _sample_ids(archive: Archive, items: Sequence[GalleryItem]) -> dict[int, str]:
    """What the archive calls the images at the items' rows; a row that it has no image at is left out."""
    rows = {item.row for item in items}
    tables = [archive.samples(part).select(["row", "sample_id"]) for part in {row // archive.part_rows for row in rows}]
    listed = ((row, name) for table in tables for row, name in zip(*table.to_pydict().values(), strict=True))
    return {row: name for row, name in listed if row in rows}


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """PNG of pixels [H, W, 3]."""
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _answer(probabilities: NDArray[Any], names: Sequence[str]) -> Answer:
    index = int(probabilities.argmax())
    return Answer(_class_name(index, names), float(probabilities[index]))


def _class_name(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else f"class {index}"
