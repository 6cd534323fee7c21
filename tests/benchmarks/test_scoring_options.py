"""What the benchmark reports must follow from what it ran; no figure of time is judged."""

import json
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

from pipeline import cli
from pipeline.benchmarks.scoring_options import scoring_options

WAYS = {
    "fp32",
    "fp32 channels_last",
    "fp32 compile",
    "fp32 channels_last compile",
    "bf16",
    "bf16 channels_last",
    "bf16 compile",
    "fp32 autocast bf16",
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_way_is_reported_with_its_time_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = str(resources.files("pipeline.demo").joinpath("tiny.json"))
    arguments = ["--architecture", tiny, "--tile", "4", "--samples", "6", "--pairs", "3"]
    monkeypatch.setattr(sys, "argv", ["pipeline", "bench", "scoring", *arguments, "--folder", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "scoring.json").read_text()) == result

    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == WAYS
    assert (rows["fp32"]["ratio"], rows["fp32"]["error"]) == (1.0, 0.0)
    for name, row in rows.items():
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["seconds"] > 0
        assert row["error"] <= 1e-5 or "bf16" in name
        if "bf16" in name:
            assert 1e-5 < row["error"] < 0.1
        assert name in result["text"]


def test_without_a_compiler_the_other_ways_are_measured() -> None:
    tiny = str(resources.files("pipeline.demo").joinpath("tiny.json"))
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        result = scoring_options(tiny, tile=2, samples=2, pairs=3, threads=1)
    assert {row["name"] for row in result["rows"]} == {name for name in WAYS if "compile" not in name}
    assert "no compiler for cpu was found" in result["left_out"]
    assert "no compiler for cpu was found" in result["text"]
