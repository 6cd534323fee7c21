"""A run of all methods, and of some again at other settings, for the tests that read one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.drivers.summary import Summary
from pipeline.manifest import Manifest
from pipeline.methods import METHODS
from pipeline.stages.selection import Selected, select_methods
from tests.main_job.factory import read_parts, run_infer, run_precompute, study

IMAGES, TILES, PARTS = 490, 16, 5
GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
STATIC: list[dict[str, Any]] = [
    {"name": "soup"},
    {"name": "soup", "alpha": 0.4},
    {"name": "mean"},
    {"name": "task-arithmetic"},
    {"name": "task-arithmetic", "scale": 1.0},
    {"name": "slerp"},
    {"name": "slerp", "alpha": 0.2},
    {"name": "ties"},
    {"name": "ties", "density": 0.5, "scale": 0.7},
    {"name": "mixup"},
    {"name": "mixup", "distribution": "uniform"},
]
OTHERS: list[dict[str, Any]] = [
    {"name": "ensemble", "mean_of": "probabilities"},
    {"name": "t3-batch", "order": "dirichlet(0.05)"},
    {"name": "dawin-mixture", "clusters": 5},
]
ENTRIES = [*METHODS, *STATIC, *[{"name": "soup", "alpha": alpha} for alpha in GRID], *OTHERS]


@dataclass(frozen=True)
class Everything:
    """A run of all methods, and of some again at other settings; what each command of it did."""

    manifest: Manifest
    selected: list[Selected]
    precomputed: Summary
    inferred: list[Summary]

    @property
    def run(self) -> Path:
        return Path(self.manifest.output)

    def spent(self, key: str) -> dict[str, Any]:
        """Counts of a method over the whole run."""
        record = json.loads((self.run / "run.json").read_text())
        counts: dict[str, Any] = record["ledger"]["infer"][key]["counts"]
        return counts

    def of(self, *combinations: str) -> list[Selected]:
        found = [item for item in self.selected if item.method.combination in combinations]
        assert found
        return found


def run_everything(folder: Path, pair: Path, archives: Path) -> Everything:
    manifest = study(folder, pair, archives, methods="all")
    precomputed = run_precompute(manifest)
    first = run_infer(manifest)
    manifest = study(folder, pair, archives, methods=ENTRIES)
    return Everything(manifest, select_methods(manifest), precomputed, [first, run_infer(manifest)])


def read_plan(manifest: Manifest, item: Selected) -> pa.Table:
    assert item.rule is not None
    assert item.grouping is not None
    folder = Path(manifest.output) / "coefficients" / item.rule.folder / "cells" / "batches" / item.grouping.folder
    return read_parts(folder)
