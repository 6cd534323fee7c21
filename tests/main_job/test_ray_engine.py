"""Real Ray: any number of workers leaves the local engine's files, and a worker's error arrives as it was raised."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.drivers.infer import infer
from pipeline.drivers.ingest import ingest
from pipeline.drivers.opening import open_run
from pipeline.drivers.precompute import missing_evidence, precompute
from pipeline.engines.engine import Job, choose_engine
from pipeline.engines.local import LocalEngine
from pipeline.engines.ray import RayEngine
from pipeline.errors import ArchiveError, EngineError, NumericKindError
from pipeline.manifest import Manifest
from pipeline.stages.precompute import MakePrecomputeWorker
from pipeline.stages.work import Report, WorkItem
from tests.main_job.factory import (
    MANIFEST,
    assert_same_files,
    environment,
    predictions_folder,
    result_files,
    run_precompute,
    study,
)

# Ray warns of its own default settings when it reads them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_ray_leaves_the_files_of_the_local_engine(
    finished: Manifest, pair: Path, archives: Path, tmp_path: Path, workers: int
) -> None:
    manifest = study(tmp_path, pair, archives)
    engine = choose_engine("ray", manifest, workers)
    first = precompute(manifest, engine)
    second = infer(manifest, engine)
    assert (first.computed, first.samples) == (5, 490)
    assert (second.computed, second.samples) == (25, 3 * 490)
    assert first.ledger.per_model["image_forward_calls"]["generalist"] == 4 + 4 + 4 + 1 + 3
    assert_same_files(result_files(Path(manifest.output)), result_files(Path(finished.output)))
    repeated = infer(manifest, engine)
    assert (repeated.computed, repeated.skipped) == (0, 25)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_online_leaves_the_same_predictions(finished: Manifest, pair: Path, archives: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, archives)
    infer(manifest, RayEngine(manifest, 2), names=["t3-lambda"], online=True)
    folders = (predictions_folder(m, "t3-lambda") for m in (manifest, finished))
    assert_same_files(*({p.name: p.read_bytes() for p in folder.glob("part-*")} for folder in folders))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_ingests_the_archive_of_the_local_engine(pair: Path, archives: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, tmp_path / "archives")
    summary = ingest(manifest, RayEngine(manifest, 2))
    assert (summary.computed, summary.samples) == (5, 490)
    kept = [path for path in (archives / "cells").rglob("*") if path.is_file()]
    assert len(kept) > 10
    for path in kept:
        assert (
            tmp_path / "archives" / "cells" / path.relative_to(archives / "cells")
        ).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("cluster")
def test_a_worker_of_another_kind_is_refused_by_name_through_ray(pair: Path, archives: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, archives)
    context, _ = open_run(manifest, LocalEngine(manifest))
    items = missing_evidence(context)
    foreign = replace(context, kind={**context.kind, "instruction_set": "x86_64 OTHER"})
    with pytest.raises(NumericKindError, match=r"instruction_set is .* and the run's is x86_64 OTHER"):
        RayEngine(manifest, 2).run(Job("precompute", items, MakePrecomputeWorker(foreign), scores=True), _ignore)
    assert result_files(Path(manifest.output), "evidence") == {}


@pytest.mark.usefixtures("cluster")
def test_an_error_in_the_middle_keeps_its_kind_and_what_was_committed(
    pair: Path, archives: Path, finished: Manifest, tmp_path: Path
) -> None:
    manifest = study(tmp_path, pair, archives)
    run_precompute(manifest)
    shutil.rmtree(Path(manifest.output) / "evidence")
    context, _ = open_run(manifest, LocalEngine(manifest))
    items = [WorkItem("cells", 0), WorkItem("cells", 1), WorkItem("cells", 99)]
    reports: list[Report] = []
    with pytest.raises(ArchiveError, match="has no part 99"):
        RayEngine(manifest, 1).run(Job("precompute", items, MakePrecomputeWorker(context), scores=True), reports.append)
    summary = run_precompute(manifest)
    assert summary.skipped >= len(reports)
    assert summary.computed + summary.skipped == 5
    assert_same_files(*(result_files(Path(m.output), "evidence") for m in (manifest, finished)))


def _ignore(report: Report) -> None:
    del report


def test_the_local_engine_has_one_worker(finished: Manifest) -> None:
    with pytest.raises(EngineError, match="--workers 2: the local engine is this process alone; use --engine ray"):
        choose_engine("local", finished, 2)


@pytest.mark.slow
def test_ray_workers_with_another_instruction_set_than_the_driver_are_refused(
    pair: Path, archives: Path, tmp_path: Path
) -> None:
    """torch reads ATEN_CPU_CAPABILITY once: set after that, it holds for the workers only."""
    study(tmp_path, pair, archives)
    program = tmp_path / "driver.py"
    program.write_text(
        "import os, sys, torch\n"
        "torch.backends.cpu.get_cpu_capability()\n"
        "torch.ones(64) @ torch.ones(64)\n"
        "os.environ['ATEN_CPU_CAPABILITY'] = 'default'\n"
        f"sys.argv = ['pipeline', 'precompute', {str(tmp_path / MANIFEST)!r}, '--engine', 'ray']\n"
        "from pipeline.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, program], env=environment(), capture_output=True, text=True, timeout=300)
    code, err = done.returncode, done.stderr
    assert code == 2, err
    assert "worker: numeric kind differs: instruction_set is" in err
    assert os.environ.get("ATEN_CPU_CAPABILITY") is None
