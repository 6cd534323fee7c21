"""What must not be concluded from a report: choices among many, leaks, collapse, few images, one seed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.marks import COLLAPSE, MARKS, Overlap
from pipeline.results.report.collapse import collapsed_methods
from pipeline.results.report.results import EXPERT, IN_DOMAIN, Results
from pipeline.results.report.verdicts import count_seeds, listed, some_of
from pipeline.results.tables import decimal, whole

FEW_CLUSTERS = 200
"""Below this many independent images one image is worth half a percentage point or more."""


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
    if results.micro_batches:
        yield (
            f"Memory ran out and tiles were scored in pieces: {'; '.join(results.micro_batches)}. Forward calls are "
            "more and smaller there, so that costs in units of B do not compare; logits may differ in the last bits."
        )
    if seeds := count_seeds(results):
        yield (
            f"Figures are means over {seeds}. Their intervals are about which images were drawn, not about training: "
            "the standard deviation over seeds, after ±, says how much another training changes."
        )
    else:
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
    """Repeat what the marks of the tables say: of evaluation sets with counts, of methods that collapsed with names."""
    for code, mark in MARKS.items():
        where = collapsed_methods(results) if code == COLLAPSE else _marked_sets(results, code)
        if found := list(where):
            corrupted = any(overlap.code == code and overlap.through_base for _, overlap in results.overlaps)
            clean = " Corrupted images are counted by their clean ones." if corrupted else ""
            yield f"{mark.symbol} {mark.title.capitalize()}: {'; '.join(found)}.{clean} {mark.explanation}"


def _marked_sets(results: Results, code: str) -> Iterable[str]:
    """Evaluation sets with a mark: how many of their images, and where these were found again."""
    rows = results.labelled.filter(pl.col("marks").list.contains(code))
    for study, name in rows.select("study", "evaluation_set").unique(maintain_order=True).rows():
        own = [
            overlap
            for place, overlap in results.overlaps
            if (place, overlap.evaluation_set, overlap.code) == (study, name, code)
        ]
        counts = ", ".join(_counted(own))
        yield f"{results.name_of(study, name)}, {counts}" if counts else results.name_of(study, name)


def _counted(overlaps: Sequence[Overlap]) -> Iterable[str]:
    """A count for each set that images were found in, with the models that share it."""
    models: dict[tuple[Any, ...], list[str]] = {}
    for found in overlaps:
        key = (found.count, found.images, found.where)
        models.setdefault(key, []).append(found.model)
    for (count, images, where), names in models.items():
        place = f" ({where} of {' and '.join(dict.fromkeys(names))})" if where else ""
        yield f"{whole(count)} of {whole(images)} images{place}"


def _few_images(results: Results) -> Iterable[str]:
    counted = results.labelled.with_columns(pl.coalesce("clusters", "samples").alias("count"))
    sets = counted.group_by("study", "evaluation_set", maintain_order=True).agg(pl.col("count").first())
    for study, name, count in sets.filter(pl.col("count") < FEW_CLUSTERS).iter_rows():
        yield (
            f"{results.name_of(study, name)} has {whole(count)} independent image{'' if count == 1 else 's'}: each is "
            f"worth {decimal(100 / count)} points, so small differences there mean nothing."
        )
