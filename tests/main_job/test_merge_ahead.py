"""Stage two with the next batch's weights merged ahead, as CUDA does: the same files, for the same merges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.drivers.infer import infer
from pipeline.engines.engine import Job
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from pipeline.models.scorer import Scorer
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.work import Report
from tests.main_job.factory import assert_same_files, result_files, run_infer, run_precompute, study

METHODS = ["t3-batch", "t3-lambda"]
# Several reads for each slice, so that the next batch is often the first of another read.
READS = {"read_bytes": 1 << 16}


@dataclass
class AheadEngine:
    """One worker that merges ahead."""

    manifest: Manifest

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        if not job.items:
            return
        worker = job.make_worker()
        if isinstance(worker, ScoringWorker):
            worker.scorer = Scorer(worker.models, device=torch.device("cpu"), precision="fp32", merge_ahead=True)
        for item in job.items:
            on_report(worker.run(item))

    def numeric_kind(self) -> Mapping[str, str]:
        return LocalEngine(self.manifest).numeric_kind()


def test_merging_ahead_leaves_the_same_files(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    found, expected = (
        study(tmp_path / name, pair, Path(finished.archives), methods=METHODS, compute=READS)
        for name in ("ahead", "plain")
    )
    run_precompute(found)
    run_precompute(expected)
    ahead, plain = infer(found, AheadEngine(found)), run_infer(expected)
    assert_same_files(result_files(Path(found.output)), result_files(Path(expected.output)))
    assert ahead.ledger.totals == plain.ledger.totals
    assert ahead.ledger.totals["merges"] > 10
