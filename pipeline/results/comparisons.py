"""Paired comparisons of every method with the references, on each evaluation set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.evidence import EXPERT, GENERALIST
from pipeline.results.resampling import Replicates
from pipeline.results.samples import LabelledSet
from pipeline.statistics.bootstrap import percentile_interval
from pipeline.statistics.multiple import holm
from pipeline.statistics.paired import mcnemar

REFERENCES = (GENERALIST, EXPERT, "t3", "t3-batch")


def comparison_records(
    item: LabelledSet,
    cluster_N: NDArray[np.int64],
    replicates: Mapping[str, Replicates],
    accuracies: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """One record for each reference that was scored and each other method, p-values adjusted within the reference.

    Images that either method rejected are left out of the test; ``difference`` is that of the two accuracies as the
    metrics have them.
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
        drawn, drawn_reference = (replicates[name].accuracy_R.astype(np.float64) for name in (method, reference))
        low, high = percentile_interval(drawn - drawn_reference)
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
                "difference_low": low,
                "difference_high": high,
                "statistic": test.statistic,
                "p_value": test.p_value,
                "test": test.test,
            }
        )
    adjusted = holm([record["p_value"] for record in records])
    return [record | {"p_adjusted": float(value)} for record, value in zip(records, adjusted, strict=True)]
