"""Evaluation of a run: metrics with intervals, by severity, compared in pairs, and summed up, all written as tables.

Memory does not grow with unlabelled images but for one bit per row. A labelled one costs some 18 bytes for each method,
of all evaluation sets at once: their clusters are resampled together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.coefficients.evidence import GENERALIST
from pipeline.errors import RunDirectoryError
from pipeline.results.comparisons import comparison_records
from pipeline.results.inputs import evaluation_inputs
from pipeline.results.intervals import metric_intervals
from pipeline.results.layout import (
    PredictionFolder,
    conditions,
    method_labels,
    parts,
    prediction_folders,
    read_run,
    sees_labels,
)
from pipeline.results.levels import balanced_errors, clean_records, level_records
from pipeline.results.marks import read_marks, sort_codes
from pipeline.results.records import counted
from pipeline.results.resampling import Replicates
from pipeline.results.schemas import (
    COMPARISONS_SCHEMA,
    METRICS_SCHEMA,
    REPLICATES_SCHEMA,
    SEVERITY_SCHEMA,
    SUMMARY_SCHEMA,
)
from pipeline.results.scored import ScoredSet, score_sets
from pipeline.results.summary import summary_records
from pipeline.results.tallies import require_parts
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.tables import read_metadata, read_table, write_table

SCHEMAS = {
    "metrics": METRICS_SCHEMA,
    "metrics_by_severity": SEVERITY_SCHEMA,
    "comparisons": COMPARISONS_SCHEMA,
    "summary": SUMMARY_SCHEMA,
    "replicates": REPLICATES_SCHEMA,
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The tables of one run as frames, each also ``RUN/<name>.parquet`` (:mod:`pipeline.results.schemas`).

    ``replicates`` holds the bootstrap's metrics of each method and labelled evaluation set, replicate by replicate.
    """

    metrics: pl.DataFrame
    metrics_by_severity: pl.DataFrame
    comparisons: pl.DataFrame
    summary: pl.DataFrame
    replicates: pl.DataFrame


def evaluate_run(run: Path) -> pl.DataFrame:
    """Metrics of every method and evaluation set with predictions, as :func:`evaluate` has them.

    Returns one row for each evaluation set and method, in the manifest's order. ``samples`` counts labelled rows only,
    ``unlabelled`` the others, ``rejected`` those that either stage set apart; ``accuracy``, ``balanced_accuracy`` and
    ``majority_rate`` are fractions, null where nothing is labelled; ``err`` is 100·(1-Acc)/(1-Acc_generalist), null
    where the generalist makes no error or was not scored; predictions of other settings than the manifest's are left
    out where they do not cover the set; ``predicted_classes`` of ``classes``, ``predicted_counts`` and ``mean_lambda``
    count unlabelled rows too; ``macro_auc`` is one-vs-rest over the classes that occur, and has no interval; ``ece``
    has 15 bins of equal width; ``be`` and ``rbe`` are MedMNIST-C's for sets with corruptions, the latter where the
    manifest says which set is the clean one; ``clusters`` counts what was resampled for the 95 % intervals, of which
    the accuracies' are null where the method has collapsed (:mod:`pipeline.results.intervals`);
    ``marks`` are those that `pipeline check` gave the set, and ``majority-collapse`` where one class only is predicted
    and more than one occurs; ``label`` is the method with the settings that are not its defaults, ``analysis_only``
    says that it looked at labels; ``fingerprint`` is the digest over the fingerprints of all parts read.
    """
    return evaluate(run).metrics


def evaluate(run: Path) -> Evaluation:
    """Compute all tables of a run and write them to it; read them where nothing that they depend on has changed.

    Raises :class:`RunDirectoryError` naming method and evaluation set when a part is missing or torn, a row appears
    twice, or the methods of an evaluation set do not cover the same rows or differ in their labels.
    """
    run_json = read_run(run)
    folders = [folder for folder in prediction_folders(run, run_json) if not _is_left_behind(folder, run_json)]
    if not folders:
        raise RunDirectoryError(f"{run}: holds no predictions; run `pipeline infer` first")
    for folder in folders:
        require_parts(folder)
    labels = method_labels(run, (folder.method for folder in folders))
    described = {name: (label, sees_labels(run, name)) for name, label in labels.items()}
    marks = read_marks(run)
    fingerprint = evaluation_inputs(run, run_json, folders, described, marks)
    known = None if fingerprint is None else _read(run, fingerprint)
    if known is not None:
        return known
    tables = _compute(run_json, folders, described, marks)
    assert fingerprint is not None, "torn parts are refused while they are read"
    for name, table in tables.items():
        write_table(run / f"{name}.parquet", table, fingerprint)
    return _evaluation(tables)


