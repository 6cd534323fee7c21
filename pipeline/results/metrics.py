"""Evaluation of a run: metrics with intervals, by severity, compared in pairs, and summed up, all written as tables.

Memory does not grow with unlabelled images but for one bit per row; a labelled one costs a few bytes for each method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.coefficients.evidence import GENERALIST
from pipeline.errors import RunDirectoryError
from pipeline.results.comparisons import comparison_records
from pipeline.results.inputs import evaluation_inputs
from pipeline.results.layout import (
    PredictionFolder,
    conditions,
    method_labels,
    parts,
    prediction_folders,
    read_run,
    sees_labels,
)
from pipeline.results.levels import balanced_errors, level_records
from pipeline.results.records import counted, intervals
from pipeline.results.resampling import Clusters, Replicates, number_clusters, resample
from pipeline.results.samples import LabelledSet, SampleIndex, number_levels, read_origin
from pipeline.results.schemas import (
    COMPARISONS_SCHEMA,
    METRICS_SCHEMA,
    REPLICATES_SCHEMA,
    SEVERITY_SCHEMA,
    SUMMARY_SCHEMA,
)
from pipeline.results.summary import summary_records
from pipeline.results.tallies import Tally, require_parts, tally_methods
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


@dataclass(frozen=True, slots=True)
class Scored:
    """All that was read of one evaluation set."""

    tallies: Mapping[str, Tally]
    labelled: LabelledSet
    replicates: Mapping[str, Replicates]


def evaluate_run(run: Path) -> pl.DataFrame:
    """Metrics of every method and evaluation set with predictions, as :func:`evaluate` has them.

    Returns one row for each evaluation set and method, in the manifest's order. ``samples`` counts labelled rows only,
    ``unlabelled`` the others, ``rejected`` those that either stage set apart; ``accuracy``, ``balanced_accuracy`` and
    ``majority_rate`` are fractions, null where nothing is labelled; ``err`` is 100·(1-Acc)/(1-Acc_generalist), null
    where the generalist makes no error or was not scored; predictions of other settings than the manifest's are left
    out where they do not cover the set; ``predicted_classes`` of ``classes``, ``predicted_counts`` and ``mean_lambda``
    count unlabelled rows too; ``macro_auc`` is one-vs-rest over the classes that occur, and has no interval; ``ece``
    has 15 bins of equal width; ``be`` and ``rbe`` are MedMNIST-C's for sets with corruptions, the latter where the
    manifest says which set is the clean one; ``clusters`` counts what was resampled for the 95 % intervals;
    ``marks`` holds ``majority-collapse`` where one class only is predicted and more than one occurs;
    ``label`` is the method with the settings that are not its defaults, ``analysis_only``
    says that it looked at labels; ``fingerprint`` is the digest over the fingerprints of all parts read.
    """
    return evaluate(run).metrics


def evaluate(run: Path) -> Evaluation:
    """Compute all tables of a run and write them to it; read them where nothing that they depend on has changed.

    Raises :class:`RunDirectoryError` naming method and evaluation set when a part is missing or torn, a row appears
    twice, or the methods of an evaluation set do not cover the same rows or differ in their labels.
    """
    run_json = read_run(run)
    folders = prediction_folders(run, run_json)
    if not folders:
        raise RunDirectoryError(f"{run}: holds no predictions; run `pipeline infer` first")
    folders = [folder for folder in folders if not _is_left_behind(folder, run_json)]
    for folder in folders:
        require_parts(folder)
    labels = method_labels(run, (folder.method for folder in folders))
    described = {name: (label, sees_labels(run, name)) for name, label in labels.items()}
    fingerprint = evaluation_inputs(run, run_json, folders, described)
    known = None if fingerprint is None else _read(run, fingerprint)
    if known is not None:
        return known
    tables = _compute(run, run_json, folders, described)
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
    run: Path, run_json: dict[str, Any], folders: list[PredictionFolder], described: Mapping[str, tuple[str, bool]]
) -> dict[str, pa.Table]:
    scored, clusters = _score(folders)
    clean_of = {entry["name"]: entry.get("clean") for entry in run_json["manifest"].get("evaluation_sets", [])}
    condition_of = conditions(run_json)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
    for name, item in scored.items():
        generalist = item.tallies.get(GENERALIST)
        clean = scored.get(clean_of.get(name) or "")
        errors = balanced_errors(item.labelled, clean.labelled if clean else None)
        by_level = level_records(item.labelled, item.replicates)
        cluster_N = clusters.cluster_N[name]
        found: dict[str, dict[str, Any]] = {}
        for method, tally in item.tallies.items():
            label, analysis_only = described[method]
            names = {
                "method": method,
                "label": label,
                "analysis_only": analysis_only,
                "evaluation_set": name,
                "condition": condition_of.get(name),
            }
            own = {"clusters": len(np.unique(cluster_N[tally.position_N]))}
            found[method] = names | counted(tally, generalist) | errors[method] | own
            found[method] |= intervals(method, item.replicates)
            records["metrics_by_severity"] += [names | record for record in by_level[method]]
        records["metrics"] += found.values()
        records["replicates"] += [_replicates(name, method, drawn) for method, drawn in item.replicates.items()]
        if item.replicates:
            accuracies = {method: record["accuracy"] for method, record in found.items()}
            records["comparisons"] += comparison_records(item.labelled, cluster_N, item.replicates, accuracies)
    metrics = pl.DataFrame(pa.Table.from_pylist(records["metrics"], schema=METRICS_SCHEMA))
    drawn = {(name, method): found for name, item in scored.items() for method, found in item.replicates.items()}
    records["summary"] = summary_records(metrics, drawn)
    return {name: pa.Table.from_pylist(records[name], schema=schema) for name, schema in SCHEMAS.items()}


def _score(folders: list[PredictionFolder]) -> tuple[dict[str, Scored], Clusters]:
    tallied: dict[str, tuple[dict[str, Tally], LabelledSet]] = {}
    for name in dict.fromkeys(folder.evaluation_set for folder in folders):
        own = [folder for folder in folders if folder.evaluation_set == name]
        tallies, index = tally_methods(own)
        tallied[name] = tallies, _labelled_set(name, own, tallies, index)
    clusters = number_clusters([labelled for _, labelled in tallied.values()])
    scored = {
        name: Scored(tallies, labelled, resample(labelled, clusters) if len(labelled.label_N) else {})
        for name, (tallies, labelled) in tallied.items()
    }
    return scored, clusters


def _labelled_set(
    name: str, folders: list[PredictionFolder], tallies: Mapping[str, Tally], index: SampleIndex
) -> LabelledSet:
    origin = read_origin(folders, index.row_N)
    levels, level_N = number_levels(origin)
    right_MN = np.full((len(tallies), len(index.row_N)), -1, np.int8)
    confidence_MN = np.zeros(right_MN.shape, np.float32)
    for position, tally in enumerate(tallies.values()):
        right_MN[position, tally.position_N] = tally.right_N
        confidence_MN[position, tally.position_N] = tally.confidence_N
    return LabelledSet(
        name=name,
        classes=len(next(iter(tallies.values())).predicted_C),
        methods=tuple(tallies),
        label_N=index.label_N,
        clusters=origin.select(pl.coalesce("group_id", "sample_id")).to_series(),
        levels=levels,
        level_N=level_N,
        right_MN=right_MN,
        confidence_MN=confidence_MN,
    )


def _replicates(name: str, method: str, drawn: Replicates) -> dict[str, Any]:
    return {
        "method": method,
        "evaluation_set": name,
        "draws": drawn.draws,
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
    return Evaluation(**{item.name: cast(pl.DataFrame, pl.from_arrow(tables[item.name])) for item in fields(Evaluation)})


def _is_left_behind(folder: PredictionFolder, run_json: dict[str, Any]) -> bool:
    """Whether other settings or methods than the manifest's made it, before the run grew: no command completes it."""
    current = run_json.get("variants")
    if current is None or folder.method in current:
        return False
    wanted = max(parts(folder.run / "evidence" / folder.evaluation_set), default=-1)
    return not set(range(wanted + 1)) <= parts(folder.path).keys()
