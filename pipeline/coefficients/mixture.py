"""Mixture of Beta densities over λ: clusters of similar λ, as DaWin and the released T³ code form them.

Shapes: N values, D distinct cells, K components. λ is counted in cells of width 2^-16, each standing for its centre:
0 and 1, where a Beta density is zero or infinite, then lie inside the interval, an atom (T³'s λ' has one at 1) is a
cell with many samples, and nothing depends on the order of the samples. Sums are numpy's own, not a BLAS product,
whose last bits follow the number of threads.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CELLS = 2**16
# No component is narrower than this: neighbouring cells are then ten standard deviations apart, so that distinct values
# stay apart whatever their counts, and a density never grows without bound over an atom.
SMALLEST_VARIANCE = (0.1 / CELLS) ** 2
# A component with less than this share of the samples has none: one sample of a window is a far larger share.
SMALLEST_WEIGHT = 1e-12
LIKELIHOOD_CHANGE = 1e-6
MAX_ITERATIONS = 200
# The start is the best split of at most this many groups of neighbouring cells: all pairs of them are compared.
START_GROUPS = 512


@dataclass(frozen=True, slots=True)
class BetaMixture:
    """K Beta densities with their weights, in ascending order of their means; all [K]. K is 0 for no values at all."""

    weights: NDArray[np.float64]
    alpha: NDArray[np.float64]
    beta: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean of each component, [K]."""
        return self.alpha / (self.alpha + self.beta)

    def assign(self, lambdas: ArrayLike) -> NDArray[np.int64]:
        """Index [N] of the most probable component of each λ [N]; ValueError for λ outside [0, 1]."""
        cells = _cells(lambdas)
        if not len(cells):
            return cells
        if not len(self):
            raise ValueError("a mixture fitted to no values cannot assign any")
        distinct, position = np.unique(cells, return_inverse=True)
        return np.argmax(_log_joint(self, _centres(distinct)), axis=0)[position]


def fit_beta_mixture(lambdas: ArrayLike, clusters: int) -> BetaMixture:
    """Fit ``clusters`` Beta densities to λ [N] by expectation-maximisation, without random numbers.

    The start is the split of the sorted values with the least squared error; the M-step matches weighted moments; it
    stops when the mean log-likelihood settles, or after ``MAX_ITERATIONS``. With fewer distinct values than clusters
    each value is a component; components to which no value is assigned are dropped. ValueError for λ outside [0, 1]
    or ``clusters`` below 1.
    """
    if clusters < 1:
        raise ValueError(f"clusters must be at least 1, got {clusters}")
    cells, counts = np.unique(_cells(lambdas), return_counts=True)
    if not len(cells):
        return BetaMixture(*(np.empty(0) for _ in range(3)))
    centres, shares = _centres(cells), counts / counts.sum()
    mixture = _from_memberships(_start(centres, shares, min(clusters, len(cells))), centres, shares)
    before = -math.inf
    for _ in range(MAX_ITERATIONS):
        memberships, log_density = _expected(mixture, centres)
        likelihood = float((shares * log_density).sum())
        if abs(likelihood - before) < LIKELIHOOD_CHANGE:
            break
        before = likelihood
        mixture = _from_memberships(memberships, centres, shares)
    return _chosen(mixture, np.unique(mixture.assign(centres)))


