"""Stage one and two when memory runs out. The oracle is an undisturbed run of the same study."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.drivers.infer import infer
from pipeline.drivers.precompute import precompute
from pipeline.engines.engine import Job
from pipeline.engines.local import LocalEngine
from pipeline.errors import OutOfMemoryError
from pipeline.manifest import Manifest
from pipeline.manifest.schema import ROLES
from pipeline.models.per_sample import PerSampleTower
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.work import Report
from tests.main_job.factory import matrix, read_evidence, read_predictions, run_infer, run_precompute, study


@dataclass
class TightEngine:
    """One worker whose towers have no room for more than ``room`` images, once they have scored ``grace`` tiles."""

    manifest: Manifest
    room: int
    grace: int = 0

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        if not job.items:
            return
        worker = job.make_worker()
        if isinstance(worker, ScoringWorker):
            self._tighten(worker)
        for item in job.items:
            on_report(worker.run(item))

    def _tighten(self, worker: ScoringWorker) -> None:
        scorer = worker.scorer
        # Of copies, since the exact form shares its hooks with the ends that it is made of.
        exact = PerSampleTower([deepcopy(end) for end in scorer.segment.ends])

        def exact_with_room(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            self._require_room(None, (inputs,))
            return exact(inputs, weights)

        scorer._per_sample = (ROLES, exact_with_room)
        for tower in (*scorer.segment.ends, scorer.segment.at((0.5, 0.5))):
            tower.register_forward_pre_hook(self._require_room)

    def _require_room(self, _tower: nn.Module | None, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > self.room and self.grace <= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.grace -= 1

    def numeric_kind(self) -> Mapping[str, str]:
        return LocalEngine(self.manifest).numeric_kind()


def ledgers(manifest: Manifest, stage: str) -> list[dict[str, Any]]:
    paths = sorted((Path(manifest.output) / "ledger").glob(f"{stage}/cells/part-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def forward_images(found: list[dict[str, Any]], model: str) -> int:
    return sum(ledger["counts"]["image_forward_images"].get(model, 0) for ledger in found)


@pytest.mark.parametrize("method", ["t3-batch", "t3"])
def test_infer_goes_on_in_smaller_pieces_and_marks_its_parts(
    finished: Manifest, pair: Path, tmp_path: Path, method: str
) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives), methods=[method])
    run_precompute(manifest)
    summary = infer(manifest, TightEngine(manifest, room=8, grace=6))
    assert (summary.computed, summary.samples, summary.rejected) == (5, 490, 0)

    ours, theirs = read_predictions(manifest, method), read_predictions(finished, method)
    for column in ("row", "sample_id", "batch", "lambda", "prediction"):
        assert ours[column].equals(theirs[column])
    np.testing.assert_allclose(matrix(ours, "probabilities"), matrix(theirs, "probabilities"), rtol=0, atol=1e-5)

    found = ledgers(manifest, f"infer/{method}@*")
    marks = [ledger.get("micro_batch") for ledger in found]
    # The sixth tile is in the second part: what came before had whole tiles, and what comes after has none.
    assert marks[0] is None
    assert marks[1:] == [8, 8, 8, 8]
    counted = {"t3-batch": ("merged", 490), "t3": ("per-sample", 980)}[method]
    assert forward_images(found, counted[0]) == counted[1]

    assert "memory ran out" in summary.text()
    assert "micro-batches of down to 8 images" in summary.text()
    assert summary.as_json()["ledger"]["micro_batch"] == 8
    recorded = json.loads((Path(manifest.output) / "run.json").read_text())["ledger"]["infer"]
    assert [total["micro_batch"] for total in recorded.values()] == [8]

    repeated = run_infer(manifest)
    assert repeated.computed == 0
    assert "micro_batch" not in repeated.as_json()["ledger"]
    assert "memory ran out" not in repeated.text()


def test_precompute_goes_on_too(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives))
    summary = precompute(manifest, TightEngine(manifest, room=5))
    assert (summary.samples, summary.ledger.micro_batch) == (490, 4)
    for end in ROLES:
        ours, theirs = (matrix(read_evidence(run), f"logits_{end}") for run in (manifest, finished))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
        assert forward_images(ledgers(manifest, "precompute"), end) == 490
    assert [ledger["micro_batch"] for ledger in ledgers(manifest, "precompute")] == [4] * 5
    recorded = json.loads((Path(manifest.output) / "run.json").read_text())["ledger"]["precompute"]
    assert recorded["micro_batch"] == 4


def test_online_every_slice_of_a_window_that_was_measured_in_pieces_is_marked(
    finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    # Batches fit as they are: only the passes that λ follows from do not.
    manifest = study(tmp_path, pair, Path(finished.archives), methods=[{"name": "t3-batch", "batch_size": 4}])
    infer(manifest, TightEngine(manifest, room=8), online=True)
    assert [ledger.get("micro_batch") for ledger in ledgers(manifest, "infer/t3-batch@*")] == [8] * 5


def test_a_static_merge_starts_from_what_the_process_knows(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives), methods=["t3-batch", "soup"])
    run_precompute(manifest)
    infer(manifest, TightEngine(manifest, room=8))
    found = ledgers(manifest, "infer/soup*")
    assert [ledger["micro_batch"] for ledger in found] == [8] * 5
    assert forward_images(found, "merged") == 490


def test_an_undisturbed_run_is_not_marked(finished: Manifest) -> None:
    found = ledgers(finished, "*/*") + ledgers(finished, "precompute")
    assert len(found) > 5
    assert not any("micro_batch" in ledger for ledger in found)
    assert "micro_batch" not in (Path(finished.output) / "run.json").read_text()


def test_a_model_that_never_fits_ends_the_run_in_one_line(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives), methods=["t3-batch"])
    run_precompute(manifest)
    with pytest.raises(OutOfMemoryError, match=r"^merged: not even one image at a time fits into the memory of cpu"):
        infer(manifest, TightEngine(manifest, room=0))
    assert run_infer(manifest).computed == 5
