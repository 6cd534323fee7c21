"""Run directories with evidence, λ and predictions for the figures, written through the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.files import write_json
from tests.results.run_factory import write_part

Matrix = np.ndarray[Any, Any]


def lists(matrix: Matrix) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float32).ravel()), matrix.shape[1])


@dataclass
class PairSet:
    """An evaluation set: logits of both models, labels (None where there is none), ids and groups."""

    name: str
    generalist: Matrix
    expert: Matrix
    labels: Sequence[int | None]
    condition: str | None = "in-domain"
    groups: Sequence[str | None] | None = None
    class_names: Sequence[str] = ("benign", "malignant", "normal")
    sample_ids: Sequence[str] = field(default_factory=list)

    def ids(self) -> list[str]:
        return list(self.sample_ids) or [f"{self.name}/test/{row}" for row in range(len(self.labels))]


def pair_run(
    run: Path,
    sets: Sequence[PairSet],
    *,
    name: str = "study",
    seed: int = 0,
    cuts: int = 2,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """Write evidence in ``cuts`` parts and the run's record."""
    for item in sets:
        js = divergence(item.generalist, item.expert)
        for index, rows in enumerate(np.array_split(np.arange(len(item.labels)), cuts)):
            ids = item.ids()
            columns: dict[str, Any] = {
                "row": pa.array(rows, pa.int64()),
                "sample_id": [ids[row] for row in rows],
                "label": pa.array([item.labels[row] for row in rows], pa.int32()),
            }
            if item.groups is not None:
                columns["group_id"] = pa.array([item.groups[row] for row in rows], pa.string())
            columns |= {
                "logits_generalist": lists(item.generalist[rows]),
                "logits_expert": lists(item.expert[rows]),
                "js": pa.array(js[rows].astype(np.float32)),
            }
            write_part(run / "evidence" / item.name, index, columns)
    entries = [{"name": item.name, "condition": item.condition} for item in sets]
    record = {"name": name, "seeds": {"training": seed}, "evaluation_sets": entries, "methods": []}
    names = {item.name: list(item.class_names) for item in sets}
    write_json(run / "run.json", {"manifest": record | dict(manifest or {}), "class_names": names})
    return run


def predict(
    run: Path, method: str, name: str, probabilities: Matrix, labels: Sequence[int | None], *, order: Any = None
) -> None:
    """Write predictions of one set in two parts, in the order of rows given."""
    order = np.arange(len(labels)) if order is None else np.asarray(order)
    for index, rows in enumerate(np.array_split(order, 2)):
        columns = {
            "row": pa.array(rows, pa.int64()),
            "lambda": pa.array(rows / 100, pa.float32()),
            "prediction": pa.array(probabilities[rows].argmax(axis=1), pa.int32()),
            "probabilities": lists(probabilities[rows]),
            "label": pa.array([labels[row] for row in rows], pa.int32()),
        }
        write_part(run / "predictions" / method / name, index, columns)


def divergence(generalist: Matrix, expert: Matrix) -> Matrix:
    """Jensen-Shannon divergence by scipy, whose function is its root."""
    from scipy.spatial.distance import jensenshannon
    from scipy.special import softmax

    return jensenshannon(softmax(generalist, axis=1), softmax(expert, axis=1), axis=1) ** 2


def random_set(name: str, rows: int, *, seed: int = 1, labelled: bool = True, **fields: Any) -> PairSet:
    generator = np.random.default_rng(seed)
    generalist, expert = (generator.normal(scale=2, size=(rows, 3)).astype(np.float32) for _ in range(2))
    labels = generator.integers(0, 3, rows).tolist() if labelled else [None] * rows
    return PairSet(name, generalist, expert, labels, **fields)
