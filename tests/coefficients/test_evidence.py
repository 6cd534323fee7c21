"""Sources by name: what is derived, what is refused, and what a user's rule reads."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

from pipeline.coefficients.evidence import Evidence
from tests.coefficients.factory import pair_evidence


def three_sources(names: tuple[str, str, str]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: (3 * rng.standard_normal((6, 4))).astype(np.float32) for name in names}


def test_every_source_has_logits_and_entropy_in_the_order_given() -> None:
    logits = three_sources(("site-c", "site-a", "site-b"))
    evidence = Evidence.from_logits(logits)
    assert list(evidence.logits) == list(evidence.entropies) == ["site-c", "site-a", "site-b"]
    for source, values in logits.items():
        oracle = scipy_entropy(softmax(values.astype(np.float64), axis=1), axis=1)
        np.testing.assert_allclose(evidence.entropies[source], oracle, rtol=0, atol=1e-12)
    assert len(evidence) == 6


def test_without_generalist_and_expert_there_is_no_divergence() -> None:
    assert Evidence.from_logits(three_sources(("generalist", "site-a", "site-b"))).js is None


def test_further_sources_do_not_change_the_divergence_of_generalist_and_expert() -> None:
    logits = three_sources(("site-a", "expert", "generalist"))
    pair = pair_evidence(logits["generalist"], logits["expert"])
    np.testing.assert_array_equal(Evidence.from_logits(logits).js, pair.js)


def test_the_two_named_sources_are_read_by_their_own_names() -> None:
    logits = three_sources(("expert", "site-a", "generalist"))
    evidence = Evidence.from_logits(logits)
    np.testing.assert_array_equal(evidence.logits_generalist, logits["generalist"])
    np.testing.assert_array_equal(evidence.logits_expert, logits["expert"])
    np.testing.assert_array_equal(evidence.entropy_generalist, evidence.entropies["generalist"])
    np.testing.assert_array_equal(evidence.entropy_expert, evidence.entropies["expert"])


@pytest.mark.parametrize("kind", ["logits", "entropy"])
@pytest.mark.parametrize("source", ["generalist", "expert"])
def test_an_absent_source_is_named_with_those_that_there_are(kind: str, source: str) -> None:
    evidence = Evidence.from_logits(three_sources(("a", "b", "c")))
    with pytest.raises(ValueError, match=f"no source is named '{source}': the sources are a, b, c"):
        getattr(evidence, f"{kind}_{source}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("source", ["generalist", "expert"])
def test_logits_that_are_not_finite_are_refused(value: float, source: str) -> None:
    logits = {name: np.zeros((2, 3), np.float32) for name in ("generalist", "expert")}
    logits[source][1, 2] = value
    with pytest.raises(ValueError, match=f"logits of '{source}' must be finite"):
        Evidence.from_logits(logits)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,))])
def test_logits_of_different_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"one shape \[N, C\], got generalist .* expert"):
        pair_evidence(*(np.zeros(shape, np.float32) for shape in shapes))


def test_no_source_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no source at all"):
        Evidence.from_logits({})


def test_labels_are_kept_and_may_be_missing() -> None:
    logits = np.zeros((3, 4), np.float32)
    labels = pair_evidence(logits, logits, np.array([3, -1, 0], np.int32)).labels
    assert labels is not None
    assert (labels.dtype, labels.tolist()) == (np.int64, [3, -1, 0])
    assert pair_evidence(logits, logits).labels is None


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0, 1], r"integers of shape \[3\], got int64 of shape \(2,\)"),
        ([0.0, 1.0, 2.0], "got float64"),
        ([0, 4, 5], r"labels\[1\] must be a class in \[0, 3\] or -1, got 4"),
        ([0, 1, -2], r"labels\[2\] .* got -2"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: list[float], problem: str) -> None:
    logits = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=problem):
        pair_evidence(logits, logits, np.array(labels))


def test_no_samples_give_no_evidence() -> None:
    evidence = pair_evidence(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32))
    assert len(evidence) == 0
    assert evidence.entropy_expert.shape == (0,)
