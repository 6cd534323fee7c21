"""The oracle is exp(-H̄/T) over its sum, in exact arithmetic where float64 would not do."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from pipeline.coefficients.grouping import arrival
from pipeline.coefficients.sources import WeightsPlan, entropy_adaptive, entropy_weights

FIRST = 256


@st.composite
def entropies(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(0, 6), st.integers(1, 5)))
    return draw(hnp.arrays(np.float64, shape, elements=st.floats(0, 7)))


def adapted(
    rows: np.ndarray, values: np.ndarray, *, head: float | None = None, order: np.ndarray | None = None
) -> WeightsPlan:
    return entropy_adaptive(
        rows,
        values,
        batch_size=4,
        first_address=FIRST,
        temperature_encoder=0.5,
        temperature_head=head,
        order=order,
    )


@given(entropies(), st.floats(0.01, 100))
def test_weights_are_the_softmax_of_negative_entropy_over_temperature(values: np.ndarray, temperature: float) -> None:
    np.testing.assert_allclose(
        entropy_weights(values, temperature), softmax(-values / temperature, axis=1), rtol=1e-9, atol=1e-15
    )


@given(entropies(), st.floats(1e-300, 1e300))
def test_weights_sum_to_one_and_none_is_negative_at_any_temperature(values: np.ndarray, temperature: float) -> None:
    stored = entropy_weights(values, temperature).astype(np.float32)
    assert (stored >= 0).all()
    np.testing.assert_allclose(stored.sum(axis=1, dtype=np.float64), 1.0, rtol=0, atol=1e-6)


def test_temperature_goes_from_the_most_certain_source_to_all_alike() -> None:
    values = np.array([[0.3, 0.1, 0.9]])
    np.testing.assert_allclose(entropy_weights(values, 1e-300), [[0, 1, 0]])
    np.testing.assert_allclose(entropy_weights(values, 1e300), [[1 / 3, 1 / 3, 1 / 3]])


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0"):
        entropy_weights(np.zeros((1, 2)), temperature)


def test_each_batch_is_weighted_by_the_exact_mean_over_its_own_rows() -> None:
    rng = np.random.default_rng(0)
    rows = FIRST + np.array([0, 1, 3, 4, 5, 6, 7, 13])
    values = rng.uniform(0, 2, (8, 3))
    plan = adapted(rows, values)
    members = [[0, 1, 2], [3, 4, 5, 6], [7]]
    assert plan.offsets.tolist() == [0, 3, 7, 8]
    means = [[sum(map(Fraction, values[batch, k].tolist())) / len(batch) for k in range(3)] for batch in members]
    np.testing.assert_allclose(plan.weights_encoder, softmax(-np.array(means, float) / 0.5, axis=1), rtol=1e-6)


def test_without_its_own_temperature_the_head_is_coupled_to_the_encoder() -> None:
    values = np.random.default_rng(1).uniform(0, 2, (8, 3))
    rows = FIRST + np.arange(8)
    coupled, decoupled = adapted(rows, values), adapted(rows, values, head=2.0)
    np.testing.assert_array_equal(coupled.weights_head, coupled.weights_encoder)
    np.testing.assert_array_equal(decoupled.weights_encoder, coupled.weights_encoder)
    means = values.reshape(2, 4, 3).mean(axis=1)
    np.testing.assert_allclose(decoupled.weights_head, softmax(-means / 2.0, axis=1), rtol=1e-6)


@given(st.sets(st.integers(FIRST, FIRST + 40)), st.booleans(), st.integers(0, 5))
def test_batches_are_those_of_arrival(addresses: set[int], reordered: bool, seed: int) -> None:
    rows = np.array(sorted(addresses), np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows)) if reordered else None
    plan = adapted(rows, rng.uniform(0, 2, (len(rows), 2)), order=order)
    lambdas = np.zeros(len(rows), np.float32)
    expected = arrival(rows, lambdas, batch_size=4, first_address=FIRST, order=order)
    np.testing.assert_array_equal(plan.rows, expected.rows)
    np.testing.assert_array_equal(plan.offsets, expected.offsets)
    np.testing.assert_array_equal(plan.sizes, expected.sizes)
    assert len(plan) == len(expected)
    assert plan.weights_encoder.shape == plan.weights_head.shape == (len(expected), 2)
    assert plan.weights_encoder.dtype == plan.weights_head.dtype == np.float32


def test_entropies_move_with_their_rows_when_the_stream_is_reordered() -> None:
    """The second source is the certain one of the four rows that come last and are made to come first."""
    values = np.array([[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 4)
    plan = adapted(FIRST + np.arange(8), values, order=np.array([7, 6, 5, 4, 0, 1, 2, 3]))
    assert plan.rows.tolist() == [FIRST + p for p in (7, 6, 5, 4, 0, 1, 2, 3)]
    assert plan.weights_encoder.argmax(axis=1).tolist() == [1, 0]
