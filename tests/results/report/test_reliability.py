from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.results.report.reliability import read_reliability, reliability_figures
from pipeline.statistics.calibration import BINS

from .factory import pair_run, predict, random_set

PROBABILITIES = np.array([[0.61, 0.39], [0.65, 0.35], [0.05, 0.95], [0.97, 0.03], [0.45, 0.55]])
LABELS = [0, 1, 1, 0, None]


def two_classes(run: Path) -> Path:
    item = random_set("pbc", 5)
    item.labels = LABELS
    pair_run(run, [item])
    for method in ("generalist", "t3@0000000a", "soup"):
        predict(run, method, "pbc", PROBABILITIES, LABELS)
    return run


def test_bins_hold_confidence_and_right_answers_of_labelled_samples(tmp_path: Path) -> None:
    bins = read_reliability(two_classes(tmp_path) / "predictions" / "generalist" / "pbc")
    assert {index: count for index, count in enumerate(bins.counts) if count} == {9: 2, 14: 2}
    assert bins.confidence[9] == pytest.approx(0.61 + 0.65)
    assert bins.correct[[9, 14]].tolist() == [1, 2]
    assert bins.samples == 4
    # Bin 10 of 15: |1/2 - 0.63|; bin 15: |1 - 0.96|; two samples each.
    assert bins.ece == pytest.approx((2 * abs(0.5 - 0.63) + 2 * abs(1 - 0.96)) / 4)


def test_ece_is_that_of_a_loop_over_bins(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet((1, 1, 1), 500).astype(np.float32)
    labels = generator.integers(0, 3, 500).tolist()
    run = pair_run(tmp_path, [random_set("pbc", 500)])
    predict(run, "expert", "pbc", probabilities, labels, order=generator.permutation(500))
    top, right = probabilities.max(axis=1).astype(float), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for index in range(BINS):
        members = (top > index / BINS) & (top <= (index + 1) / BINS)
        if members.any():
            expected += members.mean() * abs(right[members].mean() - top[members].mean())
    assert read_reliability(run / "predictions" / "expert" / "pbc").ece == pytest.approx(expected)


def test_the_main_methods_that_are_there_have_a_panel(tmp_path: Path) -> None:
    run = two_classes(tmp_path)
    (figure,) = reliability_figures([run])
    assert figure.data["method"].unique(maintain_order=True).to_list() == ["generalist", "t3@0000000a"]
    filled = figure.data.filter(pl.col("method") == "generalist", pl.col("count") > 0)
    assert filled["accuracy"].to_list() == [0.5, 1.0]
    assert filled["mean_confidence"].to_list() == pytest.approx([0.63, 0.96])
    assert figure.data["accuracy"].null_count() == 2 * (BINS - 2)
    assert "generalist: ECE 8.5 %, mean confidence 79.5 %, accuracy 75.0 % over 4 samples." in figure.description
    assert ">ECE 8.5 %</text>" in figure.svg


def test_a_set_without_labels_has_no_diagram(tmp_path: Path) -> None:
    run = pair_run(tmp_path, [random_set("night", 4, labelled=False)])
    predict(run, "expert", "night", PROBABILITIES[:4], [None] * 4)
    assert reliability_figures([run]) == []


def test_five_methods_and_a_hundred_thousand_samples_stay_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet((1, 1, 1), 100_000).astype(np.float32)
    labels = generator.integers(0, 3, 100_000).tolist()
    run = pair_run(tmp_path, [random_set("pbc", 4)])
    for method in ("generalist", "expert", "ensemble", "t3", "t3-batch"):
        predict(run, method, "pbc", probabilities, labels)
    (figure,) = reliability_figures([run])
    assert len(figure.svg) < 60_000
