"""Groupings: how the samples of one window become batches that share a merged model.

A grouping sees the rows (addresses, ascending) and coefficients of one window and returns the batches in the order in
which stage two runs them. Which rows form a batch is a function of the data alone (DESIGN rule 3).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.mixture import fit_beta_mixture

Rows = NDArray[np.int64]
Lambdas = NDArray[np.float32]
Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """B batches over N rows, in columns.

    Batch b holds ``rows[offsets[b]:offsets[b + 1]]`` and is merged with ``lam[b]``; the λ of its rows span
    [``lambda_min[b]``, ``lambda_max[b]``]. Shapes: rows [N], offsets [B + 1], the rest [B].
    """

    rows: Rows
    offsets: Positions
    lam: Lambdas
    lambda_min: Lambdas
    lambda_max: Lambdas

    def __len__(self) -> int:
        return len(self.lam)

    @property
    def sizes(self) -> Positions:
        """Number of rows of each batch, [B]."""
        return np.diff(self.offsets)


def arrival(
    rows: Rows, lambdas: Lambdas, *, batch_size: int, first_address: int, order: Positions | None = None
) -> BatchPlan:
    """Consecutive addresses, ``batch_size`` a batch, holes skipped: the paper's T³_B; λ is the mean (Eq. 12).

    With ``order``, a permutation of the positions 0..N-1 (see ``streams``), the rows come in that order instead and
    ``batch_size`` of them make a batch, whatever their addresses.
    """
    positions, starts = arrival_batches(rows, batch_size=batch_size, first_address=first_address, order=order)
    arriving = lambdas[positions]
    return _plan(rows[positions], arriving, starts, lam=_means(arriving, starts))


def arrival_batches(
    rows: Rows, *, batch_size: int, first_address: int, order: Positions | None
) -> tuple[Positions, Positions]:
    """Positions [N] of the rows as they arrive, and where in that sequence each batch starts, [B]; as ``arrival``."""
    if order is None:
        keys = (rows - first_address) // batch_size
        return np.arange(len(rows), dtype=np.int64), np.flatnonzero(np.diff(keys, prepend=-1))
    assert np.array_equal(np.sort(order), np.arange(len(rows))), "order must be a permutation of the positions"
    return order, np.arange(0, len(rows), batch_size, dtype=np.int64)


def by_lambda(rows: Rows, lambdas: Lambdas, *, batch_size: int) -> BatchPlan:
    """Rows sorted by λ (ties by row), ``batch_size`` a batch; λ is the mean. With 1 a batch, each row's own λ."""
    order = np.lexsort((rows, lambdas))
    ascending = lambdas[order]
    starts = np.arange(0, len(order), batch_size, dtype=np.int64)
    return _plan(rows[order], ascending, starts, lam=_means(ascending, starts))


def within_tolerance(rows: Rows, lambdas: Lambdas, *, tolerance: float) -> BatchPlan:
    """Fewest batches such that no row's λ is further than ``tolerance`` from its batch's λ, the mid-range.

    Cut greedily from the smallest λ, which is optimal for intervals on a line; rows sorted by λ, ties by row.
    """
    order = np.lexsort((rows, lambdas))
    ascending = lambdas[order]
    starts = np.fromiter(_tolerance_starts(ascending, tolerance), dtype=np.int64)
    lam = _mid_range(_per_batch(np.minimum, ascending, starts), _per_batch(np.maximum, ascending, starts))
    return _plan(rows[order], ascending, starts, lam=lam)


def by_mixture(rows: Rows, lambdas: Lambdas, *, clusters: int) -> BatchPlan:
    """One batch per cluster of a Beta mixture over λ, at most ``clusters``; λ is the mean of the batch.

    Batches are ordered by λ, rows inside a batch by their own λ, ties by row.
    """
    order = np.lexsort((rows, lambdas))
    assigned = fit_beta_mixture(lambdas, clusters).assign(lambdas[order])
    batches = [order[assigned == cluster] for cluster in np.unique(assigned)]
    batches.sort(key=lambda members: float(lambdas[members].mean(dtype=np.float64)))
    sizes = np.array([len(members) for members in batches], np.int64)
    positions = np.concatenate([order[:0], *batches])
    starts = np.cumsum(sizes) - sizes
    return _plan(rows[positions], lambdas[positions], starts, lam=_means(lambdas[positions], starts))


def _tolerance_starts(ascending: Lambdas, tolerance: float) -> Iterator[int]:
    start = 0
    while start < len(ascending):
        yield start
        lowest = ascending[start]
        end = int(np.searchsorted(ascending, np.float64(lowest) + 2 * tolerance, side="right"))
        # The bound must hold for the float32 mid-range that is stored and merged with: give way by one value of λ
        # at a time until it does. The lowest value alone always fits.
        while ascending[end - 1] > lowest and not _fits(lowest, ascending[end - 1], tolerance):
            end = int(np.searchsorted(ascending, ascending[end - 1], side="left"))
        start = end


def _fits(lowest: np.float32, highest: np.float32, tolerance: float) -> bool:
    middle = np.float64(_mid_range(lowest, highest))
    return bool(max(middle - np.float64(lowest), np.float64(highest) - middle) <= tolerance)


def _mid_range[T: (np.float32, Lambdas)](lowest: T, highest: T) -> T:
    middle: T = ((np.float64(1) * lowest + highest) / 2).astype(np.float32)
    return middle


def _means(lambdas: Lambdas, starts: Positions) -> Lambdas:
    sizes = np.diff(np.append(starts, len(lambdas)))
    return (_per_batch(np.add, lambdas.astype(np.float64), starts) / sizes).astype(np.float32)


def _per_batch[D: np.generic](reduction: np.ufunc, values: NDArray[D], starts: Positions) -> NDArray[D]:
    if not len(starts):
        return values[:0]
    reduced: NDArray[D] = reduction.reduceat(values, starts)
    return reduced


def _plan(rows: Rows, lambdas: Lambdas, starts: Positions, *, lam: Lambdas) -> BatchPlan:
    return BatchPlan(
        rows=rows,
        offsets=np.append(starts, len(rows)).astype(np.int64),
        lam=lam,
        lambda_min=_per_batch(np.minimum, lambdas, starts),
        lambda_max=_per_batch(np.maximum, lambdas, starts),
    )
