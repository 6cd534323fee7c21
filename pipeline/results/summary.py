"""The short answer of a run: each method's means over the evaluation sets, and which method is best by how much."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.coefficients.evidence import EXPERT, GENERALIST
from pipeline.results.resampling import Replicates
from pipeline.statistics.bootstrap import percentile_interval

IN_DOMAIN = "in-domain"
OUT_OF_DOMAIN = ("base-to-novel", "noise", "digital")
COLLAPSE = "majority-collapse"
"""Mark of a method that predicts one class only for a set in which more than one occurs."""

ReplicatesBySet = Mapping[tuple[str, str], Replicates]
"""Replicates by evaluation set and method."""


@dataclass(frozen=True, slots=True)
class MethodMeans:
    """One method over all evaluation sets that have labels; accuracies are fractions.

    ``mce`` is the mean Err over the conditions other than in-domain, ``ood`` the mean of the base-to-novel, noise and
    digital accuracies (DESIGN section 3), each condition being the mean of its sets; each is None where one of its
    parts is. ``collapsed_sets`` are marked ``majority-collapse``.
    """

    method: str
    accuracy: float | None
    balanced_accuracy: float | None
    mce: float | None
    ood: float | None
    by_condition: dict[str, float | None]
    collapsed_sets: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Which method has the best mean accuracy; ``equals`` share it, ``points`` is the gain over the generalist."""

    best: MethodMeans
    equals: tuple[str, ...]
    points: float | None
    best_balanced: MethodMeans
    evaluation_sets: int


def method_means(frame: pl.DataFrame) -> list[MethodMeans]:
    """Average the metrics (:func:`~pipeline.results.metrics.evaluate_run`) of each method, in the frame's order."""
    labelled = frame.filter(pl.col("samples") > 0)
    methods = frame["method"].unique(maintain_order=True).to_list()
    return [_means(method, labelled.filter(pl.col("method") == method)) for method in methods]


def find_answer(frame: pl.DataFrame) -> Answer | None:
    """Find the method with the best mean accuracy, of those that need no labels; None where nothing is labelled."""
    ranked = [means for means in method_means(frame.filter(~pl.col("analysis_only"))) if means.accuracy is not None]
    if not ranked:
        return None
    best = max(ranked, key=lambda means: means.accuracy or 0.0)
    generalist = next((means.accuracy for means in ranked if means.method == GENERALIST), None)
    return Answer(
        best=best,
        equals=tuple(means.method for means in ranked if means.accuracy == best.accuracy and means is not best),
        points=None if generalist is None or best.accuracy is None else 100 * (best.accuracy - generalist),
        best_balanced=max(ranked, key=lambda means: means.balanced_accuracy or 0.0),
        evaluation_sets=frame.filter(pl.col("samples") > 0)["evaluation_set"].n_unique(),
    )


def summary_records(frame: pl.DataFrame, replicates: ReplicatesBySet) -> list[dict[str, Any]]:
    """Means of each method with intervals, and the differences of its mean accuracy to generalist and expert.

    Evaluation sets weigh alike. Intervals come from the mean over sets in each replicate: clusters that occur in
    several sets were drawn once for all. They are null where a set has none. Where a method was not scored on all
    labelled sets of ``frame`` nothing but ``evaluation_sets`` is given: its means could not be compared with others.
    """
    labelled = frame.filter(pl.col("samples") > 0)
    every = labelled["evaluation_set"].unique(maintain_order=True).to_list()
    means = {found.method: found for found in method_means(frame)}
    described = frame.unique("method", keep="first", maintain_order=True).select("method", "label", "analysis_only")
    accuracy = {method: _mean_over_sets(replicates, every, method, "accuracy_R") for method in means}
    records: list[dict[str, Any]] = []
    for names in described.iter_rows(named=True):
        method = names["method"]
        scored = labelled.filter(pl.col("method") == method)["evaluation_set"].n_unique()
        record: dict[str, Any] = names | {"evaluation_sets": scored}
        if scored == len(every):
            found = asdict(means[method])
            record |= {name: found[name] for name in ("accuracy", "balanced_accuracy", "mce", "ood")}
            balanced = _mean_over_sets(replicates, every, method, "balanced_accuracy_R")
            record |= interval_of("accuracy", accuracy[method]) | interval_of("balanced_accuracy", balanced)
            for reference in (GENERALIST, EXPERT):
                if reference in means:
                    difference = _subtract(means[method].accuracy, means[reference].accuracy)
                    record[f"difference_{reference}"] = difference
                    record |= interval_of(f"difference_{reference}", _apart(accuracy[method], accuracy[reference]))
        records.append(record)
    return records


def interval_of(name: str, replicates_R: NDArray[np.floating] | None) -> dict[str, float | None]:
    """Both ends of the interval as columns ``<name>_low`` and ``<name>_high``."""
    low, high = (None, None) if replicates_R is None else percentile_interval(replicates_R)
    return {f"{name}_low": low, f"{name}_high": high}


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
        by_condition=accuracies,
        collapsed_sets=rows.filter(pl.col("marks").list.contains(COLLAPSE)).height,
    )


def _mean_in(rows: pl.DataFrame, condition: str, column: str) -> float | None:
    return mean_of(rows.filter(pl.col("condition") == condition)[column])


def _mean_over_sets(
    replicates: ReplicatesBySet, evaluation_sets: list[str], method: str, metric: str
) -> NDArray[np.float64] | None:
    found = [replicates.get((name, method)) for name in evaluation_sets]
    if not found or any(item is None for item in found):
        return None
    return np.mean([getattr(item, metric).astype(np.float64) for item in found], axis=0)


def _apart(first_R: NDArray[np.float64] | None, second_R: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    return None if first_R is None or second_R is None else first_R - second_R


def _subtract(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
