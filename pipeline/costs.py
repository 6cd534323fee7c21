"""The cost model: what an operation costs in seconds, fitted to measurements, and what a piece of work then costs.

Work is counted in operations: images through one plain model in full tiles, images alone in a forward, merges, and so
on. Its time is the sum of count times price, because on one device they run one after another.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

type Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds per operation, by the name that counts give it."""

    seconds: Mapping[str, float]

    def predict(self, counts: Counts) -> float:
        """Seconds that work takes; ValueError for an operation whose price is not known."""
        if unknown := sorted(name for name, count in counts.items() if count and name not in self.seconds):
            raise ValueError(f"no price is known for {', '.join(unknown)}")
        return sum(count * self.seconds[name] for name, count in counts.items() if count)


def fit_costs(measured: Sequence[tuple[Counts, float]]) -> CostModel:
    """Prices, none of them negative, whose predictions come nearest to the measured seconds.

    Least squares of the relative errors, so that short and long work count alike. Operations that no work has get no
    price; one that the work at hand cannot tell from more frequent ones costs nothing, and is in theirs.
    """
    names = _told_apart([counts for counts, _ in measured])
    weights = np.array([1 / seconds for _, seconds in measured])
    matrix = np.array([[float(counts.get(name, 0)) for name in names] for counts, _ in measured]) * weights[:, None]
    scale = matrix.max(axis=0)
    prices, _ = nnls(matrix / scale, np.ones(len(measured)))
    known = {name: 0.0 for counts, _ in measured for name, count in counts.items() if count}
    return CostModel(known | dict(zip(names, (prices / scale).tolist(), strict=True)))


def _told_apart(works: Sequence[Counts]) -> list[str]:
    """Operations, the most frequent first, whose counts are no combination of those before them."""
    totals: Counter[str] = Counter()
    for counts in works:
        totals.update({name: int(count) for name, count in counts.items() if count})
    chosen: list[str] = []
    for name, _ in totals.most_common():
        tried = np.array([[float(counts.get(other, 0)) for other in (*chosen, name)] for counts in works])
        if np.linalg.matrix_rank(tried) > len(chosen):
            chosen.append(name)
    return chosen
