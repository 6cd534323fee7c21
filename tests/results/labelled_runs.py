"""Small runs whose evidence says which images belong together, with probabilities that mean something."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.store.files import write_json

from .run_factory import prediction_columns, write_part

CLASSES = ["a", "b", "c"]


@dataclass
class Images:
    """Labelled images of an evaluation set, and what each method answers, class by class."""

    name: str
    labels: np.ndarray
    answers: dict[str, np.ndarray]
    sample_ids: list[str]
    group_ids: list[str | None] = field(default_factory=list)
    corruption: list[str | None] = field(default_factory=list)
    severity: list[int | None] = field(default_factory=list)
    condition: str | None = "in-domain"
    clean: str | None = None


def answers(generator: np.random.Generator, labels: np.ndarray, share_right: float) -> np.ndarray:
    """Probabilities whose largest is the true class as often as asked."""
    probabilities = generator.dirichlet(np.ones(len(CLASSES)), len(labels)).astype(np.float32)
    wanted = np.where(generator.random(len(labels)) < share_right, labels, (labels + 1) % len(CLASSES))
    largest, rows = probabilities.argmax(axis=1), np.arange(len(labels))
    first, second = probabilities[rows, largest].copy(), probabilities[rows, wanted].copy()
    probabilities[rows, largest], probabilities[rows, wanted] = second, first
    return probabilities


def images(
    name: str, labels: np.ndarray, shares: dict[str, float], *, seed: int = 0, prefix: str = "set/test", **more: Any
) -> Images:
    generator = np.random.default_rng(seed)
    given = {method: answers(generator, labels, share) for method, share in shares.items()}
    return Images(name, labels, given, [f"{prefix}/{number}" for number in range(len(labels))], **more)


def corrupted(clean: Images, name: str, shares: dict[str, float], severities: int = 5, seed: int = 1) -> Images:
    """The clean images at rising severities; methods lose 5 points with each."""
    generator = np.random.default_rng(seed)
    labels = np.tile(clean.labels, severities)
    level = np.repeat(np.arange(1, severities + 1), len(clean.labels))
    given = {method: answers(generator, labels, share) for method, share in shares.items()}
    groups = clean.sample_ids * severities
    ids = [f"{group}/pixelate/{severity}" for group, severity in zip(groups, level, strict=True)]
    return Images(
        name, labels, given, ids, groups, ["pixelate"] * len(ids), level.tolist(), condition="digital", clean=clean.name
    )


def write_run(run: Path, sets: list[Images], *, name: str = "study", seed: int = 0, part_rows: int = 1000) -> Path:
    for found in sets:
        rows = np.arange(len(found.labels))
        for index, chosen in enumerate(np.split(rows, range(part_rows, len(rows), part_rows))):
            write_evidence(run, found, index, chosen)
            for method, probabilities in found.answers.items():
                write_predictions(run, found, method, probabilities, index, chosen)
    methods = list(sets[0].answers)
    entries = [{"name": found.name, "condition": found.condition, "clean": found.clean} for found in sets]
    manifest = {"name": name, "evaluation_sets": entries, "methods": methods, "seeds": {"training": seed}}
    write_json(run / "run.json", {"manifest": manifest, "seeds": {"training": seed}})
    return run


def write_evidence(run: Path, found: Images, index: int, chosen: np.ndarray) -> None:
    columns: dict[str, Any] = {"row": chosen, "sample_id": [found.sample_ids[row] for row in chosen]}
    for column, values, kind in (
        ("group_id", found.group_ids, pa.string()),
        ("corruption", found.corruption, pa.string()),
        ("severity", found.severity, pa.int32()),
    ):
        if values:
            columns[column] = pa.array([values[row] for row in chosen], kind)
    inputs = {"part": f"{found.name} {index}", "columns": ",".join(columns)}
    write_part(run / "evidence" / found.name, index, columns, inputs)


def write_predictions(
    run: Path, found: Images, method: str, probabilities: np.ndarray, index: int, chosen: np.ndarray
) -> None:
    answer = probabilities[chosen].argmax(axis=1)
    columns = prediction_columns(chosen, answer, found.labels[chosen].tolist(), [0.5] * len(chosen), CLASSES)
    columns["sample_id"] = [found.sample_ids[row] for row in chosen]
    flat = pa.array(probabilities[chosen].ravel(), pa.float32())
    columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, len(CLASSES))
    inputs = {"part": str(index), "answers": str(probabilities.sum(axis=0)), "labels": str(found.labels.sum())}
    write_part(run / "predictions" / method / found.name, index, columns, inputs)


def record(frame: pl.DataFrame, **values: object) -> dict[str, object]:
    """The one row with these values."""
    found = frame.filter(pl.all_horizontal([pl.col(name) == value for name, value in values.items()]))
    assert found.height == 1
    return found.row(0, named=True)
