"""The rules without settings and a user's own. The oracles are their formulas, one sample at a time, with scipy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from pipeline.coefficients.evidence import Evidence
from pipeline.coefficients.rules import RULES, Branch, from_user
from tests.coefficients.factory import Pair, logit_pairs_in_eighths, pair_evidence

Formula = Callable[[np.ndarray, np.ndarray, int], float]
EXPERT_LIKES_CERTAINTY = {"entropy-ratio": False, "dawin": True, "confidence-ratio": True}


def ratio(expert: float, generalist: float) -> float:
    return 0.5 if expert + generalist == 0 else expert / (expert + generalist)


def entropy_ratio_as_printed(logits_pt: np.ndarray, logits_ft: np.ndarray, label: int) -> float:
    return ratio(float(entropy(softmax(logits_ft))), float(entropy(softmax(logits_pt))))


def dawin_as_released(logits_pt: np.ndarray, logits_ft: np.ndarray, label: int) -> float:
    weight_pt, weight_ft = (math.exp(-float(entropy(softmax(logits)))) for logits in (logits_pt, logits_ft))
    return weight_ft / (weight_pt + weight_ft)


def ratio_of_largest_probabilities(logits_pt: np.ndarray, logits_ft: np.ndarray, label: int) -> float:
    return ratio(float(softmax(logits_ft).max()), float(softmax(logits_pt).max()))


def cross_entropy_ratio_as_printed(logits_pt: np.ndarray, logits_ft: np.ndarray, label: int) -> float:
    return ratio(-float(log_softmax(logits_ft)[label]), -float(log_softmax(logits_pt)[label]))


FORMULAS: dict[str, Formula] = {
    "entropy-ratio": entropy_ratio_as_printed,
    "dawin": dawin_as_released,
    "confidence-ratio": ratio_of_largest_probabilities,
    "x-entropy-ratio": cross_entropy_ratio_as_printed,
}


def by_formula(rule: str, evidence: Evidence) -> np.ndarray:
    assert evidence.labels is not None
    pairs = zip(evidence.logits_generalist, evidence.logits_expert, evidence.labels, strict=True)
    return np.array([FORMULAS[rule](pt.astype(np.float64), ft.astype(np.float64), int(y)) for pt, ft, y in pairs])


def extreme_logits(classes: int) -> np.ndarray:
    """One-hot, its opposite, equal, a constant, 1e4 apart up and down, hardly apart: [7, C]."""
    one_hot = np.eye(1, classes, dtype=np.float32)[0]
    ramp = np.arange(classes, dtype=np.float32)
    rows = [one_hot, 1 - one_hot, 0 * one_hot, 0 * one_hot - 7, 1e4 * one_hot, -1e4 * one_hot, 1e-6 * ramp]
    return np.stack(rows).astype(np.float32)


def all_pairs(logits: np.ndarray, labels: int) -> Evidence:
    """Each row as generalist with each row as expert, each with each of the first labels."""
    first, second, label = np.meshgrid(np.arange(len(logits)), np.arange(len(logits)), np.arange(labels))
    return pair_evidence(logits[first.ravel()], logits[second.ravel()], label.ravel())


def test_the_table_holds_the_rules_with_a_formula_here() -> None:
    assert list(RULES) == list(FORMULAS)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 9, 1000])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_lambda_is_the_formulas_on_random_logits(rule: str, classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    logits = (scale * rng.standard_normal((2, 60, classes))).astype(np.float32)
    evidence = pair_evidence(*logits, rng.integers(0, classes, 60))
    np.testing.assert_allclose(RULES[rule](evidence).lam, by_formula(rule, evidence), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 1000])
def test_lambda_is_the_formulas_on_extreme_logits(rule: str, classes: int) -> None:
    evidence = all_pairs(extreme_logits(classes), labels=2)
    found = RULES[rule](evidence)
    np.testing.assert_allclose(found.lam, by_formula(rule, evidence), rtol=1e-6, atol=1e-9)
    assert ((found.lam >= 0) & (found.lam <= 1)).all()
    assert not np.signbit(found.lam).any(), "a negative zero is another byte"


@pytest.mark.parametrize("rule", RULES)
def test_rules_without_adjustment_give_lambda_twice_and_no_branch(rule: str) -> None:
    evidence = all_pairs(extreme_logits(3), labels=3)
    found = RULES[rule](evidence)
    np.testing.assert_array_equal(found.lambda_raw, found.lam)
    assert (found.branch == Branch.NONE).all()
    assert (found.lam.dtype, found.lambda_raw.dtype, found.branch.dtype) == (np.float32, np.float32, np.int8)
    assert len(found.branch) == len(evidence)


@pytest.mark.parametrize("rule", RULES)
def test_equal_models_share_equally(rule: str) -> None:
    logits = extreme_logits(5)
    assert (RULES[rule](pair_evidence(logits, logits, np.zeros(7, int))).lam == 0.5).all()


@pytest.mark.parametrize("rule", ["entropy-ratio", "x-entropy-ratio"])
def test_two_certain_models_that_are_right_share_equally(rule: str) -> None:
    """0/0: neither has any entropy, nor any loss."""
    certain = np.array([[1e4, 0.0]], np.float32)
    assert RULES[rule](pair_evidence(certain, 2 * certain, np.array([0]))).lam.tolist() == [0.5]


@pytest.mark.parametrize("rule", EXPERT_LIKES_CERTAINTY)
def test_each_rule_favours_the_model_that_its_documentation_says(rule: str) -> None:
    sure, unsure = np.array([[4.0, 0.0, 0.0]], np.float32), np.array([[0.5, 0.0, 0.0]], np.float32)
    sure_expert = float(RULES[rule](pair_evidence(unsure, sure)).lam[0])
    assert (sure_expert > 0.5) == EXPERT_LIKES_CERTAINTY[rule]
    sure_generalist = float(RULES[rule](pair_evidence(sure, unsure)).lam[0])
    assert sure_expert + sure_generalist == pytest.approx(1.0, abs=1e-6)


def test_the_cross_entropy_ratio_favours_the_model_that_is_wrong() -> None:
    right, wrong = np.array([[3.0, 0.0]], np.float32), np.array([[0.0, 3.0]], np.float32)
    assert RULES["x-entropy-ratio"](pair_evidence(right, wrong, np.array([0]))).lam[0] > 0.5


@pytest.mark.parametrize(("labels", "missing"), [(None, "no sample has a label"), ([0, -1, -1], "2 of 3")])
def test_the_cross_entropy_ratio_refuses_samples_without_label(labels: list[int] | None, missing: str) -> None:
    logits = np.zeros((3, 2), np.float32)
    evidence = pair_evidence(logits, logits, None if labels is None else np.array(labels))
    with pytest.raises(ValueError, match=f"x-entropy-ratio needs the label of every sample: {missing}"):
        RULES["x-entropy-ratio"](evidence)


@pytest.mark.parametrize("rule", RULES)
@given(pair=logit_pairs_in_eighths(), eighths=st.integers(-800, 800), random=st.randoms(use_true_random=False))
def test_neither_a_constant_nor_the_order_of_classes_changes_lambda(
    rule: str, pair: Pair, eighths: int, random: object
) -> None:
    generalist, expert = pair
    classes = list(range(generalist.shape[1]))
    labels = np.arange(len(generalist)) % len(classes)
    found = RULES[rule](pair_evidence(generalist, expert, labels)).lam
    shifted = pair_evidence(generalist, expert + np.float32(eighths / 8), labels)
    np.testing.assert_array_equal(RULES[rule](shifted).lam, found)
    random.shuffle(classes)  # type: ignore[attr-defined]
    permuted = pair_evidence(generalist[:, classes], expert[:, classes], np.argsort(classes)[labels])
    np.testing.assert_allclose(RULES[rule](permuted).lam, found, rtol=0, atol=1e-6)


@given(logit_pairs_in_eighths())
def test_swapping_the_models_swaps_their_shares(pair: Pair) -> None:
    labels = np.zeros(len(pair[0]), int)
    for rule in RULES.values():
        shares = rule(pair_evidence(*pair, labels)).lam + rule(pair_evidence(*reversed(pair), labels)).lam
        np.testing.assert_allclose(shares, 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_no_samples_give_no_coefficients(rule: str) -> None:
    empty = np.empty((0, 3), np.float32)
    assert RULES[rule](pair_evidence(empty, empty, np.empty(0, int))).lam.shape == (0,)


@pytest.mark.parametrize(
    "returned",
    [[0, 0.25, 1], np.array([0, 0.25, 1], np.float16), (0.0, 0.25, 1.0), torch.tensor([0.0, 0.25, 1.0])],
    ids=["list", "float16", "tuple", "tensor"],
)
def test_a_users_rule_may_return_any_array_of_numbers(returned: object) -> None:
    found = from_user(returned, 3, "hospital.rules:mine")
    assert found.lam.tolist() == found.lambda_raw.tolist() == [0.0, 0.25, 1.0]
    assert found.lam.dtype == np.float32
    assert found.branch.tolist() == [Branch.NONE] * 3


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "array of numbers, got NoneType"),
        ("abc", "array of numbers, got str"),
        ([0.1, "x", 0.2], "array of numbers, got list"),
        ([0.1, None, 0.2], "array of numbers, got list"),
        ([[0.1], [0.2, 0.3]], "array of numbers, got list"),
        (np.array([0.1, 0.2, 0.3j]), "array of numbers, got ndarray"),
        (torch.zeros(3, requires_grad=True), "array of numbers, got Tensor"),
        (0.5, r"each of the 3 samples, shape \(3,\), got float of shape \(\)"),
        ([0.1, 0.2], r"got list of shape \(2,\)"),
        (np.zeros((3, 1)), r"got ndarray of shape \(3, 1\)"),
        ([0.1, np.nan, np.inf], r"λ\[1\] = nan \(and 1 more\)"),
        ([0.1, 0.2, np.inf], r"λ\[2\] = inf \(and 0 more\)"),
        ([-1e-9, 0.2, 0.3], r"λ\[0\] = -1e-09"),
        ([0.1, 1.5, 2.5], r"must lie in \[0, 1\], got λ\[1\] = 1.5 \(and 1 more\)"),
    ],
)
def test_what_a_users_rule_must_not_return_is_one_clear_line(returned: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        from_user(returned, 3, "hospital.rules:mine")
    assert str(caught.value).startswith("rule hospital.rules:mine: ")
    assert "\n" not in str(caught.value)
