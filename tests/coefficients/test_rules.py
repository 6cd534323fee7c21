"""The oracle is the paper's text, one sample at a time, in float64 and with scipy's divergence."""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from pipeline.coefficients.evidence import Evidence
from pipeline.coefficients.rules import Branch, T3Settings, t3
from tests.coefficients.factory import Pair, logit_pairs_in_eighths, pair_evidence

NO_BRANCHES = T3Settings(tau_generalist=0.0, tau_expert=0.0)


@st.composite
def t3_settings(draw: st.DrawFn) -> T3Settings:
    low, high = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    return T3Settings(
        gamma=draw(st.floats(1e-3, 1e6)),
        delta=draw(st.floats(0, 1)),
        tau_generalist=draw(st.floats(0, 3)),
        tau_expert=draw(st.floats(0, 3)),
        lambda_min=low,
        lambda_max=high,
        mapping=draw(st.sampled_from(["sigmoid", "rescaled"])),
    )


def random_evidence(seed: int, samples: int = 200, classes: int = 5) -> Evidence:
    """Samples from undecided to certain, so that every branch is taken."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(-1, 3, (2, samples, 1)))
    first, second = (scales * rng.standard_normal((2, samples, classes))).astype(np.float32)
    return pair_evidence(first, second)


def mapped_as_written(divergence: float, settings: T3Settings) -> float:
    def sigma(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    if settings.mapping == "sigmoid":
        return sigma(settings.gamma * divergence)
    return (2 * sigma(settings.gamma * divergence) - 1) / (2 * sigma(settings.gamma * math.log(2)) - 1)


def paper_lambda(logits_pt: np.ndarray, logits_ft: np.ndarray, settings: T3Settings) -> tuple[float, float, str, float]:
    """λ before and after Eq. 11, the branch, and how far the nearest threshold is."""
    p_pt, p_ft = softmax(logits_pt.astype(np.float64)), softmax(logits_ft.astype(np.float64))
    h_pt, h_ft = (-sum(p * math.log(p) for p in probabilities if p > 0) for probabilities in (p_pt, p_ft))
    margin = min(abs(h_ft - settings.tau_expert), abs(h_pt - settings.tau_generalist))
    raw = settings.lambda_min + (settings.lambda_max - settings.lambda_min) * mapped_as_written(
        jensenshannon(p_pt, p_ft, base=math.e) ** 2, settings
    )
    if h_ft < settings.tau_expert:
        return raw, min(raw + settings.delta, 1.0), "expert-confident", margin
    if h_pt < settings.tau_generalist:
        return raw, max(raw - settings.delta, 0.0), "generalist-confident", margin
    return raw, raw, "none", margin


@pytest.mark.parametrize(
    "settings",
    [
        T3Settings(),
        T3Settings(gamma=0.5),
        T3Settings(gamma=8.0, delta=0.1, tau_generalist=0.4, tau_expert=0.2, lambda_min=0.2, lambda_max=0.7),
        T3Settings(delta=1.0, tau_generalist=1.0, tau_expert=1.0),
        T3Settings(mapping="rescaled"),
        T3Settings(gamma=6.0, delta=0.3, tau_generalist=0.4, lambda_min=0.1, lambda_max=0.8, mapping="rescaled"),
    ],
    ids=str,
)
def test_lambda_is_the_papers(settings: T3Settings) -> None:
    evidence = random_evidence(0)
    found = t3(evidence, settings)
    compared = dict.fromkeys(["none", "expert-confident", "generalist-confident"], 0)
    pairs = zip(evidence.logits_generalist, evidence.logits_expert, strict=True)
    for row, (logits_pt, logits_ft) in enumerate(pairs):
        raw, lam, branch, margin = paper_lambda(logits_pt, logits_ft, settings)
        assert found.lambda_raw[row] == pytest.approx(raw, abs=1e-7)
        if margin > 1e-9:
            assert Branch(int(found.branch[row])).label == branch
            assert found.lam[row] == pytest.approx(lam, abs=1e-7)
            compared[branch] += 1
    assert min(compared.values()) >= 10, f"the samples hardly test a branch: {compared}"


def test_identical_models_give_exactly_one_half() -> None:
    evidence = random_evidence(1)
    identical = pair_evidence(evidence.logits_expert, evidence.logits_expert.copy())
    assert (t3(identical, T3Settings()).lambda_raw == np.float32(0.5)).all()


def test_the_expert_is_tested_first() -> None:
    """Both certain, of different classes: Eq. 11 names the expert's branch first."""
    sure = np.array([[30.0, 0.0]], np.float32)
    both = t3(pair_evidence(sure, sure[:, ::-1].copy()), T3Settings())
    assert both.branch[0] == Branch.EXPERT_CONFIDENT
    assert both.lam[0] == 1.0


def test_each_branch_moves_lambda_its_own_way_and_stays_in_bounds() -> None:
    sure, unsure = np.array([[30.0, 0.0]], np.float32), np.array([[0.1, 0.0]], np.float32)
    expert, generalist = (
        t3(pair_evidence(unsure, sure), T3Settings()),
        t3(pair_evidence(sure, unsure), T3Settings()),
    )
    assert expert.lam[0] == 1.0
    assert generalist.lam[0] == pytest.approx(generalist.lambda_raw[0] - 0.5, abs=1e-7)
    assert generalist.branch[0] == Branch.GENERALIST_CONFIDENT