def evaluate_runs(runs: Sequence[Path]) -> pl.DataFrame:
    """Metrics of several runs as one frame, each written to its own run as :func:`evaluate_run` does.

    Where two runs have an evaluation set of the same name, all sets are called after their run's path too.
    :class:`RunDirectoryError` when a run is named twice.
    """
    require_distinct(runs)
    frames = [evaluate_run(run) for run in runs]
    named = [name for frame in frames for name in frame["evaluation_set"].unique().to_list()]
    if len(set(named)) < len(named):
        frames = [
            frame.with_columns(pl.format("{}/{}", pl.lit(str(run)), pl.col("evaluation_set")).alias("evaluation_set"))
            for run, frame in zip(runs, frames, strict=True)
        ]
    return pl.concat(frames)


def require_distinct(runs: Sequence[Path]) -> None:
    """Refuse a run that is named twice."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise RunDirectoryError(f"{', '.join(map(str, runs))}: a run is named twice; name each once")


def _compute(
    run_json: dict[str, Any],
    folders: list[PredictionFolder],
    described: Mapping[str, tuple[str, bool]],
    marks: Mapping[str, list[str]],
) -> dict[str, pa.Table]:
    """All tables; the labelled images of all evaluation sets are in memory together."""
    scored, clusters = score_sets(folders)
    clean_of = {entry["name"]: entry.get("clean") for entry in run_json["manifest"].get("evaluation_sets", [])}
    condition_of = conditions(run_json)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
    for name, item in scored.items():
        names = {
            method: {
                "method": method,
                "label": described[method][0],
                "analysis_only": described[method][1],
                "evaluation_set": name,
                "condition": condition_of.get(name),
            }
            for method in item.tallies
        }
        clean = scored.get(clean_of.get(name) or "")
        found = _metrics(item, clean, clusters.cluster_N[name])
        for method, record in found.items():
            codes = sort_codes([*marks.get(name, []), *record["marks"]])
            records["metrics"].append(names[method] | record | {"marks": codes})
        records["replicates"] += [_replicates(name, method, drawn) for method, drawn in item.replicates.items()]
        if item.replicates:
            by_level = level_records(item.labelled, item.replicates)
            at_zero = clean_records(item.labelled, clean.labelled, clusters) if clean else {}
            records["metrics_by_severity"] += [
                names[method] | row for method, rows in by_level.items() for row in [*at_zero.get(method, []), *rows]
            ]
            accuracies = {method: record["accuracy"] for method, record in found.items()}
            records["comparisons"] += comparison_records(
                item.labelled, clusters.cluster_N[name], item.replicates, accuracies
            )
    metrics = pl.DataFrame(pa.Table.from_pylist(records["metrics"], schema=METRICS_SCHEMA))
    drawn = {(name, method): found for name, item in scored.items() for method, found in item.replicates.items()}
    records["summary"] = summary_records(metrics, drawn)
    return {name: pa.Table.from_pylist(records[name], schema=schema) for name, schema in SCHEMAS.items()}


def _metrics(item: ScoredSet, clean: ScoredSet | None, cluster_N: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """What the metrics hold of each method on one evaluation set, but for its names."""
    errors = balanced_errors(item.labelled, clean.labelled if clean else None)
    return {
        method: counted(tally, item.tallies.get(GENERALIST))
        | errors[method]
        | {"clusters": len(np.unique(cluster_N[tally.position_N]))}
        | metric_intervals(method, item.replicates)
        for method, tally in item.tallies.items()
    }


def _replicates(name: str, method: str, drawn: Replicates) -> dict[str, Any]:
    return {
        "method": method,
        "evaluation_set": name,
        "draws": drawn.draws,
        "collapsed": drawn.collapsed,
        "accuracy": drawn.accuracy_R,
        "balanced_accuracy": drawn.balanced_accuracy_R,
        "ece": drawn.ece_R,
    }


def _read(run: Path, fingerprint: Fingerprint) -> Evaluation | None:
    """Tables that an earlier evaluation wrote of the same inputs; None where one is absent or of other inputs."""
    tables: dict[str, pa.Table] = {}
    for name in SCHEMAS:
        path = run / f"{name}.parquet"
        metadata = read_metadata(path) if path.exists() else None
        if metadata is None or metadata.fingerprint != fingerprint.digest:
            return None
        tables[name] = read_table(path).replace_schema_metadata()
    return _evaluation(tables)


def _evaluation(tables: Mapping[str, pa.Table]) -> Evaluation:
    return Evaluation(
        **{item.name: cast(pl.DataFrame, pl.from_arrow(tables[item.name])) for item in fields(Evaluation)}
    )


def _is_left_behind(folder: PredictionFolder, run_json: dict[str, Any]) -> bool:
    """Whether other settings or methods than the manifest's made it, before the run grew: no command completes it."""
    current = run_json.get("variants")
    if current is None or folder.method in current:
        return False
    wanted = max(parts(folder.run / "evidence" / folder.evaluation_set), default=-1)
    return not set(range(wanted + 1)) <= parts(folder.path).keys()
