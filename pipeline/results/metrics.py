"""Metrics of a run: one row for each method and evaluation set, from confusion matrices counted part by part.

Memory does not grow with the images but for one bit per row, by which every table is checked: each row exactly once,
and the same rows for all methods of an evaluation set as in its evidence.

Shape legend: C classes; in ``confusion_CC`` the first axis is the true class, the second the predicted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.coefficients.evidence import GENERALIST
from pipeline.errors import RunDirectoryError
from pipeline.results.layout import (
    PredictionFolder,
    conditions,
    method_labels,
    name_parts,
    parts,
    prediction_folders,
    read_run,
    sees_labels,
)
from pipeline.results.rows import RowSet
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.store.tables import read_metadata, read_table, write_table

METRICS_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("label", pa.string()),
        ("analysis_only", pa.bool_()),
        ("evaluation_set", pa.string()),
        ("condition", pa.string()),
        ("samples", pa.int64()),
        ("unlabelled", pa.int64()),
        ("rejected", pa.int64()),
        ("accuracy", pa.float64()),
        ("balanced_accuracy", pa.float64()),
        ("err", pa.float64()),
        ("majority_rate", pa.float64()),
        ("classes", pa.int64()),
        ("predicted_classes", pa.int64()),
        ("mean_lambda", pa.float64()),
        ("fingerprint", pa.string()),
    ]
)


@dataclass(slots=True)
class Tally:
    """What is kept of the predictions of one method for one evaluation set."""

    confusion_CC: NDArray[np.int64]
    predicted_C: NDArray[np.int64]
    rows: RowSet = field(default_factory=RowSet)
    unlabelled: int = 0
    rejected: int = 0
    lambda_sum: float = 0.0
    lambda_count: int = 0
    part_fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def mistakes(self) -> int:
        """Labelled samples that were given another class than their own."""
        return int(self.confusion_CC.sum() - np.trace(self.confusion_CC))


def evaluate_run(run: Path) -> pl.DataFrame:
    """Compute the metrics of every method and evaluation set with predictions, and write ``RUN/metrics.parquet``.

    Returns one row for each evaluation set and method, in the manifest's order. ``samples`` counts labelled rows only,
    ``unlabelled`` the others, ``rejected`` those that either stage set apart; ``accuracy``, ``balanced_accuracy`` and
    ``majority_rate`` are fractions, null where nothing is labelled; ``err`` is 100·(1-Acc)/(1-Acc_generalist), null
    where the generalist makes no error or was not scored; predictions of other settings than the manifest's are left
    out where they do not cover the set; ``predicted_classes`` of ``classes`` and ``mean_lambda``
    count unlabelled rows too; ``label`` is the method with the settings that are not its defaults, ``analysis_only``
    says that it looked at labels; ``fingerprint`` is the digest over the fingerprints of all parts read.

    Raises :class:`RunDirectoryError` naming method and evaluation set when a part is missing or torn, a row appears
    twice, or the methods of an evaluation set do not cover the same rows or differ in their labels.
    """
    run_json = read_run(run)
    folders = prediction_folders(run, run_json)
    if not folders:
        raise RunDirectoryError(f"{run}: holds no predictions; run `pipeline infer` first")
    condition_of = conditions(run_json)
    records: list[dict[str, Any]] = []
    folders = [folder for folder in folders if not _is_left_behind(folder, run_json)]
    labels = method_labels(run, (folder.method for folder in folders))
    for evaluation_set in dict.fromkeys(folder.evaluation_set for folder in folders):
        tallies = _tally_methods([folder for folder in folders if folder.evaluation_set == evaluation_set])
        generalist = tallies.get(GENERALIST)
        for method, tally in tallies.items():
            names = {
                "method": method,
                "label": labels[method],
                "analysis_only": sees_labels(run, method),
                "evaluation_set": evaluation_set,
                "condition": condition_of.get(evaluation_set),
            }
            records.append(names | score(tally, generalist))
    table = pa.Table.from_pylist(records, schema=METRICS_SCHEMA)
    inputs = {
        f"predictions of {record['method']} for {record['evaluation_set']}": record["fingerprint"] for record in records
    }
    write_table(run / "metrics.parquet", table, Fingerprint(inputs | {"conditions": digest_json(condition_of)}))
    return cast(pl.DataFrame, pl.from_arrow(table))


def evaluate_runs(runs: Sequence[Path]) -> pl.DataFrame:
    """Metrics of several runs as one frame, each written to its own run as :func:`evaluate_run` does.

    Where two runs have an evaluation set of the same name, all sets are called after their run's path too.
    :class:`RunDirectoryError` when a run is named twice.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise RunDirectoryError(f"{', '.join(map(str, runs))}: a run is named twice; name each once")
    frames = [evaluate_run(run) for run in runs]
    named = [name for frame in frames for name in frame["evaluation_set"].unique().to_list()]
    if len(set(named)) < len(named):
        frames = [
            frame.with_columns(pl.format("{}/{}", pl.lit(str(run)), pl.col("evaluation_set")).alias("evaluation_set"))
            for run, frame in zip(runs, frames, strict=True)
        ]
    return pl.concat(frames)


