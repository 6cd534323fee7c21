"""Results of a sweep: a row for each setting and evaluation set, as Parquet, as a figure, for the terminal and as JSON.

Memory does not grow with the images: predictions are counted part by part.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.coefficients.evidence import EXPERT, GENERALIST
from pipeline.errors import RunDirectoryError
from pipeline.results.layout import PredictionFolder, conditions, parts, read_run, sees_labels
from pipeline.results.sweep_figures import setting_symbol, sweep_figure
from pipeline.results.tables import ABSENT, decimal, percent, whole
from pipeline.store.files import write_text
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.ledger import COPIED_FROM
from pipeline.store.run_directory import RunDirectory
from pipeline.store.tables import read_metadata, read_table, write_table

SCORED, COPIED = "scored", "copied"
NAMES = ("key", "method", "rule", "grouping")
RESULTS: Mapping[str, Any] = {
    "evaluation_set": pl.String,
    "condition": pl.String,
    "analysis_only": pl.Boolean,
    "samples": pl.Int64,
    "accuracy": pl.Float64,
    "balanced_accuracy": pl.Float64,
    "err": pl.Float64,
    "accuracy_generalist": pl.Float64,
    "accuracy_expert": pl.Float64,
    "mean_lambda": pl.Float64,
    "merges": pl.Int64,
    "forwards": pl.Int64,
    "plan": pl.String,
    "work": pl.String,
    "fingerprint": pl.String,
}


@dataclass(frozen=True, slots=True)
class SweepResults:
    """Rows of a sweep, the settings that it varies, and where they and their figure lie."""

    frame: pl.DataFrame
    varied: tuple[str, ...]
    table: Path
    figure: Path

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: fractions unrounded, absent figures null."""
        return {
            "table": str(self.table),
            "figure": str(self.figure),
            "varied": list(self.varied),
            "results": self.frame.to_dicts(),
        }


