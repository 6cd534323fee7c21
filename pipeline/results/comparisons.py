"""Paired comparisons of every method with the references, on each evaluation set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.evidence import EXPERT, GENERALIST
from pipeline.results.intervals import apart, interval_of
from pipeline.results.resampling import Replicates
from pipeline.results.samples import LabelledSet
from pipeline.statistics.multiple import FAMILY_WISE_ERROR, holm
from pipeline.statistics.paired import mcnemar

REFERENCES = (GENERALIST, EXPERT, "t3", "t3-batch")
PLAIN_MODELS = (GENERALIST, EXPERT)
"""References of the means over evaluation sets, and of wins and losses."""


def direction(low: float | None, high: float | None) -> int:
    """1 where the interval of a difference lies above 0, -1 where it lies below, 0 otherwise or without interval."""
    if low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def confirmed_direction(low: float | None, high: float | None, p_adjusted: float | None) -> int:
    """Direction of a difference on one evaluation set, 0 unless the paired test confirms it (adjusted p below 0.05)."""
    return direction(low, high) if p_adjusted is not None and p_adjusted < FAMILY_WISE_ERROR else 0


def comparison_records(
    item: LabelledSet,
    cluster_N: NDArray[np.int64],
    replicates: Mapping[str, Replicates],
    accuracies: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """One record for each reference that was scored and each other method, p-values adjusted within the reference.

    Images that either method rejected are left out of the test; ``difference`` is that of the two accuracies as the
    metrics have them. Its interval is null where both methods have collapsed on one class.
    """
    return [
        record
        for reference in REFERENCES
        if reference in item.methods
        for record in _against(item, reference, cluster_N, replicates, accuracies)
    ]


def _against(
    item: LabelledSet,
    reference: str,
    cluster_N: NDArray[np.int64],
    replicates: Mapping[str, Replicates],
    accuracies: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    reference_right = item.method(reference)
    for method in item.methods:
        if method == reference:
            continue
        right = item.method(method)
        both = (right >= 0) & (reference_right >= 0)
        test = mcnemar(right[both] == 1, reference_right[both] == 1, cluster_N[both])
        accuracy, accuracy_reference = accuracies[method], accuracies[reference]
        known = accuracy is not None and accuracy_reference is not None
        records.append(
            {
                "evaluation_set": item.name,
                "method": method,
                "reference": reference,
                "samples": int(both.sum()),
                "clusters": len(np.unique(cluster_N[both])),
                "discordant_method": test.discordant_first,
                "discordant_reference": test.discordant_second,
                "difference": accuracy - accuracy_reference if known else None,  # type: ignore[operator]
                **interval_of("difference", apart(replicates[method], replicates[reference])),
                "statistic": test.statistic,
                "p_value": test.p_value,
                "test": test.test,
            }
        )
    adjusted = holm([record["p_value"] for record in records])
    return [record | {"p_adjusted": float(value)} for record, value in zip(records, adjusted, strict=True)]
