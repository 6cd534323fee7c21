"""Metrics by corruption and severity of one evaluation set, and the balanced errors that come of them."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.intervals import interval_of
from pipeline.results.resampling import Clusters, Replicates, resample
from pipeline.results.samples import LabelledSet
from pipeline.statistics.calibration import expected_calibration_error
from pipeline.statistics.corruption import balanced_error, relative_balanced_error


def level_records(item: LabelledSet, replicates: Mapping[str, Replicates]) -> dict[str, list[dict[str, Any]]]:
    """One record for each method and level with a severity: metrics as for the whole set, of that level's images.

    An interval is null where every image of some classes is right and none of the others, as for a method that gives
    one class to all: strata hold such an accuracy fixed.
    """
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
            fixed = _is_fixed(right, item.label_N[chosen])
            found[name].append(
                {
                    "corruption": corruption,
                    "severity": severity,
                    "samples": len(right),
                    "accuracy": None if error is None else 1 - error,
                    "balanced_accuracy": _balanced_accuracy(right, item.label_N[chosen]),
                    "err": 100 * error / error_generalist if error is not None and error_generalist else None,
                    "ece": expected_calibration_error(item.confidence_MN[method, chosen], right.astype(np.bool_)),
                }
                | interval_of("accuracy", None if fixed else replicates[name].accuracy_LR[position])
            )
    return found


def clean_records(item: LabelledSet, clean: LabelledSet, clusters: Clusters) -> dict[str, list[dict[str, Any]]]:
    """Records with severity 0 of each method and corruption, as of :func:`level_records`, from the clean images.

    Of the evaluation set ``clean`` those images count whose cluster occurs among the images of the corruption: a
    corrupted set may hold some of the clean images only.
    """
    subsets = _clean_subsets(item, clean)
    shared = [method for method in item.methods if method in clean.methods]
    if not subsets or not shared:
        return {}
    images = np.concatenate([chosen for chosen, _ in subsets])
    methods = [clean.methods.index(method) for method in shared]
    found = LabelledSet(
        name=clean.name,
        classes=clean.classes,
        methods=tuple(shared),
        label_N=clean.label_N[images],
        clusters=clean.clusters.gather(images),
        levels=tuple((corruptions[0], 0) for _, corruptions in subsets),
        level_N=np.repeat(np.arange(len(subsets)), [len(chosen) for chosen, _ in subsets]),
        right_MN=clean.right_MN[np.ix_(methods, images)],
        confidence_MN=clean.confidence_MN[np.ix_(methods, images)],
    )
    own = replace(clusters, cluster_N={clean.name: clusters.cluster_N[clean.name][images]})
    alike = {corruptions[0]: corruptions for _, corruptions in subsets}
    return {
        method: [row | {"corruption": name} for row in rows for name in alike[row["corruption"]]]
        for method, rows in level_records(found, resample(found, own)).items()
    }


def _clean_subsets(item: LabelledSet, clean: LabelledSet) -> list[tuple[NDArray[np.int64], list[str]]]:
    """Positions of the clean images of each corruption that has severities; corruptions of the same images together."""
    found: dict[bytes, tuple[NDArray[np.int64], list[str]]] = {}
    for corruption in dict.fromkeys(name for name, severity in item.levels if severity is not None):
        levels = [place for place, (name, _) in enumerate(item.levels) if name == corruption]
        clusters = item.clusters.filter(np.isin(item.level_N, levels))
        chosen = np.flatnonzero(clean.clusters.is_in(clusters.unique().implode()).to_numpy())
        if len(chosen):
            found.setdefault(chosen.tobytes(), (chosen, []))[1].append(corruption)
    return list(found.values())


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
    return float(_recalls(right, label).mean()) if len(label) else None


def _is_fixed(right: NDArray[np.int8], label: NDArray[np.int32]) -> bool:
    """Whether some classes are all right and the others all wrong: their shares alone make the accuracy."""
    return set(_recalls(right, label).tolist()) == {0.0, 1.0}


def _recalls(right: NDArray[np.int8], label: NDArray[np.int32]) -> NDArray[np.float64]:
    total_C = np.bincount(label)
    right_C = np.bincount(label, weights=right)
    return right_C[total_C > 0] / total_C[total_C > 0]


def _error(right: NDArray[np.int8]) -> float | None:
    scored = right >= 0
    return float((right[scored] == 0).mean()) if scored.any() else None


def _right_of_generalist(item: LabelledSet) -> NDArray[np.int8] | None:
    return item.method(GENERALIST) if GENERALIST in item.methods else None
