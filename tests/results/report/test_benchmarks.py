import json
import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.machine import keep_result
from pipeline.benchmarks.requirements import METHOD_RATIOS
from pipeline.benchmarks.turns import median_ratio
from pipeline.errors import RunDirectoryError
from pipeline.results.report import write_report
from pipeline.results.report.benchmarks import benchmark_figures
from tests.results.run_factory import FakeSet, study_run

RATIO = {"ratio": 1.01, "low": 0.99, "high": 1.02, "confidence": 0.99}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    bars = [Bar("plain", 1.0), Bar.of_ratio("t3-batch", RATIO, METHOD_RATIOS["t3-batch"]), Bar("a <b> row", 40.0)]
    keep_result("methods-ViT", chart("Price of <one>", "time over plain", bars), tmp_path / "bench")
    keep_result("reads", chart("Reads", "rate", [Bar("zarr", 0.8, bound=0.7, at_least=True)]), tmp_path / "bench")
    return tmp_path / "bench"


def test_every_result_is_a_figure_with_bounds_in_words(kept: Path) -> None:
    methods, reads = benchmark_figures(kept)
    assert (methods.id, methods.title) == ("bench-methods-vit", "Price of <one>")
    assert methods.description == "plain 1; t3-batch 1.01 (at most 1.03); a <b> row 40."
    assert reads.description == "zarr 0.8 (at least 0.7)."
    assert methods.data["paper"].to_list() == [None, 1.017, None]
    assert "95 % interval" in methods.caption
    assert "T³ paper" in methods.caption
    assert "T³ paper" not in reads.caption
    # Labels are text, not markup.
    assert "a &lt;b&gt; row" in methods.svg


def test_too_few_turns_are_not_called_a_95_percent_interval(tmp_path: Path) -> None:
    few = median_ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]).as_json()
    keep_result("few", chart("Few", "u", [Bar("plain", 1.0), Bar.of_ratio("t3", few)]), tmp_path)
    caption = benchmark_figures(tmp_path)[0].caption
    assert "Whiskers: smallest and largest of the turns, which are too few" in caption


def test_whiskers_end_inside_and_logarithmic_axes_have_plain_numbers(tmp_path: Path) -> None:
    keep_result("wide", chart("Wide", "u", [Bar("a", 1.0), Bar("b", 2.0, 1.0, 12.0)]), tmp_path)
    keep_result("log", chart("Log", "u", [Bar("a", 0.02), Bar("b", 30.0)]), tmp_path)
    log, wide = (figure.svg for figure in benchmark_figures(tmp_path))
    assert "mathdefault" not in log
    assert re.search(r">\s*0\.1\s*<", log)
    # The axis reaches as far as the whisker, which is six times as long as the longest bar.
    assert re.search(r">\s*12\s*<", wide)


def test_the_machine_and_the_command_stand_below(kept: Path) -> None:
    record = json.loads((kept / "reads.json").read_text(encoding="utf-8"))
    caption = benchmark_figures(kept)[1].caption
    for said in (record["command"], record["date"], record["machine"]["processor"]):
        assert said in caption
    assert record["machine"].keys() >= {"processor", "cores", "memory_bytes", "torch", "threads", "device"}


def test_bars_are_as_long_as_their_values_on_a_linear_axis(tmp_path: Path) -> None:
    keep_result("x", chart("X", "u", [Bar("one", 1.0), Bar("three", 3.0)]), tmp_path)
    svg = benchmark_figures(tmp_path)[0].svg
    paths = [
        [float(number) for number in re.findall(r"-?\d+\.?\d*", path)] for path in re.findall(r'd="(M [^"]+z ?)"', svg)
    ]
    bars = [numbers[0::2] for numbers in paths if len(numbers) == 8]
    lengths = [max(across) - min(across) for across in bars][-2:]
    assert lengths[1] == pytest.approx(3 * lengths[0], rel=0.01)


def test_the_report_has_them_as_its_last_chapter(kept: Path, tmp_path: Path) -> None:
    run = study_run(tmp_path / "run", sets=[FakeSet("blood", "in-domain", ["a", "b"], 320, 0.1)])
    without = write_report(run).read_text(encoding="utf-8")
    assert 'id="benchmarks"' not in without
    page = write_report(run, benchmarks=kept)
    text = page.read_text(encoding="utf-8")
    assert text.index('id="benchmarks"') > text.index('id="costs"')
    assert "Price of &lt;one&gt;" in text
    assert pl.read_parquet(page.parent / "data" / "bench-reads.parquet")["bound"].to_list() == [0.7]


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"title": 1, "unit": 2, "bars": 3}', "[]"])
def test_a_file_that_is_no_result_is_named(kept: Path, content: str) -> None:
    (kept / "other.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"other\.json: is no result of a benchmark"):
        benchmark_figures(kept)


def test_a_folder_without_results_is_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="run `pipeline bench --folder"):
        benchmark_figures(tmp_path / "nothing")
