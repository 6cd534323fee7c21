"""The short answer of a run: each method's means over the evaluation sets, and which method is best by how much."""

from dataclasses import dataclass

import polars as pl

from pipeline.coefficients.evidence import GENERALIST

IN_DOMAIN = "in-domain"
OUT_OF_DOMAIN = ("base-to-novel", "noise", "digital")


@dataclass(frozen=True, slots=True)
class MethodMeans:
    """One method over all evaluation sets that have labels; accuracies are fractions.

    ``mce`` is the mean Err over every condition but in-domain, ``ood`` the mean of the base-to-novel, noise and digital
    accuracies (DESIGN section 3); each is None where one of its parts is.
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


def _means(method: str, rows: pl.DataFrame) -> MethodMeans:
    conditions = [name for name in rows["condition"].unique(maintain_order=True).to_list() if name is not None]
    by_condition = {name: _mean(rows.filter(pl.col("condition") == name)["accuracy"]) for name in conditions}
    ood = pl.Series([by_condition.get(name) for name in OUT_OF_DOMAIN], dtype=pl.Float64)
    return MethodMeans(
        method=method,
        accuracy=_mean(rows["accuracy"]),
        balanced_accuracy=_mean(rows["balanced_accuracy"]),
        mce=_mean(rows.filter(pl.col("condition") != IN_DOMAIN)["err"]),
        ood=_mean(ood),
        by_condition=by_condition,
        collapsed_sets=rows.filter((pl.col("predicted_classes") == 1) & (pl.col("majority_rate") < 1)).height,
    )


def _mean(values: pl.Series) -> float | None:
    if not len(values) or values.null_count():
        return None
    mean = values.mean()
    return mean if isinstance(mean, float) else None
