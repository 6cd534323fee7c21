"""The picture of a sweep: a panel for each evaluation set, text that stays text, equal bytes for equal figures."""

import re
from itertools import product
from typing import Any

import polars as pl
import pytest

from pipeline.results.sweep_figures import sweep_figure


@pytest.fixture
def frame() -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {"evaluation_set": name, "method": "t3-batch", "gamma": gamma, "delta": delta, "accuracy": 0.5 + gamma / 20}
        for name, gamma, delta in product(("clean", "noise <&>"), (0.5, 1.0, 4.0), (0.0, 0.5))
    ]
    rows += [{"evaluation_set": "clean", "method": "dawin-batch", "gamma": None, "delta": None, "accuracy": 0.9}]
    return pl.DataFrame(rows).with_columns(accuracy_generalist=0.5, accuracy_expert=0.8)


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_every_set_and_setting_is_named_in_text(frame: pl.DataFrame) -> None:
    found = texts(sweep_figure(frame.filter(method="t3-batch"), ("gamma", "delta")))
    assert {"clean", "noise &lt;&amp;&gt;", "γ", "δ 0", "δ 0.5", "generalist", "expert", "accuracy, %"} <= set(found)
    assert [text for text in found if text in {"0.5", "1", "4"}] == ["0.5", "1", "4"] * 2


def test_settings_beyond_two_are_rows_of_panels(frame: pl.DataFrame) -> None:
    found = texts(sweep_figure(frame, ("method", "gamma", "delta")))
    assert {"t3-batch", "dawin-batch", "δ 0", "δ 0.5", "δ none"} <= set(found)
    assert found.count("clean") == found.count("noise &lt;&amp;&gt;") == 3


def test_a_sweep_of_methods_alone_is_drawn_over_their_names(frame: pl.DataFrame) -> None:
    found = texts(sweep_figure(frame.filter((pl.col("gamma") == 1.0) | pl.col("gamma").is_null()), ("method",)))
    assert found.count("t3-batch") == found.count("dawin-batch") == 2


def test_unlabelled_sets_have_empty_panels(frame: pl.DataFrame) -> None:
    nulls = {name: pl.lit(None, pl.Float64) for name in ("accuracy", "accuracy_generalist", "accuracy_expert")}
    assert "clean" in texts(sweep_figure(frame.with_columns(**nulls), ("gamma",)))


def test_equal_frames_give_equal_bytes_that_need_no_network(frame: pl.DataFrame) -> None:
    svg = sweep_figure(frame, ("gamma", "delta"))
    assert svg == sweep_figure(frame.clone(), ("gamma", "delta"))
    assert not re.search(r'(href|src)="(?!#)|url\((?!#)', svg)
