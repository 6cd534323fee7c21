"""Two real processes and one folder."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import RunDirectoryError
from pipeline.store.lease import LEASE_NAME, hold_lease

HOLDER = """
import sys
from pathlib import Path
from pipeline.store.lease import hold_lease
with hold_lease(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_process_is_refused_and_the_first_one_named(tmp_path: Path) -> None:
    with another_process_holding(tmp_path) as process:
        with (
            pytest.raises(RunDirectoryError, match=f"{tmp_path}: in use by process {process.pid} on "),
            hold_lease(tmp_path),
        ):
            pass
        process.communicate()
    with hold_lease(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / LEASE_NAME).read_text()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_the_folder_free(tmp_path: Path, end: signal.Signals) -> None:
    with another_process_holding(tmp_path) as process:
        process.send_signal(end)
        process.wait()
        with hold_lease(tmp_path):
            pass


def test_a_lease_ends_with_an_error_inside_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), hold_lease(tmp_path):
        raise ValueError("inside")
    with hold_lease(tmp_path):
        pass


def test_one_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with hold_lease(tmp_path), pytest.raises(RunDirectoryError, match="in use by process"), hold_lease(tmp_path):
        pass


def test_folders_are_made_and_leased_apart(tmp_path: Path) -> None:
    with hold_lease(tmp_path / "a" / "b"), hold_lease(tmp_path / "a" / "c"):
        assert (tmp_path / "a" / "b").is_dir()


def a_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("")
    return path


@pytest.mark.parametrize("place", [a_file, lambda tmp_path: a_file(tmp_path) / "run"], ids=["file", "below a file"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    folder = place(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"{folder}: "), hold_lease(folder):
        pass
