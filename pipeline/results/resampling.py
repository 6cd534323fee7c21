"""Bootstrap replicates of every method on every evaluation set of a run, all from the same draws of clusters.

A cluster that occurs in several evaluation sets (a clean image and its corrupted versions) is drawn once for all of
them, so that means over evaluation sets and differences between methods have intervals of their own.

Shape legend: N labelled images, K clusters, R replicates, M methods, C classes, B confidence bins, L levels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.results.samples import LabelledSet
from pipeline.statistics.bootstrap import REPLICATES, Stratum, replicate_sums, stratify
from pipeline.statistics.calibration import BINS, confidence_bins
from pipeline.store.fingerprints import digest_json

BLOCK_VALUES = 1 << 24
"""Sums per cluster, and sums per replicate, that are in memory at a time; more methods are taken in turns."""


@dataclass(frozen=True, slots=True)
class Replicates:
    """Metrics of one method on one evaluation set in each replicate ([R]); accuracy by level [L, R].

    ``draws`` is a digest of the clusters that were drawn: replicates of equal ``draws`` come from the same draws, in
    whatever runs, and may be averaged or subtracted one by one. NaN where a replicate holds no image. Those of a run
    are float32, as they are stored. ``collapsed``: the method gives all images one class, so that its accuracy is the
    same in every replicate of the same class mix.
    """

    draws: str
    collapsed: bool
    accuracy_R: NDArray[np.floating]
    balanced_accuracy_R: NDArray[np.floating]
    ece_R: NDArray[np.floating]
    accuracy_LR: NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Clusters of all evaluation sets together: their strata, and the cluster of each image by evaluation set."""

    strata: tuple[Stratum, ...]
    count: int
    cluster_N: dict[str, NDArray[np.int64]]
    draws: dict[str, str]


def number_clusters(sets: Sequence[LabelledSet]) -> Clusters:
    """Number the clusters of all sets by name; strata are the classes of a cluster in each set that it occurs in."""
    images = [
        pl.DataFrame(
            {
                "name": item.clusters.cast(pl.String),
                "set": np.full(len(item.label_N), position),
                "label": item.label_N.astype(np.int64),
            }
        )
        for position, item in enumerate(sets)
    ]
    kinds = pl.format("{}:{}", "set", "label").unique().sort().str.join(",")
    every = pl.concat(images).group_by("name").agg(kind=kinds).sort("name")
    strata = stratify(every["name"].to_list(), every["kind"].rank("dense").to_list())
    seeds = np.empty(every.height, object)
    for stratum in strata:
        seeds[stratum.clusters_K] = f"{stratum.seed:064x}"
    numbers = every.select("name").with_row_index("cluster")
    cluster_N = {
        item.name: found.join(numbers, on="name", how="left", maintain_order="left")["cluster"]
        .to_numpy()
        .astype(np.int64)
        for item, found in zip(sets, images, strict=True)
    }
    draws = {name: digest_json(sorted(set(seeds[found]))) for name, found in cluster_N.items()}
    return Clusters(tuple(strata), every.height, cluster_N, draws)


def resample(item: LabelledSet, clusters: Clusters) -> dict[str, Replicates]:
    """Replicates of all methods on one evaluation set."""
    found: dict[str, Replicates] = {}
    for block in _blocks(item):
        features = _features(item, block, clusters)
        sums_MFR = replicate_sums(features, clusters.strata).reshape(len(block), -1, REPLICATES)
        for method, sums_FR in zip(block, sums_MFR, strict=True):
            found[item.methods[method]] = _replicates(sums_FR, item, item.methods[method], clusters.draws[item.name])
    return found


def _blocks(item: LabelledSet) -> Iterator[list[int]]:
    heaviest = max(_width(item) * REPLICATES, 5 * len(item.label_N))
    size = max(1, BLOCK_VALUES // heaviest)
    methods = list(range(len(item.methods)))
    for start in range(0, len(methods), size):
        yield methods[start : start + size]


def _width(item: LabelledSet) -> int:
    """Features of one method: right and scored by class, gap of confidence by bin, right and scored by level."""
    return 2 * item.classes + BINS + 2 * len(item.levels)


def _features(item: LabelledSet, methods: Sequence[int], clusters: Clusters) -> csr_array:
    """Sum of each feature over each cluster, as a sparse matrix [M·F, K]: an image has few features."""
    width, cluster_N = _width(item), clusters.cluster_N[item.name]
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for position, method in enumerate(methods):
        scored = np.flatnonzero(item.right_MN[method] >= 0)
        right = item.right_MN[method, scored].astype(np.float64)
        confidence = item.confidence_MN[method, scored]
        label, level = item.label_N[scored].astype(np.int64), item.level_N[scored]
        corrupted = np.flatnonzero(level >= 0)
        bins, by_level = 2 * item.classes, 2 * item.classes + BINS
        columns = [
            (label, scored, right),
            (item.classes + label, scored, np.ones(len(scored))),
            (bins + confidence_bins(confidence), scored, confidence.astype(np.float64) - right),
            (by_level + level[corrupted], scored[corrupted], right[corrupted]),
            (by_level + len(item.levels) + level[corrupted], scored[corrupted], np.ones(len(corrupted))),
        ]
        parts += [(position * width + feature, cluster_N[image], value) for feature, image, value in columns]
    feature, cluster, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return csr_array((value, (feature, cluster)), shape=(len(methods) * width, clusters.count))


def _replicates(sums_FR: NDArray[np.float64], item: LabelledSet, method: str, draws: str) -> Replicates:
    classes, levels = item.classes, len(item.levels)
    edges = np.cumsum([classes, classes, BINS, levels])
    right_CR, scored_CR, gap_BR, right_LR, scored_LR = np.split(sums_FR, edges)
    scored_R = scored_CR.sum(axis=0)
    recall_CR = _ratio(right_CR, scored_CR)
    occurring_R = np.isfinite(recall_CR).sum(axis=0)
    return Replicates(
        draws=draws,
        collapsed=method in item.collapsed,
        accuracy_R=_ratio(right_CR.sum(axis=0), scored_R).astype(np.float32),
        balanced_accuracy_R=_ratio(np.nansum(recall_CR, axis=0), occurring_R).astype(np.float32),
        ece_R=_ratio(np.abs(gap_BR).sum(axis=0), scored_R).astype(np.float32),
        accuracy_LR=_ratio(right_LR, scored_LR).astype(np.float32),
    )


def _ratio(numerator: NDArray[np.floating], denominator: NDArray[np.number]) -> NDArray[np.float64]:
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio
