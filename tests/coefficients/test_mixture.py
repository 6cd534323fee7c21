"""The oracles are the planted clusters, scipy's Beta densities, and all ways to split a few values."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as scipy_beta

from pipeline.coefficients.mixture import BetaMixture, fit_beta_mixture

Planted = tuple[np.ndarray, np.ndarray]

WELL_SEPARATED = {
    "symmetric": [(0.3, 4, 30), (0.3, 40, 40), (0.4, 60, 6)],
    "one-dominates": [(0.9, 4, 60), (0.05, 80, 80), (0.05, 90, 6)],
    "narrow-and-wide": [(0.5, 3, 12), (0.5, 300, 100)],
    "five": [(0.2, 200, 1800), (0.2, 300, 700), (0.2, 500, 500), (0.2, 700, 300), (0.2, 1800, 200)],
}


def planted(name: str, samples: int, seed: int) -> Planted:
    rng = np.random.default_rng(seed)
    shares, alpha, beta = (np.array(column, float) for column in zip(*WELL_SEPARATED[name], strict=True))
    truth = rng.choice(len(shares), samples, p=shares)
    return rng.beta(alpha[truth], beta[truth]).astype(np.float32), truth


def t3_like(samples: int, shares: list[float], seed: int = 0) -> Planted:
    """λ' at the paper's settings: generalist confident, none, expert confident (an atom at 1)."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, samples, p=shares)
    middle = rng.uniform(1 / 2, 2 / 3, samples)
    return np.select([truth == 0, truth == 1], [middle - 0.5, middle], 1.0).astype(np.float32), truth


def fitted(lambdas: np.ndarray, clusters: int) -> tuple[BetaMixture, np.ndarray]:
    mixture = fit_beta_mixture(lambdas, clusters)
    return mixture, mixture.assign(lambdas)


@pytest.mark.parametrize("name", WELL_SEPARATED)
@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_recovered(name: str, seed: int) -> None:
    lambdas, truth = planted(name, 4000, seed)
    mixture, assigned = fitted(lambdas, len(WELL_SEPARATED[name]))
    assert (assigned == truth).mean() > 0.95
    np.testing.assert_allclose(mixture.weights, np.bincount(truth) / len(truth), rtol=0, atol=0.02)
    np.testing.assert_allclose(mixture.means, [a / (a + b) for _, a, b in WELL_SEPARATED[name]], rtol=0, atol=0.02)


@pytest.mark.parametrize("shares", [[0.3, 0.3, 0.4], [0.01, 0.02, 0.97], [0.5, 0.49, 0.01]], ids=str)
def test_the_three_clusters_of_t3_are_recovered_with_their_atom(shares: list[float]) -> None:
    lambdas, truth = t3_like(5000, shares)
    _, assigned = fitted(lambdas, 3)
    np.testing.assert_array_equal(assigned, truth)


def test_atoms_at_both_ends_are_clusters_of_their_own() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 3000)
    lambdas = np.select([truth == 0, truth == 1], [0.0, rng.beta(30, 30, 3000)], 1.0).astype(np.float32)
    _, assigned = fitted(lambdas, 3)
    np.testing.assert_array_equal(assigned, truth)


def test_a_single_cluster_has_the_moments_of_the_values() -> None:
    lambdas = np.random.default_rng(1).beta(3.0, 5.0, 2000)
    mixture, assigned = fitted(lambdas, 1)
    alpha, beta = float(mixture.alpha[0]), float(mixture.beta[0])
    assert scipy_beta.mean(alpha, beta) == pytest.approx(lambdas.mean(), abs=1e-5)
    assert scipy_beta.var(alpha, beta) == pytest.approx(lambdas.var(), rel=1e-3)
    assert (assigned == 0).all()


def test_each_value_goes_to_the_component_that_explains_it_best() -> None:
    lambdas, _ = planted("symmetric", 2000, 5)
    mixture, _ = fitted(lambdas, 3)
    grid = np.linspace(0.01, 0.99, 500)
    joint = np.log(mixture.weights)[:, None] + scipy_beta.logpdf(grid, mixture.alpha[:, None], mixture.beta[:, None])
    best_two = np.sort(joint, axis=0)[-2:]
    decided = best_two[1] - best_two[0] > 0.01
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(mixture.assign(grid)[decided], joint.argmax(axis=0)[decided])


@pytest.mark.parametrize("seed", range(3))
def test_a_fit_explains_the_values_as_well_as_the_densities_they_were_drawn_from(seed: int) -> None:
    """A wide cluster around a narrow one a ninth its size: the split that the fit starts from cuts the wide one."""
    rng = np.random.default_rng(seed)
    weights, alpha, beta = np.array([0.9, 0.1]), np.array([2.0, 400.0]), np.array([5.0, 300.0])
    truth = rng.choice(2, 6000, p=weights)
    lambdas = rng.beta(alpha[truth], beta[truth])
    mixture, assigned = fitted(lambdas, 2)
    assert (assigned == truth).mean() > 0.93
    drawn_from = mean_log_likelihood(BetaMixture(weights, alpha, beta), lambdas)
    assert mean_log_likelihood(mixture, lambdas) > drawn_from - 0.005


