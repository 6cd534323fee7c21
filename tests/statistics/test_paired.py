from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from pipeline.statistics.multiple import holm
from pipeline.statistics.paired import CLUSTERED, EXACT, MCNEMAR, SIGN_FLIP, PairedTest, mcnemar


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first_right = np.repeat([True, True, False, False], [both, first, second, neither])
    second_right = np.repeat([True, False, True, False], [both, first, second, neither])
    return first_right, second_right


def test_single_images_with_few_disagreements_are_compared_by_the_binomial_distribution() -> None:
    first, second = outcomes(30, 3, 12, 5)
    found = mcnemar(first, second, np.arange(50))
    assert found == PairedTest(EXACT, 3, 12, None, pytest.approx(binomtest(3, 15).pvalue))
    assert found.p_value == pytest.approx(0.03515625)


def test_single_images_with_more_disagreements_have_mcnemars_chi_square() -> None:
    first, second = outcomes(100, 40, 20, 9)
    found = mcnemar(first, second, np.arange(169))
    statistic = (40 - 20) ** 2 / (40 + 20)
    assert found == PairedTest(MCNEMAR, 40, 20, pytest.approx(statistic), pytest.approx(chi2.sf(statistic, 1)))


def test_clustered_test_equals_the_sums_over_clusters_by_hand() -> None:
    """Clusters of given (both, only first, only second, neither): the R package clust.bin.pair's own five, repeated."""
    tables = np.array(5 * [[1, 51, 18, 0], [3, 67, 26, 2], [0, 44, 43, 1], [1, 58, 21, 3], [2, 47, 28, 4]])
    first, second, clusters = [], [], []
    for cluster, table in enumerate(tables):
        right, other = outcomes(*table)
        first.append(right)
        second.append(other)
        clusters.append(np.full(table.sum(), 7 * cluster))
    found = mcnemar(*(np.concatenate(column) for column in (first, second, clusters)))
    shares = [33 / 70, 41 / 98, 1 / 88, 37 / 83, 19 / 81]
    statistic = 5 * sum(shares) ** 2 / sum(share**2 for share in shares)
    assert statistic == pytest.approx(5 * 3.842, abs=0.005)
    assert found.test == CLUSTERED
    assert (found.discordant_first, found.discordant_second) == (5 * 267, 5 * 136)
    assert found.statistic == pytest.approx(statistic)
    assert found.p_value == pytest.approx(chi2.sf(statistic, 1))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 5))
def test_copies_of_every_image_in_its_cluster_change_nothing(first_only: int, second_only: int, copies: int) -> None:
    first, second = outcomes(4, first_only, second_only, 3)
    single = mcnemar(first, second, np.arange(len(first)))
    clustered = mcnemar(*(np.repeat(column, copies) for column in (first, second, np.arange(len(first)))))
    discordant = first_only + second_only
    assert single.p_value == pytest.approx(clustered.p_value)
    if discordant >= 25:
        assert clustered.test == CLUSTERED
        assert single.statistic == pytest.approx(clustered.statistic)
    elif discordant:
        assert (clustered.test, clustered.statistic) == (SIGN_FLIP, None)


def test_exact_test_needs_single_images_only_where_the_two_disagree() -> None:
    first, second = outcomes(4, 2, 1, 0)
    assert mcnemar(first, second, np.array([0, 0, 0, 0, 1, 2, 3])).test == EXACT
    assert mcnemar(first, second, np.array([0, 1, 2, 3, 4, 4, 5])).test == SIGN_FLIP


def test_without_any_disagreement_nothing_speaks_for_either() -> None:
    same = np.array([True, False, True])
    assert mcnemar(same, same, np.arange(3)) == PairedTest(EXACT, 0, 0, None, 1.0)
    balanced = mcnemar(np.array([True, False]), np.array([False, True]), np.array([5, 5]))
    assert balanced == PairedTest(SIGN_FLIP, 1, 1, None, 1.0)
    none = np.zeros(0, bool)
    assert mcnemar(none, none, np.zeros(0, np.int64)).p_value == 1.0


def test_holm_by_hand() -> None:
    """Holm's procedure on 0.01, 0.04, 0.03, 0.005: times 3, 1, 2 and 4, then never below a smaller one's."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_rejects_what_its_sequential_definition_rejects(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    level = 0.05
    rejected = set()
    for step, position in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[position] * (len(p_values) - step) > level:
            break
        rejected.add(position)
    # Equal p-values are one decision, wherever they stand in the order.
    assert {p_values[place] for place in rejected} == {p_values[place] for place in np.flatnonzero(adjusted <= level)}
    assert (adjusted >= p_values).all()


@pytest.mark.parametrize("clusters", [4, 5, 16, 24])
def test_few_clusters_that_all_speak_for_one_side_have_the_binomial_p_value(clusters: int) -> None:
    """The chi-square of 4 such clusters would have p = 0.046, and no test of 4 signs can be below 0.125."""
    right = np.repeat([True], 2 * clusters)
    found = mcnemar(right, ~right, np.arange(2 * clusters) // 2)
    assert found == PairedTest(SIGN_FLIP, 2 * clusters, 0, None, pytest.approx(2 * 0.5**clusters))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9))
def test_few_clusters_are_tested_by_all_patterns_of_signs(tables: list[tuple[int, int, int]]) -> None:
    columns = [outcomes(both, first, second, 0) for both, first, second in tables]
    first, second = (np.concatenate(column) for column in zip(*columns, strict=True))
    found = mcnemar(first, second, np.repeat(np.arange(len(tables)), [sum(table) for table in tables]))
    if found.test == EXACT:
        return
    assert found.test == SIGN_FLIP
    shares = [Fraction(b - c, a + b + c) for a, b, c in tables]
    sums = [
        abs(sum(sign * share for sign, share in zip(signs, shares, strict=True)))
        for signs in product((-1, 1), repeat=len(shares))
    ]
    assert found.p_value == pytest.approx(sum(value >= abs(sum(shares)) for value in sums) / len(sums))


def test_from_25_clusters_on_the_chi_square_is_used() -> None:
    first, second = outcomes(0, 20, 5, 0)
    pairs = [np.repeat(column, 2) for column in (first, second, np.arange(25))]
    assert mcnemar(*pairs).test == CLUSTERED
    assert mcnemar(*(column[2:] for column in pairs)).test == SIGN_FLIP


def test_clusters_that_speak_for_neither_side_do_not_make_a_small_sample_large() -> None:
    """40 clusters in which each side wins one image say nothing; of the other 4, all speak for the first."""
    first = np.concatenate([np.tile([True, False], 40), np.ones(8, bool)])
    second = np.concatenate([np.tile([False, True], 40), np.zeros(8, bool)])
    found = mcnemar(first, second, np.arange(88) // 2)
    assert found == PairedTest(SIGN_FLIP, 48, 40, None, pytest.approx(0.125))
