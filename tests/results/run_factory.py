"""Run directories as DESIGN section 6 lays them out, with invented but plausible figures, written through the store.

``python tests/results/run_factory.py /tmp/run`` writes one to look at.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.files import write_json
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.tables import write_table

BATCH = 32
Arrays = dict[str, np.ndarray]


@dataclass
class FakeSet:
    name: str
    condition: str | None
    class_names: list[str]
    rows: int
    difficulty: float = 0.3
    labelled: bool = True
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


STUDY_SETS = [
    FakeSet("bloodmnist", "in-domain", ["basophil", "eosinophil", "erythroblast", "lymphocyte"], 3421, 0.12),
    FakeSet("pbc", "base-to-novel", ["basophil", "eosinophil", "erythroblast", "lymphocyte"], 2890, 0.38),
    FakeSet("bloodmnist-c/pixelate".replace("/", "-"), "digital", ["basophil", "eosinophil", "monocyte"], 3421, 0.45),
    FakeSet("bloodmnist-gaussian-noise-severity-3", "noise", ["basophil", "eosinophil", "monocyte"], 3421, 0.55),
    FakeSet("night-archive", "unlabelled", ["normal", "pneumonia"], 1500, labelled=False),
]
STUDY_METHODS = {
    "generalist": 1.5,
    "expert": 1.1,
    "ensemble": 1.0,
    "t3": 0.9,
    "t3-lambda": 0.8,
    "t3-lambda@1a2b3c4d": 0.85,
}
T3_LAMBDA_AT_ANOTHER_GAMMA = {
    "name": "t3-lambda",
    "settings": {"rule": {"name": "t3", "gamma": 0.5, "delta": 0.5}, "grouping": {"name": "lambda"}},
    "changed": {"gamma": 0.5},
}


def write_part(folder: Path, index: int, columns: dict[str, Any], inputs: dict[str, str] | None = None) -> Path:
    path = folder / f"part-{index:05d}.parquet"
    write_table(path, pa.table(columns), Fingerprint(inputs or {"part": str(index), "folder": folder.name}))
    return path


def prediction_columns(
    rows: np.ndarray, prediction: np.ndarray, label: list[int | None], lam: Any, names: list[str]
) -> Any:
    probabilities = np.full((len(rows), len(names)), 1 / len(names), np.float32).ravel()
    return {
        "row": pa.array(rows, pa.int64()),
        "sample_id": [f"s{row:08d}" for row in rows],
        "batch": pa.array([int(row) // BATCH for row in rows], pa.int64()),
        "lambda": pa.array(lam, pa.float32()),
        "prediction": pa.array(prediction, pa.int32()),
        "class_name": [names[value] for value in prediction],
        "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities), len(names)),
        "label": pa.array(label, pa.int32()),
    }


def predicted_part(run: Path, method: str, name: str, index: int, rows: Any, prediction: Any, label: Any) -> Path:
    """A part with two classes and λ = 0.5."""
    rows = np.asarray(rows)
    columns = prediction_columns(rows, np.asarray(prediction), label, [0.5] * len(rows), ["a", "b"])
    return write_part(run / "predictions" / method / name, index, columns)


def minimal_run(run: Path, sets: dict[str, str | None], methods: list[str]) -> Path:
    manifest = {
        "name": "minimal",
        "evaluation_sets": [{"name": name, "condition": condition} for name, condition in sets.items()],
        "methods": methods,
    }
    write_json(run / "run.json", {"manifest": manifest})
    return run


def settings_of(run: Path, method: str, **changed: Any) -> None:
    """Spell out beside a method's folder which of its settings are not the defaults."""
    name = method.split("@", maxsplit=1)[0]
    write_json(run / "predictions" / f"{method}.json", {"name": name, "settings": changed, "changed": changed})


def t3_lambda(generator: np.random.Generator, rows: int) -> Arrays:
    raw = 1 / (1 + np.exp(-generator.beta(1, 4, rows) * np.log(2)))
    branch = generator.choice(["none", "expert-confident", "generalist-confident"], rows, p=[0.35, 0.5, 0.15])
    shift = np.select([branch == "expert-confident", branch == "generalist-confident"], [0.5, -0.5], 0.0)
    return {"lambda_raw": raw, "lambda": np.clip(raw + shift, 0, 1), "branch": branch}


def plain_lambda(generator: np.random.Generator, rows: int) -> Arrays:
    raw = generator.beta(2, 3, rows)
    return {"lambda_raw": raw, "lambda": raw, "branch": np.full(rows, "none")}


