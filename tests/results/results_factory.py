"""Frames of a report with invented figures, as evaluation would give them."""

from typing import Any

import polars as pl
from scipy.stats import norm

from pipeline.results.report.results import COMPARISONS, METHODS, SETS, SEVERITIES, Results, complete

Interval = tuple[float, float, float]
TESTED = 10
"""Methods that a p is adjusted for."""


def method_row(method: str, accuracy: float, **given: Any) -> dict[str, Any]:
    """A row of ``Results.methods``; a tuple gives a value with its interval."""
    row: dict[str, Any] = {"method": method, "label": method, "analysis_only": False, "evaluation_sets": 2}
    row |= {"accuracy": accuracy, "balanced_accuracy": accuracy}
    return row | spread(given)


def set_row(name: str, method: str, accuracy: float, **given: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"study": "study", "evaluation_set": name, "condition": "in-domain", "method": method}
    row |= {"label": method, "analysis_only": False, "seeds": 1, "samples": 1000, "clusters": 1000, "classes": 4}
    row |= {"predicted_classes": 4, "accuracy": accuracy, "marks": []}
    for reference in ("generalist", "expert"):
        if isinstance(difference := given.get(f"difference_{reference}"), tuple):
            row[f"p_adjusted_{reference}"] = likely_p(difference)
    return row | spread(given)


def comparison_row(name: str, method: str, reference: str, difference: Interval, **given: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"study": "study", "evaluation_set": name, "method": method, "reference": reference}
    row |= {"seed": 0, "test": "McNemar", "p_adjusted": likely_p(difference)}
    return row | spread({"difference": difference}) | given


def likely_p(difference: Interval) -> float:
    """The p that a normal test would give for this interval, adjusted as the smallest of :data:`TESTED`."""
    value, low, high = difference
    deviation = (high - low) / (2 * norm.ppf(0.975))
    return min(1.0, TESTED * 2 * float(norm.sf(abs(value) / deviation))) if deviation else 1.0


def spread(given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        found |= (
            dict(zip((name, f"{name}_low", f"{name}_high"), value, strict=True))
            if isinstance(value, tuple)
            else {name: value}
        )
    return found


def make_results(
    methods: list[dict[str, Any]],
    sets: list[dict[str, Any]],
    comparisons: list[dict[str, Any]] | None = None,
    severities: list[dict[str, Any]] | None = None,
    **given: Any,
) -> Results:
    def frame(rows: list[dict[str, Any]] | None, schema: Any) -> pl.DataFrame:
        return complete(pl.DataFrame(rows or [], infer_schema_length=None), schema)

    studies = tuple(dict.fromkeys(row["study"] for row in sets))
    return Results(
        studies=studies,
        seeds=given.pop("seeds", dict.fromkeys(studies, (0,))),
        sets=frame(sets, SETS),
        methods=frame(methods, METHODS),
        comparisons=frame(comparisons, COMPARISONS),
        severities=frame(severities, SEVERITIES),
        **given,
    )
