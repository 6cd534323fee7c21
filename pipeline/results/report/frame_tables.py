"""Any frame as a table of the report."""

from collections.abc import Collection
from typing import Any

import polars as pl

from pipeline.results.report.table import Cell, Column, Kind, Row, Table


def frame_table(frame: pl.DataFrame, *, name: str, title: str, caption: str, percent: Collection[str] = ()) -> Table:
    """Any frame as a table, its first column as headings of the rows; lists are joined, ``percent`` are fractions."""
    heading, *others = frame.columns
    kinds: dict[str, Kind] = {
        column: "percent" if column in percent else _kind(frame[column].dtype) for column in others
    }
    return Table(
        id=name,
        title=title,
        caption=caption,
        heading=_title(heading),
        columns=tuple(Column(column, _title(column, kinds[column]), kinds[column]) for column in others),
        rows=tuple(
            Row(str(row[heading]), tuple(Cell(_plain(row[column], kinds[column])) for column in others))
            for row in frame.iter_rows(named=True)
        ),
    )


def _kind(dtype: pl.DataType) -> Kind:
    return "count" if dtype.is_integer() else "decimal" if dtype.is_numeric() else "text"


def _title(name: str, kind: Kind = "text") -> str:
    return name.replace("_", " ").capitalize() + (" %" if kind == "percent" else "")


def _plain(value: Any, kind: str) -> Any:
    if value is None or kind != "text":
        return value
    return (", ".join(map(str, value)) or None) if isinstance(value, list) else str(value)