def study_run(run: Path, *, seed: int = 7, part_rows: int = 1024, sets: list[FakeSet] | None = None) -> Path:
    """A study of several sets, methods and rules with ledgers, holes in the rows and settings beside the folders."""
    generator = np.random.default_rng(seed)
    sets = STUDY_SETS if sets is None else sets
    for fake in sets:
        addresses = np.flatnonzero(generator.random(fake.rows) > 0.01)
        weights = generator.dirichlet(np.full(len(fake.class_names), 4))
        labels = generator.choice(len(fake.class_names), len(addresses), p=weights)
        slices = [np.flatnonzero(addresses // part_rows == index) for index in range(-(-fake.rows // part_rows))]
        for index, chosen in enumerate(slices):
            write_part(run / "evidence" / fake.name, index, {"row": addresses[chosen]})
        for rule, draw in {"t3": t3_lambda, "dawin": plain_lambda}.items():
            lam = draw(generator, len(addresses))
            for index, chosen in enumerate(slices):
                columns = {"row": addresses[chosen], "sample_id": [f"s{row:08d}" for row in addresses[chosen]]}
                columns |= {name: pa.array(lam[name][chosen], pa.float32()) for name in ("lambda_raw", "lambda")}
                folder = run / "coefficients" / rule / fake.name / "samples"
                write_part(folder, index, columns | {"branch": lam["branch"][chosen].astype(str).tolist()})
        for method, error in STUDY_METHODS.items():
            wrong = generator.random(len(addresses)) < fake.difficulty * error * (0.9 if method != "expert" else 1.2)
            prediction = np.where(wrong, generator.integers(0, len(fake.class_names), len(addresses)), labels)
            if method == "expert" and fake.condition == "noise":
                prediction[:] = 0
            for index, chosen in enumerate(slices):
                label = labels[chosen].tolist() if fake.labelled else [None] * len(chosen)
                lambdas = {"generalist": 0.0, "expert": 1.0, "ensemble": None}.get(method, 0.61)
                columns = prediction_columns(
                    addresses[chosen], prediction[chosen], label, [lambdas] * len(chosen), fake.class_names
                )
                write_part(
                    run / "predictions" / method / fake.name, index, columns, {"method": method, "part": str(index)}
                )
    write_json(run / "predictions" / "t3-lambda@1a2b3c4d.json", T3_LAMBDA_AT_ANOTHER_GAMMA)
    _write_run_json(run, sets, sum(fake.rows for fake in sets))
    return run


def _write_run_json(run: Path, sets: list[FakeSet], images: int) -> None:
    calls = -(-images // BATCH)
    run_json = {
        "manifest": {
            "name": "Blood cells: ViT-B/16, generalist against expert",
            "evaluation_sets": [
                {"name": fake.name, "condition": fake.condition, "source": "medmnist"} for fake in sets
            ],
            "methods": list(STUDY_METHODS),
            "coefficient": {"rule": "t3", "gamma": 1.0, "delta": 0.5, "tau": 0.05},
            "tile": BATCH,
        },
        "versions": {"pipeline": "0.1.0", "python": "3.12.11", "torch": "2.9.0", "open_clip": "3.3.0", "ray": "2.60.0"},
        "seeds": {"manifest": 20250101, "bootstrap": 7},
        "numeric_kind": {"device": "cpu", "precision": "float32", "threads": 1, "tile": BATCH, "isa": "avx512"},
        "fingerprints": {"generalist": "3f" * 32, "expert": "a9" * 32},
        "state": "complete",
        "class_names": {fake.name: fake.class_names for fake in sets},
        "ledger": {
            "precompute": totals({"generalist": calls, "expert": calls}, images, 0, 0, calls, 811.4),
            "infer": {
                "t3": totals({"merged": calls}, images, calls - 6, 6, calls, 436.0),
                "t3-lambda": totals({"merged": calls}, images, calls - 118, 118, calls, 421.9),
                "t3-lambda@1a2b3c4d": totals(
                    {"generalist": calls, "expert": calls, "merged": calls}, images, calls, 0, calls, 1261.0
                ),
            },
        },
    }
    write_json(run / "run.json", run_json)


def totals(
    calls: dict[str, int], images: int, merges: int, skipped: int, batches: int, seconds: float
) -> dict[str, Any]:
    return {
        "counts": {
            "image_forward_calls": calls,
            "image_forward_images": dict.fromkeys(calls, images),
            "text_forward_calls": {"merged": 9},
            "text_forward_images": {"merged": 36},
            "merges": merges,
            "merges_skipped": skipped,
            "images_read": images,
            "batches": batches,
            "samples": images,
            "rejected": 0,
        },
        "seconds": {"read": 0.1 * seconds, "forward": 0.8 * seconds, "merge": 0.05 * seconds, "write": 0.05 * seconds},
    }


if __name__ == "__main__":
    study_run(Path(sys.argv[1]))
    print(json.dumps({"run": sys.argv[1]}))
