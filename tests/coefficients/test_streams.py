"""Properties that define each stream: permutation, determinism, skew by class, contiguity, uniformity."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, entropy

from pipeline.coefficients.streams import Order, StreamKind, dirichlet_shares, parse_order, stream_order

KINDS: list[StreamKind] = ["arrival", "iid", "dirichlet", "temporal"]
BATCH = 32


def labels_of(samples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, samples)


def ordered(kind: StreamKind, labels: np.ndarray, seed: int = 0, alpha: float = 0.1) -> np.ndarray:
    return stream_order(kind, labels, batch_size=BATCH, seed=seed, alpha=alpha if kind == "dirichlet" else None)


def mean_class_entropy(labels: np.ndarray, order: np.ndarray) -> float:
    arriving = labels[order]
    return float(np.mean([entropy(np.bincount(arriving[i : i + BATCH])) for i in range(0, len(arriving), BATCH)]))


@given(st.sampled_from(KINDS), st.lists(st.integers(0, 4), max_size=100), st.integers(0, 9), st.floats(1e-3, 1e3))
def test_every_stream_is_a_permutation(kind: StreamKind, labels: list[int], seed: int, alpha: float) -> None:
    order = ordered(kind, np.array(labels, np.int64), seed, alpha)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(labels)))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "temporal"])
def test_the_seed_alone_decides(kind: StreamKind) -> None:
    labels = labels_of(500, 5)
    np.testing.assert_array_equal(ordered(kind, labels, seed=1), ordered(kind, labels.copy(), seed=1))
    assert (ordered(kind, labels, seed=1) != ordered(kind, labels, seed=2)).any()


def test_arrival_is_as_it_is() -> None:
    assert ordered("arrival", np.array([1, -1, 0])).tolist() == [0, 1, 2]


def test_a_smaller_alpha_makes_batches_of_fewer_classes() -> None:
    labels = labels_of(4000, 10)
    skew = [mean_class_entropy(labels, ordered("dirichlet", labels, alpha=alpha)) for alpha in (0.005, 0.05, 0.5, 500)]
    assert skew == sorted(skew)
    assert min(np.diff(skew)) > 0.1, "each step is one that shows"


def test_a_large_alpha_mixes_batches_at_least_as_well_as_an_independent_stream() -> None:
    labels = labels_of(4000, 10)
    mixed = mean_class_entropy(labels, ordered("dirichlet", labels, alpha=1e4))
    assert mean_class_entropy(labels, ordered("iid", labels)) < mixed <= math.log(10)


@pytest.mark.parametrize("seed", range(5))
def test_a_temporal_stream_shows_one_class_after_another(seed: int) -> None:
    labels = labels_of(300, 6)
    arriving = labels[ordered("temporal", labels, seed)]
    changes = np.flatnonzero(np.diff(arriving)) + 1
    runs = [int(run[0]) for run in np.split(arriving, changes)]
    assert sorted(runs) == list(range(6)), "each class in one run"


def test_a_temporal_stream_draws_both_the_order_of_classes_and_that_inside_a_class() -> None:
    labels = np.repeat([0, 1, 2], 30)
    orders = [ordered("temporal", labels, seed) for seed in range(20)]
    assert len({tuple(dict.fromkeys(labels[order].tolist())) for order in orders}) > 2
    first_of_class_0 = {int(order[labels[order] == 0][0]) for order in orders}
    assert len(first_of_class_0) > 5


def test_an_independent_stream_puts_every_sample_anywhere_equally_often() -> None:
    """χ² of where the first sample lands, and no class entropy lost against the whole."""
    draws, places = 2000, 20
    landed = [int(np.flatnonzero(ordered("iid", np.zeros(places, int), seed) == 0)[0]) for seed in range(draws)]
    expected = draws / places
    statistic = float(((np.bincount(landed, minlength=places) - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.9999, places - 1)
    labels = np.sort(labels_of(4000, 10))
    assert mean_class_entropy(labels, ordered("iid", labels)) > 0.9 * math.log(10)


def test_slots_come_one_after_another_and_are_shuffled_inside() -> None:
    """With a draw of the same seed, the stream's slots hold exactly the shares of that draw."""
    labels = labels_of(256, 4)
    order = ordered("dirichlet", labels, seed=3, alpha=0.3)
    slots = dirichlet_shares(labels, 256 // BATCH, 0.3, np.random.default_rng(3))
    ends = np.cumsum([len(slot) for slot in slots])
    for slot, arrived in zip(slots, np.split(order, ends[:-1]), strict=True):
        assert sorted(arrived.tolist()) == slot.tolist()
    assert any(np.diff(arrived).min(initial=1) < 0 for arrived in np.split(order, ends[:-1]))


@given(st.lists(st.integers(0, 5), max_size=80), st.integers(1, 12), st.floats(1e-3, 1e3), st.integers(0, 9))
def test_every_position_is_in_exactly_one_share(labels: list[int], parts: int, alpha: float, seed: int) -> None:
    shares = dirichlet_shares(np.array(labels, np.int64), parts, alpha, np.random.default_rng(seed))
    assert len(shares) == parts
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(labels)))
    assert all((np.diff(share) > 0).all() for share in shares)