def test_an_entropy_at_its_threshold_is_not_below_it() -> None:
    evidence = pair_evidence(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))
    at = T3Settings(tau_expert=float(evidence.entropy_expert[0]), tau_generalist=0.0)
    assert t3(evidence, at).branch[0] == Branch.NONE
    above = replace(at, tau_expert=float(np.nextafter(evidence.entropy_expert[0], np.inf)))
    assert t3(evidence, above).branch[0] == Branch.EXPERT_CONFIDENT


@given(t3_settings(), st.integers(0, 20))
def test_lambda_lies_in_zero_to_one_whatever_the_settings(settings: T3Settings, seed: int) -> None:
    found = t3(random_evidence(seed, samples=20), settings)
    for values in (found.lambda_raw, found.lam):
        assert values.dtype == np.float32
        assert ((values >= 0) & (values <= 1)).all()
    assert (found.lambda_raw >= np.float32(settings.lambda_min) - np.float32(1e-6)).all()
    assert (found.lambda_raw <= np.float32(settings.lambda_max) + np.float32(1e-6)).all()


@pytest.mark.parametrize("mapping", ["sigmoid", "rescaled"])
@given(gamma=st.floats(0.01, 50), seed=st.integers(0, 20))
def test_without_branches_a_larger_divergence_never_gives_a_smaller_lambda(
    gamma: float, seed: int, mapping: Literal["sigmoid", "rescaled"]
) -> None:
    evidence = random_evidence(seed)
    assert evidence.js is not None
    found = t3(evidence, replace(NO_BRANCHES, gamma=gamma, mapping=mapping))
    order = np.argsort(evidence.js)
    assert (np.diff(found.lam[order]) >= 0).all()
    np.testing.assert_array_equal(found.lam, found.lambda_raw)


def test_at_the_papers_settings_raw_lambda_spans_one_half_to_two_thirds() -> None:
    """JS ≤ ln 2, so σ(JS) ≤ 2/3: DESIGN section 3 notes that the paper's text claims otherwise."""
    certain = np.array([[40.0, 0.0], [1.0, 1.0]], np.float32)
    raw = t3(pair_evidence(certain, certain[:, ::-1].copy()), T3Settings()).lambda_raw
    assert raw[0] == pytest.approx(2 / 3, abs=1e-7)
    assert raw[1] == 0.5


@given(gamma=st.floats(1e-6, 1e6), low=st.floats(0, 1), high=st.floats(0, 1))
def test_rescaled_raw_lambda_spans_its_bounds_exactly(gamma: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    certain = np.array([[1e4, 0.0], [1.0, 1.0]], np.float32)
    evidence = pair_evidence(certain, certain[:, ::-1].copy())
    assert evidence.js is not None
    assert evidence.js.tolist() == [math.log(2), 0.0]
    raw = t3(evidence, T3Settings(gamma=gamma, lambda_min=low, lambda_max=high, mapping="rescaled")).lambda_raw
    assert raw.tolist() == [np.float32(high), np.float32(low)]


@pytest.mark.parametrize("mapping", ["sigmoid", "rescaled"])
@given(pair=logit_pairs_in_eighths(), eighths=st.integers(-800, 800), random=st.randoms(use_true_random=False))
def test_lambda_depends_on_neither_a_constant_in_the_logits_nor_the_order_of_classes(
    pair: Pair, eighths: int, random: object, mapping: Literal["sigmoid", "rescaled"]
) -> None:
    settings = replace(NO_BRANCHES, gamma=3.0, mapping=mapping)
    order = list(range(pair[0].shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = t3(pair_evidence(*pair), settings).lam
    shifted = t3(pair_evidence(pair[0] + np.float32(eighths / 8), pair[1]), settings).lam
    np.testing.assert_array_equal(shifted, found)
    permuted = t3(pair_evidence(*(logits[:, order] for logits in pair)), settings).lam
    np.testing.assert_allclose(permuted, found, rtol=0, atol=1e-7)


def test_sources_without_a_generalist_and_an_expert_are_refused_by_name() -> None:
    logits = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="t3 needs a generalist and an expert: the sources are site-a, expert"):
        t3(Evidence.from_logits({"site-a": logits, "expert": logits}), T3Settings())


def test_no_samples_give_no_coefficients() -> None:
    empty = np.empty((0, 3), np.float32)
    found = t3(pair_evidence(empty, empty), T3Settings())
    assert (len(found.lam), len(found.lambda_raw), len(found.branch)) == (0, 0, 0)


def test_branches_are_labelled_as_parquet_spells_them() -> None:
    assert [branch.label for branch in Branch] == ["none", "expert-confident", "generalist-confident"]


@pytest.mark.parametrize("gamma", [5e-324, 1.5e-323, 1e-320, 1e-300, 1e-20])
def test_where_gamma_vanishes_rescaled_lambda_is_the_share_of_the_largest_divergence(gamma: float) -> None:
    """(2σ(γI)-1)/(2σ(γ·ln 2)-1) tends to I/ln 2, and is 0/0 as written."""
    evidence = random_evidence(3)
    assert evidence.js is not None
    assert np.ptp(evidence.js) > 0.5
    found = t3(evidence, replace(NO_BRANCHES, gamma=gamma, mapping="rescaled"))
    expected = [
        jensenshannon(softmax(first.astype(np.float64)), softmax(second.astype(np.float64)), base=2) ** 2
        for first, second in zip(evidence.logits_generalist, evidence.logits_expert, strict=True)
    ]
    np.testing.assert_allclose(found.lam, expected, rtol=0, atol=1e-6)
