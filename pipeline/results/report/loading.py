"""Frames of a report from run directories: metrics over seeds, means of methods, paired tests, severities."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.results.marks import CHECKS_NAME, read_marks, sort_codes
from pipeline.results.report.results import (
    COMPARISONS,
    METHODS,
    SETS,
    SEVERITIES,
    Results,
    Schema,
    complete,
    means_of_sets,
    seeds_of,
)
from pipeline.store.tables import read_table

WITH_INTERVALS = ("accuracy", "balanced_accuracy", "macro_auc", "ece", "err")
AVERAGED = (*WITH_INTERVALS, "be", "rbe", "mean_lambda")
INTERVALS = tuple(f"{name}_{end}" for name in WITH_INTERVALS for end in ("low", "high"))
METRICS = {name: kind for name, kind in SETS.items() if name not in {"study", "seeds"}}
PLACE = ("study", "evaluation_set", "method")


def load_results(
    runs: Sequence[Path], run_jsons: Sequence[Mapping[str, Any]], metrics: Sequence[pl.DataFrame]
) -> Results:
    """Put the frames of ``runs`` together; runs of one manifest are seeds of one another and are averaged."""
    manifests = [{"name": run.name, **run_json["manifest"]} for run, run_json in zip(runs, run_jsons, strict=True)]
    marked = [_mark(complete(frame, METRICS), read_marks(run)) for run, frame in zip(runs, metrics, strict=True)]
    sets = over_seeds(pl.concat([_tag(*pair) for pair in zip(marked, manifests, strict=True)]))
    summaries = [_read(run, "summary") for run in runs]
    return Results(
        studies=tuple(dict.fromkeys(str(manifest["name"]) for manifest in manifests)),
        seeds=seeds_of(manifests),
        sets=sets,
        methods=complete(summaries[0], METHODS) if len(runs) == 1 and summaries[0].height else means_of_sets(sets),
        comparisons=_together(runs, manifests, "comparisons", COMPARISONS),
        severities=severities_over_seeds(_together(runs, manifests, "metrics_by_severity", SEVERITIES)),
        unchecked=tuple(
            dict.fromkeys(
                str(manifest["name"])
                for run, manifest in zip(runs, manifests, strict=True)
                if not (run / CHECKS_NAME).exists()
            )
        ),
    )


def over_seeds(frame: pl.DataFrame) -> pl.DataFrame:
    """Average the metrics of the same study, evaluation set and method over seeds (:data:`SETS`).

    Standard deviations (n-1) and no interval where there are several seeds; a single seed keeps its interval. Marks are
    those of any seed, predicted classes those of the seed that predicts fewest.
    """
    full = complete(frame.with_columns(pl.lit(1).alias("seeds")), SETS)
    single = pl.len() == 1
    others = [
        name for name in SETS if name not in {*PLACE, *AVERAGED, *INTERVALS, "seeds", "marks", "predicted_classes"}
    ]
    grouped = full.group_by(PLACE, maintain_order=True).agg(
        *(pl.col(name).first() for name in others if not name.endswith("_sd")),
        *(pl.col(name).mean() for name in AVERAGED),
        *(pl.when(single).then(pl.col(name).first()).alias(name) for name in INTERVALS),
        *(pl.col(name).std().alias(f"{name}_sd") for name in WITH_INTERVALS),
        pl.len().alias("seeds"),
        pl.col("predicted_classes").min(),
        pl.col("marks").explode().drop_nulls().unique(maintain_order=True),
    )
    return complete(grouped, SETS)


def severities_over_seeds(frame: pl.DataFrame) -> pl.DataFrame:
    """Average the accuracy by severity over seeds, as :func:`over_seeds` does (:data:`SEVERITIES`)."""
    place = (*PLACE, "corruption", "severity")
    averaged = ("accuracy", "balanced_accuracy", "err", "ece")
    grouped = frame.group_by(place, maintain_order=True).agg(
        *(pl.col(name).first() for name in ("condition", "label", "analysis_only", "samples")),
        *(pl.col(name).mean() for name in averaged),
        *(pl.when(pl.len() == 1).then(pl.col(name).first()).alias(name) for name in ("accuracy_low", "accuracy_high")),
        pl.col("accuracy").std().alias("accuracy_sd"),
    )
    return complete(grouped, SEVERITIES)


def _together(runs: Sequence[Path], manifests: Sequence[Mapping[str, Any]], name: str, schema: Schema) -> pl.DataFrame:
    frames = [_tag(_read(run, name), manifest) for run, manifest in zip(runs, manifests, strict=True)]
    return pl.concat([complete(frame, schema) for frame in frames])


def _mark(frame: pl.DataFrame, marks: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """Add the marks that `pipeline check` gave whole evaluation sets to those of every method on them."""
    pairs = zip(frame["evaluation_set"], frame["marks"].to_list(), strict=True)
    joined = [sort_codes([*(own or ()), *marks.get(name, ())]) for name, own in pairs]
    return frame.with_columns(pl.Series("marks", joined, dtype=pl.List(pl.String)))


def _tag(frame: pl.DataFrame, manifest: Mapping[str, Any]) -> pl.DataFrame:
    seed = manifest.get("seeds", {}).get("training", 0)
    return frame.with_columns(pl.lit(str(manifest["name"])).alias("study"), pl.lit(int(seed)).alias("seed"))


def _read(run: Path, name: str) -> pl.DataFrame:
    path = run / f"{name}.parquet"
    return pl.DataFrame(read_table(path)) if path.exists() else pl.DataFrame()