def score(tally: Tally, generalist: Tally | None) -> dict[str, Any]:
    """Compute the metrics of one tally; ``generalist`` is the same evaluation set's tally for Err, if there is one."""
    samples = int(tally.confusion_CC.sum())
    correct = int(np.trace(tally.confusion_CC))
    error_generalist = generalist.mistakes / int(generalist.confusion_CC.sum()) if generalist and samples else 0.0
    return {
        "samples": samples,
        "unlabelled": tally.unlabelled,
        "rejected": tally.rejected,
        "accuracy": correct / samples if samples else None,
        "balanced_accuracy": balanced_accuracy(tally.confusion_CC),
        "err": 100 * (tally.mistakes / samples) / error_generalist if error_generalist else None,
        "majority_rate": int(tally.confusion_CC.sum(axis=1).max()) / samples if samples else None,
        "classes": len(tally.predicted_C),
        "predicted_classes": int(np.count_nonzero(tally.predicted_C)),
        "mean_lambda": tally.lambda_sum / tally.lambda_count if tally.lambda_count else None,
        "fingerprint": Fingerprint(tally.part_fingerprints).digest,
    }


def balanced_accuracy(confusion_CC: NDArray[np.int64]) -> float | None:
    """Mean recall over the classes that occur, as ``sklearn.metrics.balanced_accuracy_score``; None without samples.

    Computed by scikit-learn's ``recall_score`` with the cells as weighted samples: ``balanced_accuracy_score`` itself
    warns whenever a class is predicted that never occurs, which is common for a collapsed model.
    """
    from sklearn.metrics import recall_score

    occurring = np.flatnonzero(confusion_CC.sum(axis=1))
    if not occurring.size:
        return None
    true, predicted = np.nonzero(confusion_CC)
    weights = confusion_CC[true, predicted]
    return float(recall_score(true, predicted, labels=occurring, average="macro", sample_weight=weights))


def _tally_methods(folders: list[PredictionFolder]) -> dict[str, Tally]:
    """Tally every method of one evaluation set; refuse them unless all cover the rows of its evidence."""
    present = {index for folder in folders for index in parts(folder.path)}
    tallies: dict[str, Tally] = {}
    evidence = folders[0].run / "evidence" / folders[0].evaluation_set
    reference, origin = _rows_of_evidence(evidence), "evidence"
    for folder in folders:
        _require_parts(folder)
        tally = _tally(folder)
        if reference is None:
            reference, origin = tally.rows, f"method '{folder.method}'"
        elif tally.rows != reference:
            unseen = present - parts(folder.path).keys()
            raise RunDirectoryError(f"{folder}: {_difference(tally.rows, reference, origin, unseen)}")
        first = next(iter(tallies.values()), tally)
        comparable = first.rejected == tally.rejected == 0
        if comparable and not np.array_equal(first.confusion_CC.sum(axis=1), tally.confusion_CC.sum(axis=1)):
            raise RunDirectoryError(
                f"{folder}: the labels differ from those of method '{next(iter(tallies))}'; "
                "delete this folder and run `pipeline infer`"
            )
        tally.rows = reference
        tallies[folder.method] = tally
    return tallies


def _is_left_behind(folder: PredictionFolder, run_json: dict[str, Any]) -> bool:
    """Whether other settings or methods than the manifest's made it, before the run grew: no command completes it."""
    current = run_json.get("variants")
    if current is None or folder.method in current:
        return False
    wanted = max(parts(folder.run / "evidence" / folder.evaluation_set), default=-1)
    return not set(range(wanted + 1)) <= parts(folder.path).keys()


