"""Killed at any moment and run again: every file is what an undisturbed run leaves, and no committed part is redone."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.errors import RunDirectoryError, StaleCacheError
from pipeline.manifest import Manifest
from pipeline.store.lease import hold_lease
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    assert_same_files,
    copy_run,
    modification_times,
    predictions_folder,
    result_files,
    run_both,
    run_cli,
    run_infer,
    run_precompute,
    start_cli,
    study,
)

PARTS = 60
SETTINGS: dict[str, Any] = {
    "part_rows": 16,
    "grouping": {"window": {"rows": 64}},
    "methods": ["t3", "t3-batch"],
    "evaluation_sets": [{"name": "night", "source": {"kind": "synthetic", "count": 16 * PARTS - 3, "seed": 9}}],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Manifest:
    """A run of many small parts that nobody disturbed. Not to be written to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    manifest = study(folder, pair, folder / "archives", **SETTINGS)
    ingest(manifest, LocalEngine(manifest))
    return run_both(manifest)


def kill_in_mid_work(folder: Path, total: int, *command: str) -> dict[str, int]:
    """Start a command, kill -9 its process when some but not all parts lie in ``folder``; what lay there, by time."""
    process = start_cli(*command)
    deadline = time.monotonic() + 180
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("part-*.parquet"))) >= 2:
                break
            time.sleep(0.001)
        helpers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        os.kill(process.pid, signal.SIGKILL)
    finally:
        out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"ended before it was killed: {out}{err}"
    _, alive = psutil.wait_procs(helpers, timeout=30)
    for helper in alive:
        helper.kill()
    committed = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert 2 <= len(committed) < total, f"{len(committed)} of {total} parts were committed when the kill arrived"
    return committed


def assert_untouched(folder: Path, committed: dict[str, int]) -> None:
    assert {name: (folder / name).stat().st_mtime_ns for name in committed} == committed


def test_resume_after_a_kill_in_stage_one_repeats_no_part(
    undisturbed: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest = study(tmp_path, pair, Path(undisturbed.archives), **SETTINGS)
    evidence = Path(manifest.output) / "evidence" / "night"
    path = str(tmp_path / MANIFEST)
    committed = kill_in_mid_work(evidence, PARTS, "precompute", path, "--engine", "local")
    code, out, err = command_line("precompute", path, "--engine", "local", "--json")
    assert code == 0, err
    parts = json.loads(out)["parts"]
    assert parts == {"computed": PARTS - len(committed), "skipped": len(committed)}
    assert_untouched(evidence, committed)
    run_infer(manifest)
    assert_same_files(result_files(Path(manifest.output)), result_files(Path(undisturbed.output)))


@pytest.mark.parametrize("online", [False, True], ids=["cached", "online"])
def test_resume_after_a_kill_in_stage_two_repeats_no_part(
    undisturbed: Manifest, pair: Path, tmp_path: Path, online: bool
) -> None:
    archives = Path(undisturbed.archives)
    manifest = study(tmp_path, pair, archives, **SETTINGS)
    if not online:
        run_precompute(manifest)
    predictions = predictions_folder(manifest, "t3", "night")
    command = ["infer", str(tmp_path / MANIFEST), "--engine", "local", "--method", "t3"]
    committed = kill_in_mid_work(predictions, PARTS, *command, *(["--online"] if online else []))
    summary = run_infer(manifest, "t3", online=online)
    assert summary.skipped == len(committed)
    assert summary.samples == 16 * PARTS - 3 - 16 * len(committed)
    assert summary.ledger.per_model["image_forward_images"]["per-sample"] == 2 * summary.samples
    assert_untouched(predictions, committed)
    expected = predictions_folder(undisturbed, "t3", "night")
    assert_same_files(*({p.name: p.read_bytes() for p in f.glob("part-*")} for f in (predictions, expected)))
    if not online:
        run_infer(manifest)
        assert_same_files(result_files(Path(manifest.output)), result_files(Path(undisturbed.output)))


@pytest.mark.slow
def test_resume_after_a_kill_of_rays_driver_repeats_no_part(undisturbed: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, Path(undisturbed.archives), **SETTINGS)
    run = Path(manifest.output)
    command = ("precompute", str(tmp_path / MANIFEST), "--engine", "ray", "--workers", "2")
    committed = kill_in_mid_work(run / "evidence" / "night", PARTS, *command)
    code, out, err = run_cli(*command, "--json")
    assert code == 0, err
    assert json.loads(out)["parts"] == {"computed": PARTS - len(committed), "skipped": len(committed)}
    assert_untouched(run / "evidence" / "night", committed)
    run_infer(manifest)
    assert_same_files(result_files(run), result_files(Path(undisturbed.output)))


def change_a_byte_of_the_first_column(path: Path) -> None:
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    content[first + column.total_compressed_size // 2] ^= 0x10
    path.write_bytes(content)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [tear, empty, Path.unlink])
def test_a_torn_or_lost_part_of_any_table_is_redone_and_no_other(
    finished: Manifest, pair: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    run, expected = Path(manifest.output), result_files(Path(finished.output))
    tables = sorted({path.parent for path in run.rglob("part-*.parquet") if "rejects" not in path.parts})
    damaged = [max(folder.glob("part-*.parquet")) for folder in tables]
    for path in damaged:
        damage(path)
    before = modification_times(run)
    stages = run_precompute(manifest), run_infer(manifest)
    assert [summary.computed for summary in stages] == [1, 5]
    assert_same_files(result_files(run), expected)
    after = modification_times(run)
    redone = {name for name in after if after[name] != before.get(name)}
    rejects = {name for name in redone if name.startswith("rejects/")}
    assert redone - rejects == {str(path.relative_to(run)) for path in damaged}


def test_strays_of_killed_writers_are_ignored(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    run = Path(manifest.output)
    folders = {path.parent for path in run.rglob("part-*.parquet")}
    for folder in folders:
        (folder / ".tmp-4711-0a1b2c3d-part-00000.parquet").write_bytes(b"PAR1 half a file")
    for summary in (run_precompute(manifest), run_infer(manifest)):
        assert summary.computed == 0
    assert_same_files(result_files(run), result_files(Path(finished.output)))


@pytest.mark.parametrize(
    ("table", "command"), [("evidence/cells", "infer"), ("coefficients/t3/cells/samples", "precompute")]
)
def test_a_changed_byte_in_a_whole_file_is_noticed_and_named(
    finished: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine, table: str, command: str
) -> None:
    manifest = copy_run(finished, tmp_path, pair, coefficient={"delta": 0.4} if "evidence" in table else {})
    part = Path(manifest.output) / table / "part-00001.parquet"
    change_a_byte_of_the_first_column(part)
    if command == "precompute":
        batches = Path(manifest.output) / "coefficients" / "t3" / "cells" / "batches"
        for path in batches.rglob("part-00000.parquet"):
            path.unlink()
    code, _, err = command_line(command, str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    assert f"{part}: cannot be read" in err
    assert "delete this file and run the stage again" in err
    part.unlink()
    assert command_line("precompute", str(tmp_path / MANIFEST), "--engine", "local")[0] == 0


def test_stage_two_does_not_start_without_all_evidence(
    finished: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    (Path(manifest.output) / "evidence" / "cells" / "part-00002.parquet").unlink()
    code, _, err = command_line("infer", str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    assert "1 parts have no evidence yet (cells); run `pipeline precompute`" in err


def test_a_file_of_somebody_else_is_never_overwritten(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    foreign = Path(manifest.output) / "evidence" / "cells" / "part-00000.parquet"
    pq.write_table(pa.table({"row": [1, 2, 3]}), foreign)
    content = foreign.read_bytes()
    with pytest.raises(StaleCacheError, match="was not written by this project"):
        run_precompute(manifest)
    assert foreign.read_bytes() == content


def test_a_second_driver_on_one_output_is_refused(
    finished: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    with hold_lease(Path(manifest.output)):
        for command in ("precompute", "infer"):
            code, _, err = command_line(command, str(tmp_path / MANIFEST), "--engine", "local")
            assert code == 2
            assert err.splitlines() == [
                line for line in err.splitlines() if f"in use by process {os.getpid()} on" in line
            ]
            assert len(err.splitlines()) == 1
    assert command_line("infer", str(tmp_path / MANIFEST), "--engine", "local")[0] == 0


def test_two_drivers_at_once_one_of_them_ends_with_one_line(undisturbed: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, Path(undisturbed.archives), **SETTINGS)
    lease = Path(manifest.output) / ".lease"
    first = start_cli("precompute", str(tmp_path / MANIFEST), "--engine", "local")
    try:
        while first.poll() is None and not (lease.exists() and lease.read_text()):
            time.sleep(0.002)
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(RunDirectoryError, match=f"in use by process {first.pid} on"):
            run_precompute(manifest)
    finally:
        os.kill(first.pid, signal.SIGCONT)
        _, err = first.communicate()
    assert first.returncode == 0, err
    expected = result_files(Path(undisturbed.output), "evidence", "coefficients")
    assert_same_files(result_files(Path(manifest.output), "evidence", "coefficients"), expected)