@dataclass(slots=True)
class _Counts:
    """Labelled samples and hits by true class, and the λ applied to all samples."""

    samples_C: NDArray[np.int64]
    hits_C: NDArray[np.int64]
    lambda_sum: float = 0.0
    lambda_count: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, classes: int) -> "_Counts":
        return cls(np.zeros(classes, np.int64), np.zeros(classes, np.int64))

    def add(self, labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> None:
        """Count samples; a label of -1 is none."""
        known, classes = labels >= 0, len(self.samples_C)
        self.samples_C += np.bincount(labels[known], minlength=classes)
        self.hits_C += np.bincount(labels[known & (labels == predictions)], minlength=classes)

    @property
    def accuracy(self) -> float | None:
        samples = int(self.samples_C.sum())
        return int(self.hits_C.sum()) / samples if samples else None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean recall over the classes that occur."""
        occurring = self.samples_C > 0
        return float((self.hits_C[occurring] / self.samples_C[occurring]).mean()) if occurring.any() else None


def evaluate_sweep(run: Path, name: str) -> SweepResults:
    """Compute a row for each setting and evaluation set of a sweep; write ``RUN/sweeps/<name>.parquet`` and ``.svg``.

    Settings are columns, null where a method has no such setting. ``err`` is 100·(1-Acc)/(1-Acc_generalist), null where
    the generalist makes no error; both plain accuracies come from evidence. ``merges`` and ``forwards`` (image towers,
    all models) are what this setting cost: none where ``work`` says ``copied``, because a setting of the same ``plan``
    was scored. :class:`RunDirectoryError` when there is no such sweep or a part of it is missing.
    """
    run_json = read_run(run)
    directory = RunDirectory(run)
    entries, given = _settings(directory, name)
    condition_of = conditions(run_json)
    reference = {
        evaluation_set: _of_evidence(run, evaluation_set, len(run_json["class_names"][evaluation_set]))
        for evaluation_set in condition_of
    }
    records, inputs = [], {}
    for entry in entries:
        for evaluation_set, condition in condition_of.items():
            row = _row(run, entry, evaluation_set, reference[evaluation_set])
            records.append(row | {"evaluation_set": evaluation_set, "condition": condition})
            inputs[f"predictions of {entry['key']} for {evaluation_set}"] = row["fingerprint"]
    others = dict.fromkeys(setting for entry in entries for setting in _columns(entry["settings"]))
    names = list({**_columns(dict.fromkeys(given)), **others})
    frame = _frame(records, names)
    varied = tuple(column for column in ("method", *names) if frame[column].n_unique() > 1)
    table, figure = directory.sweep(name, ".parquet"), directory.sweep(name, ".svg")
    write_table(table, cast(pa.Table, frame.to_arrow()), Fingerprint(inputs))
    write_text(figure, sweep_figure(frame, varied))
    return SweepResults(frame, varied, table, figure)


def sweep_table(results: SweepResults) -> Table:
    """Tabulate a sweep: what it varies, accuracy, balanced accuracy, Err, mean λ and image forward calls, set by set.

    The best accuracy of each set is bold; settings that look at labels are dimmed, and never the best.
    """
    table = Table(
        title="Sweep by evaluation set", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("Evaluation set", overflow="fold", min_width=10)
    varied = results.varied or ("method",)
    for name in varied:
        table.add_column(setting_symbol(name), justify="left" if name == "method" else "right", overflow="fold")
    for title in ("Acc. %", "Bal. %", "Err", "λ", "Calls"):
        table.add_column(title, justify="right", overflow="fold")
    for (evaluation_set,), rows in results.frame.group_by("evaluation_set", maintain_order=True):
        best = rows.filter(~pl.col("analysis_only"))["accuracy"].max()
        for place, row in enumerate(rows.iter_rows(named=True)):
            is_best = best is not None and row["accuracy"] == best and not row["analysis_only"]
            style = "bold" if is_best else "dim" if row["analysis_only"] else ""
            cells = _cells(row, varied)
            table.add_row(Text("" if place else str(evaluation_set)), *(Text(cell, style=style) for cell in cells))
        table.add_section()
    return table


def _cells(row: Mapping[str, Any], varied: Sequence[str]) -> list[str]:
    values = [ABSENT if row[name] is None else str(row[name]) for name in varied]
    return [
        *values,
        percent(row["accuracy"]),
        percent(row["balanced_accuracy"]),
        decimal(row["err"]),
        decimal(row["mean_lambda"], 3),
        COPIED if row["work"] == COPIED else whole(row["forwards"]),
    ]


def _settings(directory: RunDirectory, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Settings of a sweep with their folders and plans, and which of them its grid names, in its order."""
    path = directory.sweep(name, ".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["settings"], record["given"]
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path}: there is no such sweep; run `pipeline sweep` first") from error
    except (ValueError, KeyError) as error:
        raise RunDirectoryError(f"{path}: is not a sweep's record ({error}); run `pipeline sweep` again") from error


def _columns(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by column; one of a user's rule that is called like a result is told apart."""
    taken = {*NAMES, *RESULTS}
    return {f"setting_{name}" if name in taken else name: value for name, value in settings.items()}


def _row(run: Path, entry: Mapping[str, Any], evaluation_set: str, plain: Mapping[str, _Counts]) -> dict[str, Any]:
    folder = PredictionFolder(run, entry["key"], evaluation_set)
    counts = _of_predictions(folder, len(plain[GENERALIST].samples_C))
    accuracy, generalist = counts.accuracy, plain[GENERALIST].accuracy
    has_err = accuracy is not None and generalist is not None and generalist < 1
    return {
        **{name: entry[name] for name in NAMES},
        **_columns(entry["settings"]),
        "analysis_only": sees_labels(run, entry["key"]),
        "samples": int(counts.samples_C.sum()),
        "accuracy": accuracy,
        "balanced_accuracy": counts.balanced_accuracy,
        "err": 100 * (1 - accuracy) / (1 - generalist) if has_err else None,  # type: ignore[operator]
        "accuracy_generalist": generalist,
        "accuracy_expert": plain[EXPERT].accuracy,
        "mean_lambda": counts.lambda_sum / counts.lambda_count if counts.lambda_count else None,
        **_cost(folder),
        "plan": entry["plans"][evaluation_set],
        "fingerprint": Fingerprint(counts.fingerprints).digest,
    }


def _of_predictions(folder: PredictionFolder, classes: int) -> _Counts:
    """Counts of a method's predictions; every part that the evidence has must be there."""
    found = parts(folder.path)
    missing = parts(folder.run / "evidence" / folder.evaluation_set).keys() - found.keys()
    if missing:
        raise RunDirectoryError(f"{folder}: {len(missing)} parts are missing; run `pipeline sweep` again")
    counts = _Counts.of(classes)
    for path in found.values():
        metadata = read_metadata(path)
        if metadata is None:
            raise RunDirectoryError(f"{folder}: {path.name} cannot be read; run `pipeline sweep` again")
        counts.fingerprints[path.stem] = metadata.fingerprint
        table = read_table(path, ["lambda", "prediction", "label"])
        counts.add(_integers(table["label"]), _integers(table["prediction"]))
        applied = table["lambda"].drop_null().to_numpy()
        counts.lambda_sum += float(applied.sum(dtype=np.float64))
        counts.lambda_count += len(applied)
    return counts


def _of_evidence(run: Path, evaluation_set: str, classes: int) -> dict[str, _Counts]:
    """Counts of the plain generalist and expert, from their logits."""
    counts = {name: _Counts.of(classes) for name in (GENERALIST, EXPERT)}
    for path in parts(run / "evidence" / evaluation_set).values():
        table = read_table(path, ["label", *(f"logits_{name}" for name in counts)])
        for name, found in counts.items():
            logits = table[f"logits_{name}"].combine_chunks().flatten().to_numpy().reshape(-1, classes)
            found.add(_integers(table["label"]), logits.argmax(axis=1))
    return counts


def _cost(folder: PredictionFolder) -> dict[str, Any]:
    """Merges and image forwards of all parts, and whether any of them was scored for this very setting."""
    merges = forwards = 0
    works = set()
    for path in parts(folder.ledger).values():
        ledger = json.loads(path.read_text(encoding="utf-8"))
        merges += ledger["counts"]["merges"]
        forwards += sum(ledger["counts"]["image_forward_calls"].values())
        works.add(COPIED if COPIED_FROM in ledger else SCORED)
    return {"merges": merges, "forwards": forwards, "work": COPIED if works == {COPIED} else SCORED}


def _frame(records: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> pl.DataFrame:
    """Rows by evaluation set, then as the grid; numbers of a setting are floats where one of them is."""
    columns: dict[str, Any] = dict.fromkeys(NAMES, pl.String)
    for name in settings:
        values = [record.get(name) for record in records]
        kinds = {type(value) for value in values if value is not None}
        columns[name] = pl.String if str in kinds else pl.Float64 if float in kinds else pl.Int64
    columns |= RESULTS
    rows = [{name: _as(columns[name], record.get(name)) for name in columns} for record in records]
    frame = pl.DataFrame(rows, schema=columns)
    order = {name: place for place, name in enumerate(dict.fromkeys(frame["evaluation_set"]))}
    return frame.sort(pl.col("evaluation_set").replace_strict(order), maintain_order=True)


def _as(kind: Any, value: Any) -> Any:
    return str(value) if kind == pl.String and value is not None else value


def _integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.fill_null(-1).to_numpy().astype(np.int64)
    return values