@pytest.mark.parametrize(("samples", "alpha", "beta", "clusters"), [(20, 3, 1, 3), (40, 5, 8, 3), (80, 2, 5, 4)])
def test_components_that_end_up_without_values_are_dropped(
    samples: int, alpha: float, beta: float, clusters: int
) -> None:
    """Quantiles of one density, and as many values in one place: components meet there or are overshadowed."""
    quantiles = scipy_beta.ppf((np.arange(samples) + 0.5) / samples, alpha, beta)
    mixture, assigned = fitted(np.concatenate([quantiles, np.full(samples, 0.5)]), clusters)
    assert len(mixture) < clusters
    assert set(assigned.tolist()) == set(range(len(mixture)))
    assert mixture.weights.sum() == pytest.approx(1.0, abs=1e-12)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 30))
def test_with_no_more_distinct_values_than_clusters_each_value_is_a_cluster(twentieths: list[int], more: int) -> None:
    lambdas = np.array(twentieths, np.float32) / 20
    distinct, position = np.unique(lambdas, return_inverse=True)
    mixture, assigned = fitted(lambdas, len(distinct) + more - 1)
    assert len(mixture) == len(distinct)
    np.testing.assert_array_equal(assigned, position)


def test_neighbouring_values_stay_apart_whatever_their_counts() -> None:
    lambdas = np.array([0.5] * 65535 + [0.5 + 2.0**-16], np.float32)
    mixture, assigned = fitted(lambdas, 2)
    assert len(mixture) == 2
    assert np.bincount(assigned).tolist() == [65535, 1]


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("samples", [1, 100])
def test_identical_values_are_one_cluster(value: float, samples: int) -> None:
    mixture, assigned = fitted(np.full(samples, value, np.float32), 3)
    assert len(mixture) == 1
    assert assigned.tolist() == [0] * samples
    assert float(mixture.means[0]) == pytest.approx(value, abs=2.0**-16)


def test_no_values_give_no_components() -> None:
    mixture, assigned = fitted(np.empty(0, np.float32), 3)
    assert (len(mixture), assigned.shape, assigned.dtype) == (0, (0,), np.int64)
    with pytest.raises(ValueError, match="cannot assign any"):
        mixture.assign([0.5])


unit = st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(st.lists(unit, min_size=1, max_size=60), st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_order_of_samples_permutes_the_assignment_and_nothing_else(
    values: list[float], clusters: int, random: object
) -> None:
    lambdas, order = np.array(values, np.float32), list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixture, assigned = fitted(lambdas, clusters)
    permuted, assigned_permuted = fitted(lambdas[order], clusters)
    for one, other in zip(parameters(mixture), parameters(permuted), strict=True):
        assert one.tobytes() == other.tobytes()
    np.testing.assert_array_equal(assigned_permuted, assigned[order])


def test_equal_values_give_equal_bytes_each_time() -> None:
    lambdas, _ = planted("symmetric", 3000, 9)
    first, again = fit_beta_mixture(lambdas, 4), fit_beta_mixture(lambdas.copy(), 4)
    assert [column.tobytes() for column in parameters(first)] == [column.tobytes() for column in parameters(again)]


@given(st.lists(unit, min_size=1, max_size=80), st.integers(1, 8))
def test_components_are_proper_ordered_by_mean_and_none_is_empty(values: list[float], clusters: int) -> None:
    mixture, assigned = fitted(np.array(values, np.float32), clusters)
    assert 1 <= len(mixture) <= clusters
    assert np.isfinite(parameters(mixture)).all()
    assert mixture.weights.sum() == pytest.approx(1.0, abs=1e-9)
    assert (mixture.weights > 0).all()
    assert min(mixture.alpha.min(), mixture.beta.min()) >= 1 - 1e-6, "one peak each"
    assert (np.diff(mixture.means) >= 0).all()
    assert set(assigned.tolist()) == set(range(len(mixture)))


@pytest.mark.parametrize("seed", range(10))
def test_tight_groups_are_split_where_least_squares_over_all_splits_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort(np.concatenate([centre + rng.uniform(0, 0.01, 4) for centre in (0.1, 0.45, 0.8)]))
    cuts = min(
        itertools.combinations(range(1, len(values)), 2),
        key=lambda cut: sum(run.var() * len(run) for run in np.split(values, cut)),
    )
    expected = np.searchsorted(cuts, np.arange(len(values)), side="right")
    np.testing.assert_array_equal(fitted(values, 3)[1], expected)


def test_a_window_is_clustered_within_seconds() -> None:
    """65,536 values without any structure, the slowest to settle: 0.2 s measured on one core of a small machine."""
    lambdas = np.random.default_rng(0).random(65536).astype(np.float32)
    start = time.process_time()
    fitted(lambdas, 3)
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_values_that_are_no_coefficients_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"λ must lie in \[0, 1\]"):
        fit_beta_mixture([0.5, value], 2)


def test_fewer_than_one_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="clusters must be at least 1, got 0"):
        fit_beta_mixture([0.5], 0)


def parameters(mixture: BetaMixture) -> list[np.ndarray]:
    return [mixture.weights, mixture.alpha, mixture.beta]


def mean_log_likelihood(mixture: BetaMixture, lambdas: np.ndarray) -> float:
    densities = scipy_beta.pdf(lambdas, mixture.alpha[:, None], mixture.beta[:, None])
    return float(np.log((mixture.weights[:, None] * densities).sum(axis=0)).mean())
