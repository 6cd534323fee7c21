"""What must not be concluded from a report: choices among many, leaks, collapse, few images, one seed."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.marks import MARKS
from pipeline.results.report.results import EXPERT, IN_DOMAIN, Results
from pipeline.results.report.verdicts import listed, some_of
from pipeline.results.tables import decimal, whole

FEW_CLUSTERS = 200
"""Below this many independent images one image is worth half a percentage point or more."""
COLLAPSE = "majority-collapse"


def cautions(results: Results, row: Mapping[str, Any]) -> Iterable[str]:
    """One sentence for each; ``row`` is the best method's of ``Results.methods``."""
    ranked = results.methods.filter(~pl.col("analysis_only") & pl.col("accuracy").is_not_null()).height
    if ranked > 2:
        yield (
            f"{row['label']} has the largest of {ranked} means on these same images. The largest of many is partly "
            "luck; the intervals do not take that choice into account."
        )
    yield from _in_domain(results, row)
    yield from _marked(results)
    yield from _few_images(results)
    if results.unchecked:
        yield (
            f"Whether test images were seen in training was not checked ({listed(results.unchecked)}): "
            "run `pipeline check`, then this report again."
        )
    if results.unknown:
        yield f"Whether test images were seen in training is not known in full: {'; '.join(results.unknown)}."
    if results.failed:
        yield f"The study is not complete: {'; '.join(results.failed)}."
    if results.left_out:
        yield f"Left out, because their images were not at hand: {'; '.join(results.left_out)}."
    if max(map(len, results.seeds.values()), default=1) == 1:
        yield "One training seed: nothing here says how much another training of the expert would change."
    yield "Research software, not a medical device. Accuracy on test sets is no evidence of benefit to patients."


def _in_domain(results: Results, row: Mapping[str, Any]) -> Iterable[str]:
    """Name the in-domain sets on which the expert, whose field they are, is at least as good as the best method."""
    if row["method"] in {EXPERT, GENERALIST}:
        return
    inside = results.labelled.filter(pl.col("condition") == IN_DOMAIN)
    own, expert = (_accuracies(results, inside.filter(pl.col("method") == name)) for name in (row["method"], EXPERT))
    ahead = [name for name in own if name in expert and expert[name] >= own[name]]
    if ahead:
        yield f"In-domain the expert alone is at least as good on {some_of(ahead, list(expert))}."


def _accuracies(results: Results, rows: pl.DataFrame) -> dict[str, float]:
    return {
        results.name_of(found["study"], found["evaluation_set"]): found["accuracy"]
        for found in rows.iter_rows(named=True)
    }


def _marked(results: Results) -> Iterable[str]:
    """Repeat what the marks of the tables say of evaluation sets, and name the methods that have collapsed."""
    labelled = results.labelled
    for code, mark in MARKS.items():
        rows = labelled.filter(pl.col("marks").list.contains(code))
        if code == COLLAPSE:
            rows = rows.filter(~pl.col("analysis_only"))
        if not rows.height:
            continue
        sets = [
            results.name_of(*pair) for pair in rows.select("study", "evaluation_set").unique(maintain_order=True).rows()
        ]
        where = listed(sets)
        if code == COLLAPSE:
            methods = rows.select("method", "study").n_unique()
            where = f"{methods} method{'' if methods == 1 else 's'} on {where}"
        yield f"{mark.symbol} {mark.title.capitalize()}: {where}. {mark.explanation}"


def _few_images(results: Results) -> Iterable[str]:
    counted = results.labelled.with_columns(pl.coalesce("clusters", "samples").alias("count"))
    sets = counted.group_by("study", "evaluation_set", maintain_order=True).agg(pl.col("count").first())
    for study, name, count in sets.filter(pl.col("count") < FEW_CLUSTERS).iter_rows():
        yield (
            f"{results.name_of(study, name)} has {whole(count)} independent image{'' if count == 1 else 's'}: each is "
            f"worth {decimal(100 / count)} points, so small differences there mean nothing."
        )
