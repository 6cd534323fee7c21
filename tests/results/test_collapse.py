"""A method that answers one class for everything: its accuracy has no scatter in the bootstrap, and is not certain."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.results.metrics import evaluate, evaluate_run

from .labelled_runs import corrupted, images, record, write_run
from .run_factory import minimal_run, predicted_part

SHARES = {"generalist": 0.6, "expert": 0.75, "t3": 0.8, "soup": 0.7}
WORSE = {"generalist": 0.4, "expert": 0.45, "t3": 0.55, "soup": 0.5}
LABELS = np.repeat([0, 1, 2], [60, 40, 20])


def test_collapse_on_one_class_is_marked(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"set": None, "one": None}, ["t3", "soup"])
    for name, true in (("set", [0, 0, 1]), ("one", [0, 0, 0])):
        predicted_part(run, "t3", name, 0, range(3), [0, 0, 0], true)
        predicted_part(run, "soup", name, 0, range(3), [0, 1, 0], true)
    frame = evaluate_run(run)
    assert frame["marks"].to_list() == [["majority-collapse"], [], [], []]


def one_class(rows: int, name: int) -> np.ndarray:
    return np.tile(np.eye(3, dtype=np.float32)[name], (rows, 1))


def test_methods_that_answer_one_class_have_no_interval_and_no_clear_difference(tmp_path: Path) -> None:
    """51 images of one class and 49 of the other: always the first is no better than always the second."""
    labels = np.repeat([0, 1], [51, 49])
    found = images("set", labels, {"generalist": 0.6, "t3": 0.7})
    found.answers |= {"expert": one_class(100, 0), "soup": one_class(100, 1)}
    evaluation = evaluate(write_run(tmp_path, [found]))
    for method in ("expert", "soup"):
        row = record(evaluation.metrics, method=method)
        assert row["marks"] == ["majority-collapse"]
        assert [row[f"{name}{end}"] for name in ("accuracy", "balanced_accuracy") for end in ("_low", "_high")] == 4 * [
            None
        ]
        assert row["err_low"] < row["err"] < row["err_high"], "the generalist's errors vary"
        summary = record(evaluation.summary, method=method)
        assert (summary["accuracy"], summary["accuracy_low"]) == (row["accuracy"], None)
        against = record(evaluation.comparisons, method=method, reference="generalist")
        assert against["difference_low"] < against["difference"] < against["difference_high"]
    against = record(evaluation.comparisons, method="soup", reference="expert")
    assert against["difference"] == pytest.approx(-0.02)
    assert (against["difference_low"], against["difference_high"]) == (None, None)
    summary = record(evaluation.summary, method="soup")
    assert (summary["difference_expert"], summary["difference_expert_low"]) == (pytest.approx(-0.02), None)
    assert summary["difference_generalist_low"] is not None


def test_two_methods_that_collapsed_on_different_sets_differ_with_an_interval(tmp_path: Path) -> None:
    first, second = (images(name, LABELS, SHARES, prefix=name) for name in ("a", "b"))
    first.answers["t3"], second.answers["expert"] = one_class(120, 0), one_class(120, 0)
    row = record(evaluate(write_run(tmp_path, [first, second])).summary, method="t3")
    assert row["accuracy_low"] is None
    assert row["difference_expert_low"] < row["difference_expert"] < row["difference_expert_high"]


def test_a_level_at_which_a_method_answers_one_class_has_no_interval(tmp_path: Path) -> None:
    clean = images("clean", LABELS, SHARES)
    found = corrupted(clean, "pixelate", WORSE, severities=2)
    found.answers["t3"][120:] = one_class(120, 1)
    evaluation = evaluate(write_run(tmp_path, [clean, found]))
    rows = evaluation.metrics_by_severity.filter(pl.col("method") == "t3").sort("severity")
    assert rows["accuracy"][2] == pytest.approx(40 / 120)
    assert rows["accuracy_low"].is_null().to_list() == [False, False, True]
    assert record(evaluation.metrics, evaluation_set="pixelate", method="t3")["accuracy_low"] is not None
