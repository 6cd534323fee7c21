"""Brings what was evaluated, of one run or of several, to the frames that a report is made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.layout import FAILED, LEFT_OUT
from pipeline.results.marks import CHECKS_NAME, read_marks, read_overlaps, read_unknown, sort_codes
from pipeline.results.report.collapse import without_false_certainty
from pipeline.results.report.results import COMPARISONS, EXPERT, METHODS, SETS, SEVERITIES, Results, complete
from pipeline.results.studies import Study
from pipeline.store.ledger import MICRO_BATCH

PLACE = ("study", "evaluation_set", "method")


def load_results(study: Study, runs: Sequence[Path], run_jsons: Sequence[Mapping[str, Any]]) -> Results:
    """Put the frames of ``study``, made of ``runs``, and the marks that `pipeline check` left in them together.

    Where a method has collapsed, what its intervals would wrongly say is left out
    (:func:`~pipeline.results.report.collapse.without_false_certainty`).
    """
    manifests = {run: {"name": run.name, **run_json["manifest"]} for run, run_json in zip(runs, run_jsons, strict=True)}
    seeds: dict[str, list[int]] = {}
    marks: dict[tuple[str, str], list[str]] = {}
    for run, manifest in manifests.items():
        name = str(manifest["name"])
        seeds.setdefault(name, []).append(int(manifest.get("seeds", {}).get("training", 0)))
        for evaluation_set, codes in read_marks(run).items():
            marks.setdefault((name, evaluation_set), []).extend(codes)
    unchecked = [str(manifest["name"]) for run, manifest in manifests.items() if not (run / CHECKS_NAME).exists()]
    sets = _mark(complete(_with_tests(_with_counts(study), study.comparisons), SETS), marks)
    results = Results(
        studies=tuple(seeds),
        seeds={name: tuple(found) for name, found in seeds.items()},
        sets=sets,
        methods=with_only_test(complete(study.summary, METHODS), sets),
        comparisons=complete(study.comparisons, COMPARISONS),
        severities=severities_over_seeds(complete(study.by_severity, SEVERITIES)),
        unchecked=tuple(dict.fromkeys(unchecked)),
        unknown=tuple(
            dict.fromkeys(
                f"{manifest['name']}: {line}" for run, manifest in manifests.items() for line in read_unknown(run)
            )
        ),
        failed=tuple(dict.fromkeys(line for run_json in run_jsons for line in run_json.get(FAILED, []))),
        micro_batches=tuple(
            dict.fromkeys(
                f"{manifest['name']} ({size:,} images)"
                for manifest, run_json in zip(manifests.values(), run_jsons, strict=True)
                if (size := _smallest_micro_batch(run_json)) is not None
            )
        ),
        left_out=tuple(
            dict.fromkeys(
                f"{run_json['manifest'].get('name', run.name)}: {name} ({reason})"
                for run, run_json in zip(runs, run_jsons, strict=True)
                for name, reason in run_json.get(LEFT_OUT, {}).items()
            )
        ),
        overlaps=tuple(
            dict.fromkeys(
                (str(manifest["name"]), overlap)
                for run, manifest in manifests.items()
                for overlap in read_overlaps(run)
            )
        ),
    )
    return without_false_certainty(results)


def _smallest_micro_batch(run_json: Mapping[str, Any]) -> int | None:
    """What the ledgers of both stages say of memory that ran out."""
    stages = run_json.get("ledger", {})
    ledgers = [stages.get("precompute", {}), *stages.get("infer", {}).values()]
    return min((ledger[MICRO_BATCH] for ledger in ledgers if MICRO_BATCH in ledger), default=None)


def with_only_test(methods: pl.DataFrame, sets: pl.DataFrame) -> pl.DataFrame:
    """Give means of a single labelled evaluation set the p of that set; a mean of several sets has no test."""
    labelled = sets.filter(pl.col("samples") > 0)
    if labelled.select("study", "evaluation_set").n_unique() != 1:
        return methods
    names = [f"p_adjusted_{reference}" for reference in (GENERALIST, EXPERT)]
    return methods.drop(names).join(labelled.select("method", *names), on="method", how="left", maintain_order="left")


def severities_over_seeds(frame: pl.DataFrame) -> pl.DataFrame:
    """Average accuracy by severity over the seeds of a study (:data:`SEVERITIES`).

    Of several seeds the standard deviation is given (n-1) and no interval; a single seed keeps its interval.
    """
    place = (*PLACE, "corruption", "severity")
    single = pl.len() == 1
    grouped = frame.group_by(place, maintain_order=True).agg(
        *(pl.col(name).first() for name in ("condition", "label", "analysis_only", "samples")),
        *(pl.col(name).mean() for name in ("accuracy", "balanced_accuracy", "err", "ece")),
        *(pl.when(single).then(pl.col(name).first()).alias(name) for name in ("accuracy_low", "accuracy_high")),
        pl.col("accuracy").std().alias("accuracy_sd"),
    )
    return complete(grouped, SEVERITIES)


def _with_counts(study: Study) -> pl.DataFrame:
    """Add the images that are not scored, which are the same for all seeds unless one rejected others: the most."""
    counts = study.frame.group_by(PLACE).agg(pl.col("unlabelled", "rejected").max())
    kept = [name for name in study.over_seeds.columns if name not in {"unlabelled", "rejected"}]
    return study.over_seeds.select(kept).join(counts, on=PLACE, how="left", maintain_order="left")


def _with_tests(sets: pl.DataFrame, comparisons: pl.DataFrame) -> pl.DataFrame:
    """Add the largest p over seeds against generalist and expert where the study has not got it."""
    for reference in (GENERALIST, EXPERT):
        name = f"p_adjusted_{reference}"
        if name not in sets.columns:
            against = comparisons.filter(pl.col("reference") == reference)
            largest = against.group_by(PLACE).agg(pl.col("p_adjusted").max().alias(name))
            sets = sets.join(largest, on=PLACE, how="left", maintain_order="left")
    return sets


def _mark(sets: pl.DataFrame, marks: Mapping[tuple[str, str], Sequence[str]]) -> pl.DataFrame:
    """Add the marks of a whole evaluation set to those of every method on it."""
    rows = zip(sets["study"], sets["evaluation_set"], sets["marks"].to_list(), strict=True)
    joined = [sort_codes([*(own or ()), *marks.get((study, name), ())]) for study, name, own in rows]
    return sets.with_columns(pl.Series("marks", joined, dtype=pl.List(pl.String)))
