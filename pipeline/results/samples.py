"""The labelled images of an evaluation set as the statistics see them: who belongs together, and who got which right.

Shape legend: N labelled images, M methods, L levels (a corruption at a severity).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.results.layout import PredictionFolder, parts
from pipeline.store.tables import read_table

ORIGIN_SCHEMA = {
    "row": pl.Int64,
    "sample_id": pl.String,
    "group_id": pl.String,
    "corruption": pl.String,
    "severity": pl.Int32,
}

Level = tuple[str, int | None]


class SampleIndex:
    """Labelled rows of one evaluation set in the order in which they were first seen, ``row_N`` with ``label_N``.

    All methods bring the same rows but for those that one of them had to reject.
    """

    __slots__ = ("_order", "label_N", "row_N")

    def __init__(self) -> None:
        self.row_N: NDArray[np.int64] = np.zeros(0, np.int64)
        self.label_N: NDArray[np.int32] = np.zeros(0, np.int32)
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)

    def place(self, rows: NDArray[np.int64], labels: NDArray[np.int32]) -> NDArray[np.int64]:
        """Positions of ``rows`` (int64 [n], each once) in the index; those not seen before are added to it."""
        unknown = ~np.isin(rows, self.row_N, assume_unique=True)
        if unknown.any():
            self.row_N = np.concatenate([self.row_N, rows[unknown]])
            self.label_N = np.concatenate([self.label_N, labels[unknown]])
            self._order = np.argsort(self.row_N, kind="stable")
        return self._order[np.searchsorted(self.row_N, rows, sorter=self._order)]


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """One evaluation set: for each labelled image its class, cluster and level, and what each method made of it.

    ``clusters`` names the cluster of each image: its ``group_id`` (a patient, or the base image of corrupted versions),
    else its ``sample_id``. ``level_N`` is the position in ``levels``, -1 for an image that is not corrupted.
    ``right_MN`` is 1 where the prediction is right, 0 where it is wrong, -1 where the method rejected the image;
    ``confidence_MN`` is the top-1 probability. ``collapsed`` are the methods that gave all images one class.
    """

    name: str
    classes: int
    methods: tuple[str, ...]
    label_N: NDArray[np.int32]
    clusters: pl.Series
    levels: tuple[Level, ...]
    level_N: NDArray[np.int64]
    right_MN: NDArray[np.int8]
    confidence_MN: NDArray[np.float32]
    collapsed: frozenset[str] = frozenset()

    def method(self, name: str) -> NDArray[np.int8]:
        """``right_N`` of one method."""
        return cast(NDArray[np.int8], self.right_MN[self.methods.index(name)])


def read_origin(folders: Sequence[PredictionFolder], rows: NDArray[np.int64]) -> pl.DataFrame:
    """Sample id, group id, corruption and severity of ``rows``, in their order.

    They stand in the evidence. A column that is absent there (a run made before it was written) is null, and sample ids
    are read from the predictions where there is no evidence any more: each image is then a cluster of its own.
    """
    wanted = pl.DataFrame({"row": rows}, schema={"row": pl.Int64})
    if not len(rows):
        return pl.DataFrame(schema=ORIGIN_SCHEMA)
    evidence = folders[0].run / "evidence" / folders[0].evaluation_set
    origin = wanted.join(_read_columns(parts(evidence).values(), wanted), on="row", how="left", maintain_order="left")
    for folder in folders:
        unnamed = origin.filter(pl.col("sample_id").is_null()).select("row")
        if not unnamed.height:
            break
        found = _read_columns(parts(folder.path).values(), unnamed).select("row", found="sample_id")
        origin = origin.join(found, on="row", how="left", maintain_order="left")
        origin = origin.with_columns(pl.coalesce("sample_id", "found").alias("sample_id")).drop("found")
    return origin


def number_levels(origin: pl.DataFrame) -> tuple[tuple[Level, ...], NDArray[np.int64]]:
    """Levels that occur, by name and severity, and the position of each image's among them (-1: not corrupted)."""
    corrupted = origin.filter(pl.col("corruption").is_not_null()).select("corruption", "severity")
    found = corrupted.unique().sort("corruption", "severity").with_row_index("level")
    joined = origin.join(found, on=["corruption", "severity"], how="left", nulls_equal=True, maintain_order="left")
    levels = tuple((str(name), severity) for name, severity in found.select("corruption", "severity").iter_rows())
    return levels, joined["level"].cast(pl.Int64).fill_null(-1).to_numpy()


def _read_columns(paths: Iterable[Path], wanted: pl.DataFrame) -> pl.DataFrame:
    """Rows of Parquet parts that are ``wanted``, with the columns of the schema; what the parts have not is null."""
    found: list[pl.DataFrame] = [pl.DataFrame(schema=ORIGIN_SCHEMA)]
    for path in paths:
        names = [name for name in pq.read_schema(path).names if name in ORIGIN_SCHEMA]
        part = cast(pl.DataFrame, pl.from_arrow(read_table(path, names)))
        part = part.join(wanted, on="row", how="semi")
        found.append(part.cast({name: ORIGIN_SCHEMA[name] for name in names}))
    return pl.concat(found, how="diagonal")