def _require_parts(folder: PredictionFolder) -> None:
    found = parts(folder.path)
    if not found:
        raise RunDirectoryError(f"{folder}: all parts of the predictions are missing; run `pipeline infer`")
    wanted = set(range(max(found) + 1)) | parts(folder.ledger).keys()
    if missing := wanted - found.keys():
        raise RunDirectoryError(f"{folder}: {name_parts(missing)} of the predictions missing; run `pipeline infer`")


def _difference(rows: RowSet, reference: RowSet, origin: str, unseen: set[int]) -> str:
    lacking, first_lacking = rows.missing(reference)
    surplus, first_surplus = reference.missing(rows)
    if lacking:
        hint = f"; other methods have {name_parts(unseen)}, which is missing here" if unseen else ""
        text = f"{lacking:,} of the {len(reference):,} rows of {origin} missing, the first is row {first_lacking}{hint}"
        return f"{text}; run `pipeline infer`"
    return (
        f"{surplus:,} rows that {origin} does not have, the first is row {first_surplus}; "
        "run `pipeline precompute`, then `pipeline infer`"
    )


def _rows_of_evidence(folder: Path) -> RowSet | None:
    """Rows that stage one measured; None when the evidence was deleted to save space."""
    found = parts(folder)
    rows = RowSet()
    for path in found.values():
        repeated = rows.add(read_table(path, ["row"])["row"].to_numpy())
        if repeated is not None:
            raise RunDirectoryError(
                f"{path}: row {repeated} of evaluation set '{folder.name}' appears twice in the evidence; "
                "delete this file and run `pipeline precompute`"
            )
    _add_rejects_of_stage_one(rows, folder.parent.parent, folder.name)
    return rows if found else None


def _tally(folder: PredictionFolder) -> Tally:
    found = parts(folder.path)
    tally: Tally | None = None
    for path in found.values():
        metadata = read_metadata(path)
        if metadata is None:
            raise RunDirectoryError(f"{folder}: {path.name} is torn or foreign; delete it and run `pipeline infer`")
        classes = pq.read_schema(path).field("probabilities").type.list_size
        if tally is None:
            tally = Tally(np.zeros((classes, classes), np.int64), np.zeros(classes, np.int64))
        elif classes != len(tally.predicted_C):
            raise RunDirectoryError(
                f"{folder}: {path.name} has {classes} classes, earlier parts {len(tally.predicted_C)}; "
                "delete this folder and run `pipeline infer`"
            )
        tally.part_fingerprints[path.stem] = metadata.fingerprint
        table = read_table(path, ["row", "lambda", "prediction", "label"])
        _count(tally, cast(pl.DataFrame, pl.from_arrow(table)), f"{folder}: {path.name}")
    assert tally is not None, "a folder without parts is refused before"
    predicted = len(tally.rows)
    for path in parts(folder.rejects).values():
        tally.rows.add(read_table(path, ["row"])["row"].to_numpy())
    _add_rejects_of_stage_one(tally.rows, folder.run, folder.evaluation_set)
    tally.rejected = len(tally.rows) - predicted
    return tally


def _add_rejects_of_stage_one(rows: RowSet, run: Path, evaluation_set: str) -> None:
    """Count them as covered on both sides of the comparison: online inference books them as its own."""
    for path in parts(run / "rejects" / "precompute" / evaluation_set).values():
        rows.add(read_table(path, ["row"])["row"].to_numpy())


def _count(tally: Tally, part: pl.DataFrame, where: str) -> None:
    classes = len(tally.predicted_C)
    outside = part.filter(
        ~pl.col("prediction").is_between(0, classes - 1) | ~pl.col("label").is_between(0, classes - 1)
    )
    if outside.height:
        raise RunDirectoryError(
            f"{where}: row {outside['row'][0]} has a prediction or label outside the {classes} classes; "
            "delete this file and run `pipeline infer`"
        )
    repeated = tally.rows.add(part["row"].to_numpy())
    if repeated is not None:
        raise RunDirectoryError(f"{where}: row {repeated} appears twice; delete the folder and run `pipeline infer`")
    labelled = part.drop_nulls("label")
    true, predicted = (labelled[name].to_numpy().astype(np.int64) for name in ("label", "prediction"))
    cells = np.bincount(true * classes + predicted, minlength=classes * classes)
    tally.confusion_CC += cells.reshape(classes, classes)
    tally.predicted_C += np.bincount(part["prediction"].to_numpy(), minlength=classes)
    tally.unlabelled += part.height - labelled.height
    applied = part["lambda"].drop_nulls().to_numpy()
    tally.lambda_sum += float(applied.sum(dtype=np.float64))
    tally.lambda_count += len(applied)