def _expected(mixture: BetaMixture, centres_D: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """E-step: memberships [K, D], and log-density [D] of the whole mixture."""
    log_joint = _log_joint(mixture, centres_D)
    top = log_joint.max(axis=0)
    joint = np.exp(log_joint - top)
    total = joint.sum(axis=0)
    memberships: NDArray[np.float64] = joint / total
    return memberships, top + np.log(total)


def _log_joint(mixture: BetaMixture, centres_D: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm [K, D] of each component's weight times its density."""
    log_scale = [
        math.log(weight) + math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
        for weight, alpha, beta in zip(mixture.weights, mixture.alpha, mixture.beta, strict=True)
    ]
    powers = np.outer(mixture.alpha - 1.0, np.log(centres_D)) + np.outer(mixture.beta - 1.0, np.log1p(-centres_D))
    log_joint: NDArray[np.float64] = np.array(log_scale)[:, None] + powers
    return log_joint


def _from_memberships(
    memberships_KD: NDArray[np.float64], centres_D: NDArray[np.float64], shares_D: NDArray[np.float64]
) -> BetaMixture:
    """Method of moments; components that hold nothing are left out, the others ordered by mean.

    Where the moments ask for α or β below 1 the variance gives way: a density with two peaks, at 0 and at 1, would
    gather the stragglers of both ends into one cluster, whose mean is the λ of none of them.
    """
    mass = memberships_KD * shares_D
    mass = mass[mass.sum(axis=1) > SMALLEST_WEIGHT]
    weights = mass.sum(axis=1)
    means = (mass * centres_D).sum(axis=1) / weights
    squares = (mass * (centres_D - means[:, None]) ** 2).sum(axis=1) / weights
    matched = means * (1.0 - means) / np.maximum(squares, SMALLEST_VARIANCE) - 1.0
    concentration = np.maximum(matched, 1.0 / np.minimum(means, 1.0 - means))
    unordered = BetaMixture(weights / weights.sum(), means * concentration, (1.0 - means) * concentration)
    return _chosen(unordered, np.argsort(means, kind="stable"))


def _chosen(mixture: BetaMixture, components: NDArray[np.int64]) -> BetaMixture:
    weights = mixture.weights[components]
    return BetaMixture(weights / weights.sum(), mixture.alpha[components], mixture.beta[components])


def _start(centres_D: NDArray[np.float64], shares_D: NDArray[np.float64], clusters: int) -> NDArray[np.float64]:
    """Memberships [K, D], 0 or 1: the split of ascending values into consecutive runs with the least squared error."""
    groups = max(min(len(centres_D), START_GROUPS), clusters)
    edges = np.linspace(0, len(centres_D), groups + 1).astype(np.int64)
    cuts = edges[_best_cuts(_squared_errors(edges, centres_D, shares_D), clusters)]
    run = np.searchsorted(cuts, np.arange(len(centres_D)), side="right")
    return np.equal.outer(np.arange(clusters), run).astype(np.float64)


def _squared_errors(
    edges: NDArray[np.int64], centres_D: NDArray[np.float64], shares_D: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared error around its mean of the run from edge i up to edge j, at [i, j]; infinite where it is empty."""
    moments = np.cumsum([shares_D, shares_D * centres_D, shares_D * centres_D**2], axis=1)
    mass, total, squares = np.pad(moments, ((0, 0), (1, 0)))[:, edges]
    mass, total, squares = (column[None, :] - column[:, None] for column in (mass, total, squares))
    errors = np.full(mass.shape, np.inf)
    filled = np.triu(np.ones(mass.shape, np.bool), k=1)
    errors[filled] = np.maximum(squares[filled] - total[filled] ** 2 / mass[filled], 0.0)
    return errors


def _best_cuts(errors: NDArray[np.float64], runs: int) -> NDArray[np.int64]:
    """Edges at which to cut all into ``runs`` runs with the smallest sum of errors, by dynamic programming."""
    best, previous = errors[0], []
    for _ in range(runs - 1):
        candidates = best[:, None] + errors
        previous.append(np.argmin(candidates, axis=0))
        best = candidates.min(axis=0)
    cuts = [len(errors) - 1]
    for choice in reversed(previous):
        cuts.append(int(choice[cuts[-1]]))
    return np.array(cuts[:0:-1], np.int64)


def _cells(lambdas: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(lambdas, dtype=np.float64)
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise ValueError("λ must lie in [0, 1] to be clustered")
    return np.minimum(values * CELLS, CELLS - 1).astype(np.int64)


def _centres(cells: NDArray[np.int64]) -> NDArray[np.float64]:
    return (cells + 0.5) / CELLS
