"""What is counted of the predictions of one evaluation set, part by part, and the checks that it may be counted at all.

Every table is checked by one bit per row: each row exactly once, and the same rows for all methods of an evaluation set
as in its evidence. Of labelled rows, and of no others, more is kept: a few bytes for each row and method.

Shape legend: N labelled rows, C classes; in ``confusion_CC`` the first axis is the true class, the second the
predicted one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import RunDirectoryError
from pipeline.results.layout import PredictionFolder, name_parts, parts
from pipeline.results.rows import RowSet
from pipeline.results.samples import SampleIndex
from pipeline.statistics.ranking import macro_auc
from pipeline.store.tables import read_metadata, read_table


@dataclass(slots=True)
class Tally:
    """What is kept of the predictions of one method for one evaluation set.

    ``position_N`` is where a labelled row stands in the index of the evaluation set, ``right_N`` whether its prediction
    is right, ``confidence_N`` its top-1 probability.
    """

    confusion_CC: NDArray[np.int64]
    predicted_C: NDArray[np.int64]
    rows: RowSet = field(default_factory=RowSet)
    unlabelled: int = 0
    rejected: int = 0
    lambda_sum: float = 0.0
    lambda_count: int = 0
    part_fingerprints: dict[str, str] = field(default_factory=dict)
    position_N: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    right_N: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    confidence_N: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    macro_auc: float | None = None

    @property
    def samples(self) -> int:
        """Labelled rows."""
        return int(self.confusion_CC.sum())

    @property
    def collapsed(self) -> bool:
        """Whether all rows were given one class, although the labelled ones have more than one."""
        occurring_C = self.confusion_CC.sum(axis=1)
        return bool(np.count_nonzero(self.predicted_C) == 1 and np.count_nonzero(occurring_C) > 1)

    @property
    def mistakes(self) -> int:
        """Labelled rows that were given another class than their own."""
        return int(self.confusion_CC.sum() - np.trace(self.confusion_CC))


@dataclass(slots=True)
class Labelled:
    """Labelled rows of one method as its parts bring them, until all are there."""

    row: list[NDArray[np.int64]] = field(default_factory=list)
    label: list[NDArray[np.int32]] = field(default_factory=list)
    right: list[NDArray[np.bool_]] = field(default_factory=list)
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)


def tally_methods(folders: list[PredictionFolder]) -> tuple[dict[str, Tally], SampleIndex]:
    """Tally every method of one evaluation set; refuse them unless all cover the rows of its evidence."""
    present = {index for folder in folders for index in parts(folder.path)}
    tallies: dict[str, Tally] = {}
    index = SampleIndex()
    evidence = folders[0].run / "evidence" / folders[0].evaluation_set
    reference, origin = _rows_of_evidence(evidence), "evidence"
    for folder in folders:
        require_parts(folder)
        tally, labelled = _tally(folder)
        if reference is None:
            reference, origin = tally.rows, f"method '{folder.method}'"
        elif tally.rows != reference:
            unseen = present - parts(folder.path).keys()
            raise RunDirectoryError(f"{folder}: {_difference(tally.rows, reference, origin, unseen)}")
        _place(tally, labelled, index, folder, tallies)
        tally.rows = reference
        tallies[folder.method] = tally
    return tallies, index


def require_parts(folder: PredictionFolder) -> None:
    """Refuse a folder with a gap in its parts, or without a part that the ledger counted."""
    found = parts(folder.path)
    if not found:
        raise RunDirectoryError(f"{folder}: all parts of the predictions are missing; run `pipeline infer`")
    wanted = set(range(max(found) + 1)) | parts(folder.ledger).keys()
    if missing := wanted - found.keys():
        raise RunDirectoryError(f"{folder}: {name_parts(missing)} of the predictions missing; run `pipeline infer`")


def _place(
    tally: Tally, labelled: Labelled, index: SampleIndex, folder: PredictionFolder, before: dict[str, Tally]
) -> None:
    """Find the labelled rows in the index of the evaluation set, whose labels they must share."""
    first = next(iter(before.values()), tally)
    comparable = first.rejected == tally.rejected == 0
    differ = comparable and not np.array_equal(first.confusion_CC.sum(axis=1), tally.confusion_CC.sum(axis=1))
    if labelled.row:
        row, label = np.concatenate(labelled.row), np.concatenate(labelled.label)
        probabilities_NC = np.concatenate(labelled.probabilities)
        tally.position_N = index.place(row, label)
        tally.right_N = np.concatenate(labelled.right)
        tally.confidence_N = probabilities_NC.max(axis=1)
        tally.macro_auc = macro_auc(label, probabilities_NC)
        differ = differ or not np.array_equal(index.label_N[tally.position_N], label)
    if differ:
        raise RunDirectoryError(
            f"{folder}: the labels differ from those of method '{next(iter(before))}'; "
            "delete this folder and run `pipeline infer`"
        )


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


def _tally(folder: PredictionFolder) -> tuple[Tally, Labelled]:
    tally: Tally | None = None
    labelled = Labelled()
    for path in parts(folder.path).values():
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
        _keep_labelled(labelled, table, path)
    assert tally is not None, "a folder without parts is refused before"
    predicted = len(tally.rows)
    for path in parts(folder.rejects).values():
        tally.rows.add(read_table(path, ["row"])["row"].to_numpy())
    _add_rejects_of_stage_one(tally.rows, folder.run, folder.evaluation_set)
    tally.rejected = len(tally.rows) - predicted
    return tally, labelled


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


def _keep_labelled(labelled: Labelled, table: pa.Table, path: Path) -> None:
    """Keep what the statistics need of the labelled rows; probabilities are not read where there is none."""
    known = table["label"].is_valid().to_numpy()
    if not known.any():
        return
    label = table["label"].fill_null(-1).to_numpy()[known]
    lists: Any = read_table(path, ["probabilities"])["probabilities"].combine_chunks()
    labelled.row.append(table["row"].to_numpy()[known])
    labelled.label.append(label)
    labelled.right.append(table["prediction"].to_numpy()[known] == label)
    labelled.probabilities.append(lists.flatten().to_numpy().reshape(len(known), -1)[known])
