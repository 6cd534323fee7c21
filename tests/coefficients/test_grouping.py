"""Oracles: dictionaries of rows, float64 means, and a search over all ways to cut a small set into batches."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.coefficients.grouping import BatchPlan, arrival, by_lambda, by_mixture, within_tolerance

Samples = tuple[np.ndarray, np.ndarray]
FIRST = 512


@st.composite
def window(draw: st.DrawFn, largest: int = 60) -> Samples:
    """Ascending addresses with holes, from 512, and a coefficient each; equal ones are likely."""
    addresses = draw(st.sets(st.integers(FIRST, FIRST + 100), max_size=largest))
    unit = st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
    lambdas = draw(st.lists(unit, min_size=len(addresses), max_size=len(addresses)))
    return np.array(sorted(addresses), np.int64), np.array(lambdas, np.float32)


def batches_of(plan: BatchPlan) -> list[list[int]]:
    return [plan.rows[a:b].tolist() for a, b in zip(plan.offsets[:-1], plan.offsets[1:], strict=True)]


def assert_columns_describe_the_batches(plan: BatchPlan, samples: Samples) -> None:
    rows, lambdas = samples
    lam_of = dict(zip(rows.tolist(), lambdas.tolist(), strict=True))
    batches = batches_of(plan)
    assert sorted(row for batch in batches for row in batch) == rows.tolist(), "every row exactly once"
    assert [len(batch) for batch in batches] == plan.sizes.tolist()
    assert all(batches), "no batch is empty"
    assert plan.lambda_min.tolist() == [min(lam_of[row] for row in batch) for batch in batches]
    assert plan.lambda_max.tolist() == [max(lam_of[row] for row in batch) for batch in batches]
    for column in (plan.lam, plan.lambda_min, plan.lambda_max):
        assert column.dtype == np.float32
    assert plan.rows.dtype == plan.offsets.dtype == np.int64


def assert_lambda_is_the_mean(plan: BatchPlan, samples: Samples) -> None:
    lam_of = dict(zip(*(column.tolist() for column in samples), strict=True))
    for lam, batch in zip(plan.lam, batches_of(plan), strict=True):
        exact = float(np.mean(np.array([lam_of[row] for row in batch], np.float64)))
        assert abs(float(lam) - exact) <= np.spacing(np.float32(exact)) / 2 * 1.001


@given(window(), st.integers(1, 40))
def test_arrival_batches_are_fixed_address_ranges(samples: Samples, batch_size: int) -> None:
    plan = arrival(*samples, batch_size=batch_size, first_address=FIRST)
    by_range: dict[int, list[int]] = {}
    for row in samples[0].tolist():
        by_range.setdefault((row - FIRST) // batch_size, []).append(row)
    assert batches_of(plan) == [by_range[key] for key in sorted(by_range)]
    assert_columns_describe_the_batches(plan, samples)
    assert_lambda_is_the_mean(plan, samples)


def test_a_hole_shifts_no_later_batch() -> None:
    rows = np.arange(FIRST, FIRST + 12)
    lambdas = np.linspace(0, 1, 12, dtype=np.float32)
    kept = rows != FIRST + 1
    whole = batches_of(arrival(rows, lambdas, batch_size=4, first_address=FIRST))
    holed = batches_of(arrival(rows[kept], lambdas[kept], batch_size=4, first_address=FIRST))
    assert holed[1:] == whole[1:]
    assert holed[0] == [FIRST, FIRST + 2, FIRST + 3]


def test_a_range_without_rows_makes_no_batch() -> None:
    rows = np.array([FIRST, FIRST + 9])
    plan = arrival(rows, np.array([0.25, 0.75], np.float32), batch_size=4, first_address=FIRST)
    assert batches_of(plan) == [[FIRST], [FIRST + 9]]
    assert plan.lam.tolist() == [0.25, 0.75]


@given(window(), st.integers(1, 40), st.randoms(use_true_random=False))
def test_reordered_rows_are_cut_along_the_stream_whatever_their_addresses(
    samples: Samples, batch_size: int, random: object
) -> None:
    order = list(range(len(samples[0])))
    random.shuffle(order)  # type: ignore[attr-defined]
    plan = arrival(*samples, batch_size=batch_size, first_address=FIRST, order=np.array(order, np.int64))
    stream = [int(samples[0][position]) for position in order]
    assert batches_of(plan) == [stream[i : i + batch_size] for i in range(0, len(stream), batch_size)]
    assert_columns_describe_the_batches(plan, samples)
    assert_lambda_is_the_mean(plan, samples)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_an_order_that_would_lose_or_repeat_a_row_is_a_defect(order: list[int]) -> None:
    rows = np.arange(FIRST, FIRST + 3)
    with pytest.raises(AssertionError, match="permutation"):
        arrival(rows, np.zeros(3, np.float32), batch_size=2, first_address=FIRST, order=np.array(order))


@given(window(), st.integers(1, 40))
def test_lambda_batches_are_consecutive_in_lambda_and_ties_go_by_row(samples: Samples, batch_size: int) -> None:
    plan = by_lambda(*samples, batch_size=batch_size)
    expected = [row for _, row in sorted(zip(samples[1].tolist(), samples[0].tolist(), strict=True))]
    assert plan.rows.tolist() == expected
    assert all(size == batch_size for size in plan.sizes[:-1])
    assert_columns_describe_the_batches(plan, samples)
    assert_lambda_is_the_mean(plan, samples)


@given(window())
def test_with_one_row_a_batch_each_row_keeps_its_own_lambda(samples: Samples) -> None:
    plan = by_lambda(*samples, batch_size=1)
    lam_of = dict(zip(*(column.tolist() for column in samples), strict=True))
    assert plan.lam.tolist() == [lam_of[row] for row in plan.rows.tolist()]


def test_the_mean_is_taken_in_float64() -> None:
    lambdas = np.array([1.0] + [2.0**-30] * 4096, np.float32)
    plan = by_lambda(np.arange(len(lambdas)), lambdas, batch_size=len(lambdas))
    assert plan.lam[0] == np.float32((1.0 + 4096 * 2.0**-30) / 4097)


@settings(max_examples=300)
@given(window(), st.floats(0, 1))
@example((np.arange(2), np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)), 2.0**-25)
def test_no_row_is_further_from_its_stored_lambda_than_the_tolerance(samples: Samples, tolerance: float) -> None:
    plan = within_tolerance(*samples, tolerance=tolerance)
    assert_columns_describe_the_batches(plan, samples)
    stored = plan.lam.astype(np.float64)
    assert (np.abs(plan.lambda_min - stored) <= tolerance).all()
    assert (np.abs(plan.lambda_max - stored) <= tolerance).all()
    expected = [row for _, row in sorted(zip(samples[1].tolist(), samples[0].tolist(), strict=True))]
    assert plan.rows.tolist() == expected


@given(window())
def test_a_tolerance_of_zero_gives_a_batch_per_distinct_lambda(samples: Samples) -> None:
    plan = within_tolerance(*samples, tolerance=0.0)
    assert plan.lam.tolist() == sorted(set(samples[1].tolist()))


@given(window())
def test_a_tolerance_of_one_gives_a_single_batch(samples: Samples) -> None:
    assert len(within_tolerance(*samples, tolerance=1.0)) == min(1, len(samples[0]))


def set_partitions(items: list[float]) -> Iterator[list[list[float]]]:
    if not items:
        yield []
        return
    for partition in set_partitions(items[1:]):
        yield [[items[0]], *partition]
        for position, block in enumerate(partition):
            yield [*partition[:position], [items[0], *block], *partition[position + 1 :]]


def fewest_batches(lambdas: np.ndarray, tolerance: float) -> int:
    """Fewest batches over all ways to cut, each batch being represented by the float32 middle of its extremes."""

    def fits(block: list[float]) -> bool:
        middle = float(np.float32((min(block) + max(block)) / 2))
        return all(abs(lam - middle) <= tolerance for lam in block)

    partitions = set_partitions([float(lam) for lam in lambdas])
    return min(len(blocks) for blocks in partitions if all(map(fits, blocks)))


@pytest.mark.parametrize("seed", range(40))
def test_there_are_as_few_batches_as_the_tolerance_allows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    if seed % 2:
        lambdas, tolerance = rng.random(7).astype(np.float32), float(rng.uniform(0.01, 0.3))
    else:
        # Equal spacing puts many rows exactly at the edge of the tolerance.
        lambdas, tolerance = (rng.integers(0, 20, 7) / 20).astype(np.float32), float(rng.integers(1, 8) / 40)
    plan = within_tolerance(np.arange(7), lambdas, tolerance=tolerance)
    assert len(plan) == fewest_batches(lambdas, tolerance)


@given(window(), st.integers(1, 6))
def test_mixture_batches_are_ordered_by_lambda_inside_and_out(samples: Samples, clusters: int) -> None:
    plan = by_mixture(*samples, clusters=clusters)
    assert len(plan) <= clusters
    assert_columns_describe_the_batches(plan, samples)
    assert_lambda_is_the_mean(plan, samples)
    assert (np.diff(plan.lam) >= 0).all()
    lam_of = dict(zip(*(column.tolist() for column in samples), strict=True))
    for batch in batches_of(plan):
        assert batch == sorted(batch, key=lambda row: (lam_of[row], row))


def test_each_cluster_of_lambda_is_one_batch() -> None:
    """T³'s λ': generalist confident, none, expert confident; the rows are dealt out over the three in turn."""
    rng = np.random.default_rng(0)
    rows = np.arange(FIRST, FIRST + 3000)
    lambdas = np.select(
        [rows % 3 == 0, rows % 3 == 1], [rng.uniform(0, 0.16, 3000), rng.uniform(0.5, 0.66, 3000)], 1.0
    ).astype(np.float32)
    plan = by_mixture(rows, lambdas, clusters=3)
    assert [sorted(batch) for batch in batches_of(plan)] == [rows[rows % 3 == i].tolist() for i in range(3)]
    assert plan.lam[2] == 1.0


def test_a_mixture_has_no_more_batches_than_distinct_lambdas() -> None:
    lambdas = np.array([1.0, 0.25, 1.0, 0.25], np.float32)
    plan = by_mixture(np.arange(4), lambdas, clusters=5)
    assert batches_of(plan) == [[1, 3], [0, 2]]
    assert plan.lam.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    "group",
    [
        lambda rows, lambdas: arrival(rows, lambdas, batch_size=4, first_address=0),
        lambda rows, lambdas: arrival(rows, lambdas, batch_size=4, first_address=0, order=np.empty(0, np.int64)),
        lambda rows, lambdas: by_lambda(rows, lambdas, batch_size=4),
        lambda rows, lambdas: by_mixture(rows, lambdas, clusters=3),
        lambda rows, lambdas: within_tolerance(rows, lambdas, tolerance=0.1),
    ],
    ids=["arrival", "arrival-ordered", "by_lambda", "by_mixture", "within_tolerance"],
)
def test_no_rows_make_no_batches(group: Callable[[np.ndarray, np.ndarray], BatchPlan]) -> None:
    plan = group(np.empty(0, np.int64), np.empty(0, np.float32))
    assert len(plan) == 0
    assert plan.offsets.tolist() == [0]
    assert plan.sizes.tolist() == []


@given(window(), st.floats(0.001, 0.2), st.randoms(use_true_random=False))
def test_the_plan_depends_on_rows_and_lambdas_not_on_their_order(
    samples: Samples, tolerance: float, random: object
) -> None:
    order = list(range(len(samples[0])))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = samples[0][order], samples[1][order]
    assert batches_of(by_lambda(*shuffled, batch_size=8)) == batches_of(by_lambda(*samples, batch_size=8))
    assert batches_of(by_mixture(*shuffled, clusters=3)) == batches_of(by_mixture(*samples, clusters=3))
    tolerant = within_tolerance(*shuffled, tolerance=tolerance)
    assert batches_of(tolerant) == batches_of(within_tolerance(*samples, tolerance=tolerance))
