"""Means of each method over the evaluation sets, and how far they are from those of generalist and expert."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.results.comparisons import PLAIN_MODELS
from pipeline.results.intervals import accuracy_intervals, apart, interval_of, mean_replicates, mean_values
from pipeline.results.resampling import Replicates

IN_DOMAIN = "in-domain"
OUT_OF_DOMAIN = ("base-to-novel", "noise", "digital")

ReplicatesBySet = Mapping[tuple[str, str], Replicates]
"""Replicates by evaluation set and method."""


@dataclass(frozen=True, slots=True)
class MethodMeans:
    """One method over all evaluation sets that have labels; accuracies are fractions.

    ``mce`` is the mean Err over the conditions other than in-domain, ``ood`` the mean of the base-to-novel, noise and
    digital accuracies (DESIGN section 3), each condition being the mean of its sets; each is None where one of its
    parts is.
    """

    method: str
    accuracy: float | None
    balanced_accuracy: float | None
    mce: float | None
    ood: float | None


def method_means(frame: pl.DataFrame) -> list[MethodMeans]:
    """Average the metrics (:func:`~pipeline.results.metrics.evaluate_run`) of each method, in the frame's order."""
    labelled = frame.filter(pl.col("samples") > 0)
    methods = frame["method"].unique(maintain_order=True).to_list()
    return [_means(method, labelled.filter(pl.col("method") == method)) for method in methods]


def summary_records(frame: pl.DataFrame, replicates: ReplicatesBySet) -> list[dict[str, Any]]:
    """Means of each method with intervals, and the differences of its mean accuracy to generalist and expert.

    Evaluation sets weigh alike. Intervals come from the mean over sets in each replicate: clusters that occur in
    several sets were drawn once for all. They are null where a set has none. Where a method was not scored on all
    labelled sets of ``frame`` nothing but ``evaluation_sets`` is given, and no difference to it: its means are over
    other sets than theirs.
    """
    labelled = frame.filter(pl.col("samples") > 0)
    every = labelled["evaluation_set"].unique(maintain_order=True).to_list()
    means = {found.method: found for found in method_means(frame)}
    described = frame.unique("method", keep="first", maintain_order=True).select("method", "label", "analysis_only")
    scored = dict(labelled.group_by("method").agg(pl.col("evaluation_set").n_unique()).iter_rows())
    references = [name for name in PLAIN_MODELS if scored.get(name) == len(every)]
    records: list[dict[str, Any]] = []
    for names in described.iter_rows(named=True):
        method = names["method"]
        record: dict[str, Any] = names | {"evaluation_sets": scored.get(method, 0)}
        if record["evaluation_sets"] == len(every):
            drawn = [replicates.get((name, method)) for name in every]
            known = [item for item in drawn if item is not None]
            record |= asdict(means[method])
            record |= accuracy_intervals(mean_replicates(known) if known and len(known) == len(drawn) else None)
            for reference in references:
                other = [replicates.get((name, reference)) for name in every]
                record[f"difference_{reference}"] = _subtract(means[method].accuracy, means[reference].accuracy)
                apart_R = mean_values(apart(*pair) for pair in zip(drawn, other, strict=True))
                record |= interval_of(f"difference_{reference}", apart_R)
        records.append(record)
    return records


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of values; None where one of them is, and of none."""
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    return float(np.mean(np.array(known, np.float64)))


def _means(method: str, rows: pl.DataFrame) -> MethodMeans:
    conditions = [name for name in rows["condition"].unique(maintain_order=True).to_list() if name is not None]
    accuracies = {name: _mean_in(rows, name, "accuracy") for name in conditions}
    return MethodMeans(
        method=method,
        accuracy=mean_of(rows["accuracy"]),
        balanced_accuracy=mean_of(rows["balanced_accuracy"]),
        mce=mean_of(_mean_in(rows, name, "err") for name in conditions if name != IN_DOMAIN),
        ood=mean_of(accuracies.get(name) for name in OUT_OF_DOMAIN),
    )


def _mean_in(rows: pl.DataFrame, condition: str, column: str) -> float | None:
    return mean_of(rows.filter(pl.col("condition") == condition)[column])


def _subtract(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
