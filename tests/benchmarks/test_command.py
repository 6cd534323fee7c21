"""The command line of the benchmarks."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pipeline import cli
from tests.models.factory import write_config


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pipeline", "bench", *arguments])
    before = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        torch.set_num_threads(before)
    return int(ended.value.code or 0)


def test_the_table_is_printed_for_programs_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_config(tmp_path))
    sizes = ("--samples", "4", "--batch-size", "2", "--pairs", "3", "--threads", "1", "--classes", "3")
    folder = tmp_path / "kept"
    assert run(monkeypatch, "--architecture", model, *sizes, "--folder", str(folder), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "methods-tiny.json").read_text()) == printed
    assert [row["name"] for row in printed["rows"]][:5] == ["plain", "ensemble", "soup", "dawin", "t3-batch"]
    assert printed["machine"]["threads"] == 1


@pytest.mark.parametrize("command", ["scaling", "merge"])
def test_options_before_a_command_are_refused_not_ignored(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--threads", "1", "--batch-size", "2", command) == 2
    error = capsys.readouterr().err.strip()
    assert error == f"error: --threads, --batch-size: stands before {command!r}, which would ignore it; put it after it"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_an_absent_device_is_named_by_its_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--device", "cuda") == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: ")
