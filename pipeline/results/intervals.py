"""Intervals around figures that are computed replicate by replicate.

The strata of the bootstrap hold the class mix fixed, so a method that gives all images one class (*collapsed*) has the
same accuracy in every replicate. That is no certainty: such a method has no interval of its accuracy, and a difference
between two of them has none. A difference to a method that has not collapsed varies as that one does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.resampling import Replicates
from pipeline.statistics.bootstrap import percentile_interval

Values = NDArray[np.floating] | None


def interval_of(name: str, values_R: Values) -> dict[str, float | None]:
    """Both ends of the interval as columns ``<name>_low`` and ``<name>_high``; null without replicates [R]."""
    low, high = (None, None) if values_R is None else percentile_interval(values_R)
    return {f"{name}_low": low, f"{name}_high": high}


def metric_intervals(method: str, replicates: Mapping[str, Replicates]) -> dict[str, float | None]:
    """Intervals of one method on one evaluation set; Err is taken against the generalist of the same replicate.

    Null where nothing is labelled, for accuracies where the method has collapsed, and for Err where the generalist
    makes no error in one of the replicates, or both have collapsed. That of ECE lies high, and may leave out the ECE
    itself: resampling adds scatter of its own to every bin.
    """
    found, generalist = replicates.get(method), replicates.get(GENERALIST)
    if found is None:
        return {}
    return accuracy_intervals(found) | interval_of("ece", found.ece_R) | interval_of("err", err_of(found, generalist))


def accuracy_intervals(found: Replicates | None) -> dict[str, float | None]:
    """Intervals of both accuracies; null where there are no replicates, or those of a collapsed method."""
    if found is None or found.collapsed:
        return interval_of("accuracy", None) | interval_of("balanced_accuracy", None)
    return interval_of("accuracy", found.accuracy_R) | interval_of("balanced_accuracy", found.balanced_accuracy_R)


def apart(first: Replicates | None, second: Replicates | None) -> Values:
    """Difference in accuracy [R]; None where one has no replicates, or both have collapsed."""
    if first is None or second is None or (first.collapsed and second.collapsed):
        return None
    return first.accuracy_R.astype(np.float64) - second.accuracy_R.astype(np.float64)


def err_of(found: Replicates, generalist: Replicates | None) -> Values:
    """Err [R], NaN where the generalist makes no error; None without generalist, or where both have collapsed."""
    if generalist is None or (found.collapsed and generalist.collapsed):
        return None
    error_R, reference_R = (1 - item.accuracy_R.astype(np.float64) for item in (found, generalist))
    err_R = np.full(len(error_R), np.nan)
    np.divide(100 * error_R, reference_R, out=err_R, where=reference_R > 0)
    return err_R


def mean_values(values: Iterable[Values]) -> Values:
    """Mean of several figures, replicate by replicate; None of none, and where one of them is."""
    every = list(values)
    found = [item for item in every if item is not None]
    return np.mean(found, axis=0, dtype=np.float64) if found and len(found) == len(every) else None


def mean_replicates(found: Sequence[Replicates]) -> Replicates:
    """Means over seeds or evaluation sets, replicate by replicate; collapsed where one of them is."""
    metrics = [[getattr(item, name) for item in found] for name in ("accuracy_R", "balanced_accuracy_R", "ece_R")]
    accuracy_R, balanced_accuracy_R, ece_R = (np.mean(values, axis=0, dtype=np.float64) for values in metrics)
    return replace(
        found[0],
        collapsed=any(item.collapsed for item in found),
        accuracy_R=accuracy_R,
        balanced_accuracy_R=balanced_accuracy_R,
        ece_R=ece_R,
    )
