"""A folder with a tiny pair and its manifest, and the command line in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from tests.cli.factory import Run, Study
from tests.models.factory import State, random_state, write_checkpoint, write_config


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, State]:
    config = write_config(tmp_path_factory.mktemp("states"))
    return random_state(config, seed=1), random_state(config, seed=2)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def study(tmp_path: Path, states: tuple[State, State], monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.delenv("PIPELINE_DATA_ROOT", raising=False)
    write_config(tmp_path)
    for name, state in zip(("generalist", "expert"), states, strict=True):
        write_checkpoint(tmp_path / f"{name}.safetensors", state)
    study = Study(tmp_path)
    study.write()
    return study


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def run_main(*arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of ``pipeline ARGUMENTS``, in this process."""
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run_main
