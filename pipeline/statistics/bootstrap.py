"""Stratified bootstrap over clusters: images that belong together (one patient, one base image) are drawn together.

Clusters are drawn with replacement inside their stratum, as many as it has. A replicate thereby has about the class mix
of the set, and exactly it where a stratum's clusters are all images of one class; only clusters that are alone of their
kind, which share a stratum, can leave a replicate without a class. With the class mix held fixed, a model that predicts
one class for everything has an accuracy without any scatter: that says nothing of how sure its accuracy is.

All figures come from the same draws: a replicate is a vector of counts, one for each cluster, and what is summed over
samples becomes a product of those counts with sums per cluster. Differences and means over evaluation sets are then
taken replicate by replicate, which keeps their correlation. Percentile intervals after Efron and Tibshirani (1993);
clusters as the unit of resampling after Field and Welsh (2007).

Shape legend: K clusters, R replicates, F features (what is summed).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

REPLICATES = 1_000
CONFIDENCE = 0.95
SEED = 20_251_027
"""Every draw comes from this seed and the names of the clusters, so that an evaluation can be repeated to the bit."""

DECIMALS = 6
"""Of an interval's ends: the replicates are stored as float32, whose residues must not decide the sign of an end."""

COUNT_BYTES = 32 << 20
"""Counts that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """Clusters that are drawn among one another: their positions (int64 [K_s]), and a seed made from their names.

    Strata of the same clusters have the same draws, in whatever run they occur.
    """

    clusters_K: NDArray[np.int64]
    seed: int


def stratify(names: Sequence[str], kinds: Sequence[int]) -> list[Stratum]:
    """Group K clusters, by name in ascending order, into strata of equal kind.

    A cluster that is the only one of its kind could never be drawn more or less than once: all such clusters make up
    one stratum.
    """
    kind_K = np.asarray(kinds, np.int64)
    found, inverse, sizes = np.unique(kind_K, return_inverse=True, return_counts=True)
    stratum_K = np.where(sizes[inverse] > 1, inverse, len(found))
    order = np.argsort(stratum_K, kind="stable")
    edges = np.flatnonzero(np.diff(stratum_K[order])) + 1
    groups = np.split(order, edges) if len(order) else []
    return [Stratum(group, _seed([names[cluster] for cluster in group])) for group in groups]


def draw_counts(strata: Sequence[Stratum], replicates: int = REPLICATES) -> Iterator[NDArray[np.float64]]:
    """How often each cluster is drawn, as chunks [K, r] of at most 32 MB whose r add up to ``replicates``."""
    clusters = sum(len(stratum.clusters_K) for stratum in strata)
    generators = [np.random.default_rng([SEED, stratum.seed]) for stratum in strata]
    chunk = max(1, COUNT_BYTES // (8 * max(1, clusters)))
    for start in range(0, replicates, chunk):
        width = min(chunk, replicates - start)
        counts_KR = np.empty((clusters, width))
        for stratum, generator in zip(strata, generators, strict=True):
            size = len(stratum.clusters_K)
            drawn = generator.integers(0, size, (width, size)) + size * np.arange(width)[:, None]
            counts_KR[stratum.clusters_K] = np.bincount(drawn.ravel(), minlength=width * size).reshape(width, size).T
        yield counts_KR


def replicate_sums(
    features_FK: csr_array, strata: Sequence[Stratum], replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """Sums [F, R] of every feature in every replicate, from its sum over each cluster (sparse [F, K])."""
    sums_FR = np.empty((features_FK.shape[0], replicates))
    start = 0
    for counts_KR in draw_counts(strata, replicates):
        sums_FR[:, start : start + counts_KR.shape[1]] = features_FK @ counts_KR
        start += counts_KR.shape[1]
    return sums_FR


def percentile_interval(replicates: NDArray[np.floating]) -> tuple[float | None, float | None]:
    """95 % percentile interval of replicates [R] to 6 decimals; None where any of them is not finite."""
    values = np.asarray(replicates, np.float64)
    if not len(values) or not np.isfinite(values).all():
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return round(float(low), DECIMALS) + 0.0, round(float(high), DECIMALS) + 0.0


def _seed(names: Sequence[str]) -> int:
    digest = hashlib.sha256()
    for name in names:
        encoded = name.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return int.from_bytes(digest.digest())
