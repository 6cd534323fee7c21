"""Everything that is read of the predictions of a run, by evaluation set, with the replicates of its bootstrap."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.results.layout import PredictionFolder
from pipeline.results.resampling import Clusters, Replicates, number_clusters, resample
from pipeline.results.samples import LabelledSet, SampleIndex, number_levels, read_origin
from pipeline.results.tallies import Tally, tally_methods


@dataclass(frozen=True, slots=True)
class ScoredSet:
    """One evaluation set: counts and replicates by method, none of the latter where nothing is labelled."""

    tallies: Mapping[str, Tally]
    labelled: LabelledSet
    replicates: Mapping[str, Replicates]


def score_sets(folders: list[PredictionFolder]) -> tuple[dict[str, ScoredSet], Clusters]:
    """Read and check all predictions of ``folders``, and resample the clusters of all evaluation sets together."""
    tallied: dict[str, tuple[dict[str, Tally], LabelledSet]] = {}
    for name in dict.fromkeys(folder.evaluation_set for folder in folders):
        own = [folder for folder in folders if folder.evaluation_set == name]
        tallies, index = tally_methods(own)
        tallied[name] = tallies, _labelled_set(name, own, tallies, index)
    clusters = number_clusters([labelled for _, labelled in tallied.values()])
    scored = {
        name: ScoredSet(tallies, labelled, resample(labelled, clusters) if len(labelled.label_N) else {})
        for name, (tallies, labelled) in tallied.items()
    }
    return scored, clusters


def _labelled_set(
    name: str, folders: list[PredictionFolder], tallies: Mapping[str, Tally], index: SampleIndex
) -> LabelledSet:
    origin = read_origin(folders, index.row_N)
    levels, level_N = number_levels(origin)
    right_MN = np.full((len(tallies), len(index.row_N)), -1, np.int8)
    confidence_MN = np.zeros(right_MN.shape, np.float32)
    for position, tally in enumerate(tallies.values()):
        right_MN[position, tally.position_N] = tally.right_N
        confidence_MN[position, tally.position_N] = tally.confidence_N
    return LabelledSet(
        name=name,
        classes=len(next(iter(tallies.values())).predicted_C),
        methods=tuple(tallies),
        label_N=index.label_N,
        clusters=origin.select(pl.coalesce("group_id", "sample_id")).to_series(),
        levels=levels,
        level_N=level_N,
        right_MN=right_MN,
        confidence_MN=confidence_MN,
        collapsed=frozenset(method for method, tally in tallies.items() if tally.collapsed),
    )
