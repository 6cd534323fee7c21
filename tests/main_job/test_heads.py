"""Who makes heads: this process where it may, else the engine's workers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.drivers.opening import open_run
from pipeline.drivers.precompute import embed
from pipeline.drivers.summary import Summary
from pipeline.engines.engine import Job
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from pipeline.stages.work import Report
from tests.main_job.factory import study


@dataclass
class NotingEngine:
    """Runs nothing; remembers what it was asked to."""

    jobs: list[Job]

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        self.jobs.append(job)

    def numeric_kind(self) -> Mapping[str, str]:
        raise AssertionError("the kind is known")


def test_on_a_gpu_heads_are_made_by_the_engines_workers(
    finished: Manifest, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives))
    context, models = open_run(manifest, LocalEngine(manifest))
    on_gpu = replace(context, kind={**context.kind, "device": "cuda NVIDIA H200"})
    # This process would have the same GPU.
    monkeypatch.setattr(LocalEngine, "numeric_kind_or_none", lambda _engine: on_gpu.kind)
    engine = NotingEngine([])
    embed(on_gpu, models, engine, Summary("precompute", manifest.output))
    assert [(job.name, job.scores, len(job.items)) for job in engine.jobs] == [("embed", True, 1)]