def test_shares_are_near_equal_for_a_large_alpha_and_of_one_class_for_a_small_one() -> None:
    labels = np.repeat(np.arange(4), 300)
    generator = np.random.default_rng(0)
    near_equal = [np.bincount(labels[share], minlength=4) for share in dirichlet_shares(labels, 3, 1e6, generator)]
    assert np.abs(np.array(near_equal) - 100).max() <= 2
    counts = np.array([np.bincount(labels[s], minlength=4) for s in dirichlet_shares(labels, 3, 1e-4, generator)])
    assert counts.max(axis=0).tolist() == [300] * 4, "each class all but whole in one part"


def test_a_class_is_dealt_without_regard_to_where_its_samples_lie() -> None:
    shares = dirichlet_shares(np.zeros(1000, np.int64), 2, 1e6, np.random.default_rng(0))
    assert [float(share.mean()) for share in shares] == pytest.approx([499.5, 499.5], abs=60)


@pytest.mark.parametrize("kind", ["dirichlet", "temporal"])
def test_a_stream_by_class_refuses_samples_without_label(kind: StreamKind) -> None:
    with pytest.raises(ValueError, match="needs the label of every sample: 2 of 4 have none"):
        ordered(kind, np.array([0, -1, 1, -1]))


def test_an_independent_stream_needs_no_labels() -> None:
    assert sorted(ordered("iid", np.full(5, -1)).tolist()) == list(range(5))


@pytest.mark.parametrize("alpha", [0.0, -0.5, math.nan, math.inf])
def test_an_alpha_that_is_no_concentration_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be > 0"):
        ordered("dirichlet", np.array([0, 1]), alpha=alpha)


def test_a_dirichlet_stream_without_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match="order dirichlet needs an alpha"):
        stream_order("dirichlet", np.array([0, 1]), batch_size=2, seed=0, alpha=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arrival", Order("arrival")),
        ("iid", Order("iid")),
        ("temporal", Order("temporal")),
        ("dirichlet(0.05)", Order("dirichlet", 0.05)),
        ("dirichlet( 5e-1 )", Order("dirichlet", 0.5)),
        ("dirichlet(2)", Order("dirichlet", 2.0)),
    ],
)
def test_orders_are_read_as_a_manifest_spells_them(text: str, expected: Order) -> None:
    assert parse_order(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "IID", "shuffle", "dirichlet", "dirichlet()", "dirichlet(0)", "dirichlet(-1)", "dirichlet(1e999)",
     "dirichlet(nan)", "dirichlet(1.2.3)", "dirichlet(0.1", "iid(0.1)", "temporal "],
)  # fmt: skip
def test_other_orders_are_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"order must be arrival, iid, temporal or dirichlet\(ALPHA\)") as caught:
        parse_order(text)
    assert repr(text) in str(caught.value)


def test_two_splits_of_one_data_set_get_the_same_shares_of_each_class() -> None:
    train, validation = np.repeat(np.arange(4), 3000), np.repeat(np.arange(4), 1000)
    sites = [dirichlet_shares(labels, 3, 0.3, np.random.default_rng(5)) for labels in (train, validation)]
    for own_train, own_validation in zip(*sites, strict=True):
        shares = [
            np.bincount(labels[own], minlength=4) / np.bincount(labels)
            for labels, own in ((train, own_train), (validation, own_validation))
        ]
        np.testing.assert_allclose(shares[0], shares[1], atol=1e-3)
