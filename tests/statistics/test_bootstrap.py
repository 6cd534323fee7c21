import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import binom

from pipeline.statistics import bootstrap
from pipeline.statistics.bootstrap import (
    REPLICATES,
    Stratum,
    draw_counts,
    percentile_interval,
    replicate_sums,
    stratify,
)


def named(count: int) -> list[str]:
    return [f"image/{number:05d}" for number in range(count)]


def counts_of(strata: list[Stratum], replicates: int = REPLICATES) -> np.ndarray:
    return np.concatenate(list(draw_counts(strata, replicates)), axis=1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_every_replicate_draws_as_many_clusters_from_each_stratum_as_it_has(kinds: list[int]) -> None:
    strata = stratify(named(len(kinds)), kinds)
    assert sorted(np.concatenate([stratum.clusters_K for stratum in strata])) == list(range(len(kinds)))
    counts = counts_of(strata, 20)
    for stratum in strata:
        assert (counts[stratum.clusters_K].sum(axis=0) == len(stratum.clusters_K)).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_strata_hold_clusters_of_one_kind_and_the_single_ones_are_drawn_among_one_another(kinds: list[int]) -> None:
    alone = {kind for kind in kinds if kinds.count(kind) == 1}
    for stratum in stratify(named(len(kinds)), kinds):
        found = {kinds[cluster] for cluster in stratum.clusters_K}
        assert len(found) == 1 or found == alone


def test_how_often_a_cluster_is_drawn_is_binomial() -> None:
    counts = counts_of(stratify(named(10), [0] * 10), 4_000)
    observed = [(counts == value).mean() for value in range(4)]
    assert observed == pytest.approx(binom.pmf(range(4), 10, 0.1), abs=0.01)


def test_draws_do_not_depend_on_the_memory_that_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    strata = stratify(named(30), [0] * 20 + [1] * 10)
    at_once = counts_of(strata, 50)
    monkeypatch.setattr(bootstrap, "COUNT_BYTES", 7 * 30 * 8)
    assert [chunk.shape[1] for chunk in draw_counts(strata, 50)] == [7] * 7 + [1]
    assert np.array_equal(counts_of(strata, 50), at_once)


def test_a_stratum_has_the_same_draws_beside_whatever_other_stratum() -> None:
    """Seeds of one study draw the same images, though another run may hold more evaluation sets."""
    alone = counts_of(stratify(named(8), [0] * 8), 30)
    together = counts_of(stratify([*named(8), "other/1", "other/2"], [0] * 8 + [1] * 2), 30)
    assert np.array_equal(together[:8], alone)
    renamed = counts_of(stratify([f"{name}x" for name in named(8)], [0] * 8), 30)
    assert not np.array_equal(renamed, alone)


def test_names_that_run_together_are_told_apart() -> None:
    first, second = (stratify(names, [0, 0])[0].seed for names in (["ab", "c"], ["a", "bc"]))
    assert first != second


def test_sums_equal_those_of_the_images_drawn_one_by_one() -> None:
    generator = np.random.default_rng(1)
    cluster = generator.integers(0, 12, 40)
    value = generator.random(40)
    strata = stratify(named(12), [0] * 5 + [1] * 7)
    features = csr_array((value, (np.zeros(40, int), cluster)), shape=(1, 12))
    sums = replicate_sums(features, strata, 25)
    for replicate, counts in enumerate(counts_of(strata, 25).T):
        drawn = np.repeat(np.arange(12), counts.astype(int))
        assert sums[0, replicate] == pytest.approx(sum(value[cluster == name].sum() for name in drawn))


def test_an_interval_holds_the_middle_95_percent() -> None:
    assert percentile_interval(np.arange(1001)) == pytest.approx((25.0, 975.0))
    assert percentile_interval(np.array([0.5, np.nan])) == (None, None)
    assert percentile_interval(np.zeros(0)) == (None, None)


def test_an_interval_ends_at_zero_where_only_the_residue_of_stored_replicates_does_not() -> None:
    """A gain of 1/156 on one set and a loss of 1/156 on another, of replicates that are stored as float32."""
    gain = np.float32(101 / 156) - np.float64(np.float32(100 / 156))
    loss = np.float32(111 / 156) - np.float64(np.float32(112 / 156))
    residue = (gain + loss) / 2
    assert residue != 0
    assert percentile_interval(np.full(1000, residue)) == (0.0, 0.0)
    assert str(percentile_interval(np.full(9, -1e-8))[0]) == "0.0", "no minus sign is left of it"


@pytest.mark.slow
def test_intervals_of_clustered_accuracies_cover_the_truth_19_times_in_20() -> None:
    """Images of a cluster share how hard they are; taken for independent ones they would promise far too much."""
    generator = np.random.default_rng(20)
    clusters, size, repetitions = 150, 6, 400
    kinds = np.arange(clusters) % 3
    strata = stratify(named(clusters), kinds.tolist())
    single = stratify(named(clusters * size), np.repeat(kinds, size).tolist())
    # A cluster's chance to be right is Beta(2, 1) for the first method; the second is right on three of four of these.
    truth, truth_difference = 2 / 3, 2 / 3 * 0.25
    covered = {"accuracy": 0, "difference": 0, "as if independent": 0}
    for _ in range(repetitions):
        chance = generator.beta(2, 1, clusters)
        first = generator.random((clusters, size)) < chance[:, None]
        second = first & (generator.random((clusters, size)) < 0.75)
        sums = np.stack([first.sum(axis=1), second.sum(axis=1)]).astype(float)
        accuracy, other = replicate_sums(csr_array(sums), strata) / (clusters * size)
        images = replicate_sums(csr_array(first.reshape(1, -1).astype(float)), single)[0] / (clusters * size)
        found = {
            "accuracy": (truth, percentile_interval(accuracy)),
            "difference": (truth_difference, percentile_interval(accuracy - other)),
            "as if independent": (truth, percentile_interval(images)),
        }
        for name, (value, (low, high)) in found.items():
            assert low is not None
            assert high is not None
            covered[name] += low <= value <= high
    coverage = {name: count / repetitions for name, count in covered.items()}
    assert 0.92 <= coverage["accuracy"] <= 0.98
    assert 0.92 <= coverage["difference"] <= 0.98
    assert coverage["as if independent"] < 0.88
