"""The oracle is scipy, in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

from pipeline.coefficients.divergence import entropy, jensen_shannon, log_softmax, stored_divergence
from tests.coefficients.factory import Pair, logit_pairs, pair_evidence


def scipy_divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    p, q = softmax(first.astype(np.float64), axis=1), softmax(second.astype(np.float64), axis=1)
    # Where the two are all but equal, scipy's own sum may round below zero, and its square root is then NaN.
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(jensenshannon(p, q, base=math.e, axis=1)) ** 2


def divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    js = pair_evidence(first, second).js
    assert js is not None
    return js


@given(logit_pairs())
def test_divergence_and_entropies_equal_scipys(pair: Pair) -> None:
    evidence = pair_evidence(*pair)
    p, q = (softmax(logits.astype(np.float64), axis=1) for logits in pair)
    np.testing.assert_allclose(evidence.js, scipy_divergence(*pair), rtol=0, atol=1e-12)
    np.testing.assert_allclose(evidence.entropy_generalist, scipy_entropy(p, axis=1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(evidence.entropy_expert, scipy_entropy(q, axis=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 28, 1000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
def test_divergence_equals_scipys_at_any_number_of_classes(classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    first, second = (scale * rng.standard_normal((2, 50, classes))).astype(np.float32)
    np.testing.assert_allclose(divergence(first, second), scipy_divergence(first, second), rtol=0, atol=1e-12)


@given(logit_pairs(largest=1e4))
def test_identical_models_diverge_by_exactly_zero(pair: Pair) -> None:
    first, _ = pair
    assert (divergence(first, first.copy()) == 0.0).all()


@given(logit_pairs(largest=1e4))
def test_divergence_is_symmetric_and_bounded(pair: Pair) -> None:
    forwards, backwards = divergence(*pair), divergence(*reversed(pair))
    np.testing.assert_allclose(forwards, backwards, rtol=0, atol=1e-15)
    assert ((forwards >= 0) & (forwards <= math.log(2))).all()


@pytest.mark.parametrize("classes", [2, 1000])
def test_certain_models_that_disagree_diverge_by_ln_2_without_nan(classes: int) -> None:
    first = np.zeros((1, classes), np.float32)
    second = first.copy()
    first[0, 0], second[0, 1] = 1e4, 1e4
    evidence = pair_evidence(first, second)
    assert evidence.js == pytest.approx(math.log(2), abs=1e-15)
    assert evidence.js <= math.log(2)
    assert evidence.entropy_generalist == evidence.entropy_expert == 0.0


@pytest.mark.parametrize("classes", [2, 1000])
def test_certain_models_that_agree_do_not_diverge(classes: int) -> None:
    first = np.zeros((1, classes), np.float32)
    first[0, 0] = 1e4
    assert divergence(first, 2 * first) == 0.0


@pytest.mark.parametrize("classes", [2, 28, 1000])
def test_entropy_of_equal_probabilities_is_ln_of_their_number(classes: int) -> None:
    even = np.zeros((1, classes), np.float32)
    assert pair_evidence(even, even).entropy_expert == pytest.approx(math.log(classes), abs=1e-12)
    assert pair_evidence(even, even).entropy_expert <= math.log(classes)


@given(st.floats(0, 700))
def test_two_classes_keep_their_digits_however_certain_the_model(gap: float) -> None:
    """Closed forms for two classes ``gap`` apart; log of the whole sum would round away the smaller one from 37 on."""
    smaller = math.exp(-gap)
    log_p = log_softmax([[gap, 0.0]])
    assert log_p[0, 0] == pytest.approx(-math.log1p(smaller), rel=1e-13, abs=0)
    assert entropy(log_p)[0] == pytest.approx(math.log1p(smaller) + gap * smaller / (1 + smaller), rel=1e-12, abs=0)


@given(logit_pairs(), st.floats(-100, 100))
def test_a_constant_added_to_all_logits_changes_nothing(pair: Pair, constant: float) -> None:
    first, second = (log_softmax(logits) for logits in pair)
    shifted = log_softmax(pair[0].astype(np.float64) + constant)
    np.testing.assert_allclose(jensen_shannon(shifted, second), jensen_shannon(first, second), rtol=0, atol=1e-11)
    np.testing.assert_allclose(entropy(shifted), entropy(first), rtol=0, atol=1e-10)


@given(logit_pairs(), st.randoms(use_true_random=False))
def test_the_order_of_classes_does_not_matter(pair: Pair, random: object) -> None:
    order = list(range(pair[0].shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    permuted = divergence(pair[0][:, order], pair[1][:, order])
    np.testing.assert_allclose(permuted, divergence(*pair), rtol=0, atol=1e-14)


@given(logit_pairs())
def test_rows_do_not_influence_one_another(pair: Pair) -> None:
    alone = [divergence(first[None], second[None])[0] for first, second in zip(*pair, strict=True)]
    np.testing.assert_array_equal(divergence(*pair), alone)


@settings(max_examples=300)
@given(st.floats(0.0, math.log(2)))
def test_a_stored_divergence_is_the_nearest_float32_within_its_bounds(js: float) -> None:
    stored = stored_divergence(np.array([js]))
    assert stored.dtype == np.float32
    assert 0.0 <= float(stored[0]) <= math.log(2)
    assert abs(float(stored[0]) - js) <= np.spacing(np.float32(js))


def test_the_largest_divergence_is_stored_below_ln_2() -> None:
    assert float(np.float32(math.log(2))) > math.log(2), "float32 rounds ln 2 up, which is why this matters"
    assert float(stored_divergence(np.array([math.log(2)]))[0]) < math.log(2)
