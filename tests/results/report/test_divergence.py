import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from scipy.special import log_softmax, softmax

from pipeline.results.report.divergence import MEASURES, correlate, divergence_figures
from pipeline.results.report.pairs import QUADRANTS, has_pair, read_pair
from tests.results.run_factory import STUDY_SETS, study_run

from .factory import PairSet, divergence, pair_run, random_set

HAND = PairSet(
    "pbc",
    generalist=np.array([[4, 0, 0], [0, 4, 0], [3, 0, 0], [0, 0, 2], [0, 1, 0], [1, 0, 0]], np.float32),
    expert=np.array([[5, 0, 0], [3, 0, 0], [0, 2, 0], [0, 3, 0], [0, 2, 0], [0, 0, 1]], np.float32),
    labels=[0, 1, 1, 0, 1, None],
)


def test_quadrants_are_generalist_right_then_expert_right(tmp_path: Path) -> None:
    samples = read_pair(pair_run(tmp_path, [HAND]) / "evidence" / "pbc")
    assert [samples.groups[index] for index in samples.group] == [
        "TrueTrue",
        "TrueFalse",
        "FalseTrue",
        "FalseFalse",
        "TrueTrue",
    ]
    assert samples.unlabelled == 1


def test_figures_of_samples_are_those_of_the_formulas(tmp_path: Path) -> None:
    item = random_set("pbc", 200)
    samples = read_pair(pair_run(tmp_path, [item], cuts=3) / "evidence" / "pbc")
    p_pt, p_ft = softmax(item.generalist.astype(float), axis=1), softmax(item.expert.astype(float), axis=1)
    h_pt, h_ft = stats.entropy(p_pt, axis=1), stats.entropy(p_ft, axis=1)
    rows = np.arange(200)
    l_pt, l_ft = (
        -log_softmax(logits.astype(float), axis=1)[rows, item.labels] for logits in (item.generalist, item.expert)
    )
    np.testing.assert_allclose(samples.js, divergence(item.generalist, item.expert), atol=1e-6)
    np.testing.assert_allclose(samples.entropy_ratio, h_ft / (h_pt + h_ft), atol=1e-6)
    np.testing.assert_allclose(samples.x_entropy_ratio, l_ft / (l_pt + l_ft), atol=1e-6)
    np.testing.assert_allclose(samples.confidence, (p_pt.max(axis=1) + p_ft.max(axis=1)) / 2, atol=1e-6)


def test_correlations_are_those_of_their_definitions() -> None:
    x, y = np.float32([0.1, 0.4, 0.2, 0.6]), np.float32([0.9, 0.2, 0.8, 0.3])
    found = correlate(x, y)
    dx, dy = x.astype(float) - x.mean(), y.astype(float) - y.mean()
    assert found.pearson == pytest.approx((dx * dy).sum() / math.sqrt((dx**2).sum() * (dy**2).sum()), abs=1e-6)
    assert found.spearman == pytest.approx(1 - 6 * (9 + 4 + 1 + 4) / (4 * 15))


@pytest.mark.parametrize("y", [[0.5] * 4, [0.5, 0.5, 0.5, 0.5 + 6e-8]])
def test_what_never_varies_has_no_correlation(y: list[float]) -> None:
    found = correlate(np.float32([0.1, 0.2, 0.3, 0.4]), np.float32([0.5] * 4))
    assert (found.samples, found.pearson, found.spearman) == (4, None, None)
    assert correlate(np.float32([0.1, 0.2]), np.float32([0.3, 0.4])).pearson is None
    assert correlate(np.float32([]), np.float32([])).samples == 0


def test_data_counts_every_labelled_sample_once_with_its_groups_correlation(tmp_path: Path) -> None:
    item = random_set("pbc", 400)
    run = pair_run(tmp_path, [item])
    figures = divergence_figures([run])
    assert [figure.id for figure in figures] == ["js-entropy-ratio-pbc", "js-x-entropy-ratio-pbc", "js-confidence-pbc"]
    samples = read_pair(run / "evidence" / "pbc")
    right = [np.array(logits.argmax(axis=1) == item.labels) for logits in (item.generalist, item.expert)]
    for figure, measure in zip(figures, MEASURES, strict=True):
        values = measure.values(samples)
        assert values is not None
        for index, quadrant in enumerate(QUADRANTS):
            rows = figure.data.filter(pl.col("group") == quadrant)
            mine = (right[0] == (index < 2)) & (right[1] == (index % 2 == 0))
            assert rows["count"].sum() == mine.sum() == rows["samples"][0]
            assert rows["pearson"][0] == pytest.approx(stats.pearsonr(samples.js[mine], values[mine]).statistic)
            assert rows["spearman"][0] == pytest.approx(stats.spearmanr(samples.js[mine], values[mine]).statistic)
            assert f"{quadrant} (" in figure.description
            assert f"{mine.sum()} samples" in figure.description


def test_cells_lie_where_the_samples_are(tmp_path: Path) -> None:
    run = pair_run(tmp_path, [HAND])
    figure = divergence_figures([run])[0]
    samples = read_pair(run / "evidence" / "pbc")
    for js, ratio in zip(samples.js, samples.entropy_ratio, strict=True):
        holding = figure.data.filter(
            pl.col("js_low") <= js, pl.col("js_high") >= js, pl.col("value_low") <= ratio, pl.col("value_high") >= ratio
        )
        assert holding.height >= 1
    assert "1 sample without a label left out" in figure.caption


def test_without_labels_panels_are_of_agreement_and_no_ratio_looks_at_labels(tmp_path: Path) -> None:
    item = random_set("night", 60, labelled=False)
    figures = divergence_figures([pair_run(tmp_path, [item])])
    assert [figure.id for figure in figures] == ["js-entropy-ratio-night", "js-confidence-night"]
    agree = int((item.generalist.argmax(axis=1) == item.expert.argmax(axis=1)).sum())
    same = figures[0].data.filter(pl.col("group") == "same answer")
    assert same["count"].sum() == agree


def test_evidence_without_a_pair_has_no_figure(tmp_path: Path) -> None:
    run = study_run(tmp_path / "run", sets=STUDY_SETS[1:2])
    assert not has_pair(run / "evidence" / "pbc")
    assert divergence_figures([run]) == []


def test_a_quadrant_without_samples_is_drawn_empty_and_said_to_be(tmp_path: Path) -> None:
    item = random_set("pbc", 30)
    item.labels = item.expert.argmax(axis=1).tolist()
    figure = divergence_figures([pair_run(tmp_path, [item])])[0]
    assert "TrueFalse (only the generalist right): no samples." in figure.description
    assert figure.svg.count("<image") == 4


def test_a_hundred_thousand_samples_make_no_large_picture(tmp_path: Path) -> None:
    run = pair_run(tmp_path, [random_set("pbc", 100_000)])
    figures = divergence_figures([run])
    assert all(len(figure.svg) < 40_000 for figure in figures)
    assert all(figure.data.height <= 4 * 40 * 40 for figure in figures)
