"""Metrics by corruption and severity of one evaluation set, and the balanced errors that come of them."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.resampling import Replicates
from pipeline.results.samples import LabelledSet
from pipeline.statistics.bootstrap import percentile_interval
from pipeline.statistics.calibration import expected_calibration_error
from pipeline.statistics.corruption import balanced_error, relative_balanced_error


def level_records(item: LabelledSet, replicates: Mapping[str, Replicates]) -> dict[str, list[dict[str, Any]]]:
    """One record for each method and level with a severity: metrics as for the whole set, of that level's images."""
    generalist = _right_of_generalist(item)
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in item.methods}
    for position, (corruption, severity) in enumerate(item.levels):
        if severity is None:
            continue
        at_level = item.level_N == position
        error_generalist = None if generalist is None else _error(generalist[at_level])
        for method, name in enumerate(item.methods):
            chosen = at_level & (item.right_MN[method] >= 0)
            right = item.right_MN[method, chosen]
            error = _error(right)
            low, high = percentile_interval(replicates[name].accuracy_LR[position])
            found[name].append(
                {
                    "corruption": corruption,
                    "severity": severity,
                    "samples": len(right),
                    "accuracy": None if error is None else 1 - error,
                    "balanced_accuracy": _balanced_accuracy(right, item.label_N[chosen]),
                    "err": 100 * error / error_generalist if error is not None and error_generalist else None,
                    "ece": expected_calibration_error(item.confidence_MN[method, chosen], right.astype(np.bool_)),
                    "accuracy_low": low,
                    "accuracy_high": high,
                }
            )
    return found


def balanced_errors(item: LabelledSet, clean: LabelledSet | None) -> dict[str, dict[str, float | None]]:
    """BE and rBE of each method, with the generalist as reference; None where they cannot be had.

    ``clean`` is the evaluation set whose images this one corrupts; only those of its images count that occur here, by
    their cluster.
    """
    reference = _level_errors(item, GENERALIST)
    clean_reference = _clean_error(item, clean, GENERALIST)
    found: dict[str, dict[str, float | None]] = {}
    for method in item.methods:
        errors, clean_error = _level_errors(item, method), _clean_error(item, clean, method)
        be = balanced_error(errors, reference) if errors and reference else None
        relative = be is not None and clean_error is not None and clean_reference is not None
        rbe = relative_balanced_error(errors, clean_error, reference, clean_reference) if relative else None  # type: ignore[arg-type]
        found[method] = {"be": be, "rbe": rbe}
    return found


def _level_errors(item: LabelledSet, method: str) -> dict[str, list[float]] | None:
    """Balanced error by corruption and severity; None where the method has nothing for one of them."""
    if method not in item.methods or not item.levels:
        return None
    right_N = item.method(method)
    found: dict[str, list[float]] = defaultdict(list)
    for position, (corruption, _) in enumerate(item.levels):
        chosen = (item.level_N == position) & (right_N >= 0)
        accuracy = _balanced_accuracy(right_N[chosen], item.label_N[chosen])
        if accuracy is None:
            return None
        found[corruption].append(1 - accuracy)
    return dict(found)


def _clean_error(item: LabelledSet, clean: LabelledSet | None, method: str) -> float | None:
    if clean is None or method not in clean.methods:
        return None
    right_N = clean.method(method)
    chosen = clean.clusters.is_in(item.clusters.unique().implode()).to_numpy() & (right_N >= 0)
    accuracy = _balanced_accuracy(right_N[chosen], clean.label_N[chosen])
    return None if accuracy is None else 1 - accuracy


def _balanced_accuracy(right: NDArray[np.int8], label: NDArray[np.int32]) -> float | None:
    """Mean recall over the classes that occur, from which images are right."""
    if not len(label):
        return None
    total_C = np.bincount(label)
    right_C = np.bincount(label, weights=right)
    return float((right_C[total_C > 0] / total_C[total_C > 0]).mean())


def _error(right: NDArray[np.int8]) -> float | None:
    scored = right >= 0
    return float((right[scored] == 0).mean()) if scored.any() else None


def _right_of_generalist(item: LabelledSet) -> NDArray[np.int8] | None:
    return item.method(GENERALIST) if GENERALIST in item.methods else None
