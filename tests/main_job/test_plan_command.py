"""`pipeline plan`: what it prints, what it refuses, and that it leaves nothing behind when it is terminated."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from pipeline.manifest import Manifest
from pipeline.results.plan_tables import duration, plan_tables, size
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import MANIFEST, study
from tests.main_job.planned import by_name, files_below, quick


def test_the_command_prints_for_programs_and_for_people(
    command_line: CommandLine, tmp_path: Path, finished: Manifest, pair: Path
) -> None:
    study(tmp_path, pair, Path(finished.archives))
    asked = ("plan", str(tmp_path / MANIFEST), "--seconds", "0", "--workers", "1", "--workers", "4")
    code, out, err = command_line(*asked, "--method", "t3-batch", "--tolerance", "0.1,0", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["workers"] == [1, 4]
    assert [name for name, stage in by_name(planned).items() if stage["method"]] == ["t3-batch"]
    assert [row["tolerance"] for row in planned["tolerance"]] == [0.0, 0.1]
    assert "plan: " in err
    code, out, err = command_line(*asked)
    assert code == 0, err
    for word in ("precompute", "t3-lambda", "core-h", "left to do", "storage", "memory of a worker"):
        assert word in out


def test_tables_fit_into_a_hundred_columns(tmp_path: Path, finished: Manifest, pair: Path) -> None:
    planned = quick(study(tmp_path, pair, Path(finished.archives)), workers=[1, 4])
    console = Console(width=200, record=True, quiet=True)
    tables = [item for item in plan_tables(planned) if isinstance(item, Table)]
    assert [console.measure(table).maximum <= 100 for table in tables] == [True, True, True]


@pytest.mark.parametrize("value", ["", "a", "0,2", "-0.1", "nan"])
def test_what_is_no_tolerance_is_refused_in_one_line(command_line: CommandLine, finished: Manifest, value: str) -> None:
    manifest = Path(finished.output).parent / MANIFEST
    code, out, err = command_line("plan", str(manifest), "--tolerance", value)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--tolerance" in err


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.004, "<0.01 s"), (2.34, "2.34 s"), (600, "10 min"), (3600 * 8.5, "8 h 30 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_sizes_have_the_unit_that_fits() -> None:
    assert [size(count) for count in (12, 1500, 2.5e9, 3e12)] == ["12 B", "1.5 kB", "2.5 GB", "3 TB"]


def test_a_plan_that_is_terminated_leaves_nothing_behind(
    finished: Manifest, tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives))
    before = files_below(tmp_path)
    seen: list[Path] = []

    def end(*_: object) -> None:
        seen.extend(tmp_path.glob(".tmp-plan-*"))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("pipeline.drivers.plan.measure_heads", end)
    with pytest.raises(SystemExit) as ended:
        quick(manifest)
    assert (ended.value.code, len(seen)) == (128 + signal.SIGTERM, 1)
    assert files_below(tmp_path) == before
    assert signal.getsignal(signal.SIGTERM) is handler
