"""Tables of the report: one description of cells, intervals and ranks, for HTML and for every export."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from pipeline.results.marks import COLLAPSE
from pipeline.results.tables import ABSENT

Kind = Literal["text", "percent", "points", "decimal", "count", "cost"]
Place = Literal["", "best", "second"]

DIGITS = {"percent": 2, "points": 2, "decimal": 2, "cost": 2}
SMALLEST_P = 0.001
SIGNIFICANT = 0.05
"""Below this adjusted p a test confirms what an interval says."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of figures: ``name`` in exports, ``title`` for people, ``group`` a heading above several columns.

    ``kind`` says how values are shown: ``percent`` and ``points`` are fractions shown times 100, ``points`` with its
    sign; ``cost`` is in units of B. ``better`` says which end is good; without it no value of the column is marked.
    """

    name: str
    title: str
    kind: Kind = "decimal"
    group: str = ""
    better: Literal["higher", "lower"] | None = None
    digits: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One value with its 95 % interval, standard deviation over seeds and adjusted p, each where there is one."""

    value: float | int | str | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    p: float | None = None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row; ``ranked`` rows compete for the best value, ``main`` ones are shown before a reader unfolds the rest."""

    name: str
    cells: tuple[Cell, ...]
    ranked: bool = True
    main: bool = True
    marks: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; ``id`` is unique on the page and the name of its files, ``marks`` hold for the whole table."""

    id: str
    title: str
    caption: str
    heading: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    marks: tuple[str, ...] = ()

    @property
    def main_rows(self) -> tuple[Row, ...]:
        """Rows that are shown at once; all of them where none is called main."""
        return tuple(row for row in self.rows if row.main) or self.rows

    @property
    def folded(self) -> bool:
        """Whether there are rows that only the unfolded table shows."""
        return len(self.main_rows) < len(self.rows)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings above the columns with how many columns each spans; empty where no column has one."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found if any(group for group, _ in found) else []


def ranked_rows(table: Table) -> list[tuple[Row, tuple[Place, ...]]]:
    """Every row with the place of each of its values: best and second of the columns that have a better end.

    Values that are shown alike share a place: a reader must not see two equal figures of which one is marked. A value
    of a method that answers one class for all images has none: it is the share of that class.
    """
    by_column = [_places(table, index, column) for index, column in enumerate(table.columns)]
    return [(row, tuple(column[place] for column in by_column)) for place, row in enumerate(table.rows)]


def value_text(cell: Cell, column: Column) -> str:
    """The value as the page and LaTeX show it, with the standard deviation over seeds behind it."""
    if isinstance(cell.value, str):
        return cell.value
    if cell.value is None:
        return ABSENT
    text = _number(cell.value, column)
    return text if cell.spread is None else f"{text} ± {_number(cell.spread, column, signed=False)}"


def interval_text(cell: Cell, column: Column) -> str:
    """The 95 % interval as ``low to high``; empty where there is none."""
    if cell.low is None or cell.high is None:
        return ""
    return f"{_number(cell.low, column)} to {_number(cell.high, column)}"


def sign_of(cell: Cell, column: Column) -> str:
    """▲ or ▼ beside a difference whose interval excludes 0 where the test confirms it, else △ or ▽."""
    if column.kind != "points" or cell.low is None or cell.high is None or cell.low <= 0 <= cell.high:
        return ""
    confirmed = cell.p is not None and cell.p < SIGNIFICANT
    return ("▲" if confirmed else "△") if cell.low > 0 else "▼" if confirmed else "▽"


def p_text(p: float) -> str:
    """A p-value with three decimals, never as zero."""
    return f"p < {SMALLEST_P}" if p < SMALLEST_P else f"p = {p:.3f}"


def digits_of(column: Column) -> int:
    """Decimals that a column's values are shown with."""
    return DIGITS.get(column.kind, 0) if column.digits is None else column.digits


def as_frame(table: Table) -> pl.DataFrame:
    """The table as data: fractions unrounded, ``_low``, ``_high``, ``_sd`` and ``_p`` beside a value that has them."""
    columns: dict[str, pl.Series] = {"name": pl.Series([row.name for row in table.rows], dtype=pl.String)}
    for index, column in enumerate(table.columns):
        cells = [row.cells[index] for row in table.rows]
        dtype = pl.String if column.kind == "text" else pl.Int64 if column.kind == "count" else pl.Float64
        columns[column.name] = pl.Series([cell.value for cell in cells], dtype=dtype)
        for suffix, values in (
            ("low", [cell.low for cell in cells]),
            ("high", [cell.high for cell in cells]),
            ("sd", [cell.spread for cell in cells]),
            ("p", [cell.p for cell in cells]),
        ):
            if any(value is not None for value in values):
                columns[f"{column.name}_{suffix}"] = pl.Series(values, dtype=pl.Float64)
    columns["ranked"] = pl.Series([row.ranked for row in table.rows], dtype=pl.Boolean)
    columns["marks"] = pl.Series([list(_marks_of(table, row)) for row in table.rows], dtype=pl.List(pl.String))
    return pl.DataFrame(columns)


def used_marks(tables: Iterable[Table]) -> list[str]:
    """Codes of all marks that any of the tables shows, each once, in order of appearance."""
    return list(dict.fromkeys(code for table in tables for row in table.rows for code in _marks_of(table, row)))


def _places(table: Table, index: int, column: Column) -> list[Place]:
    shown = [
        round(value * _factor(column.kind), digits_of(column))
        if row.ranked
        and COLLAPSE not in row.cells[index].marks
        and isinstance(value := row.cells[index].value, int | float)
        else None
        for row in table.rows
    ]
    order = sorted({value for value in shown if value is not None}, reverse=column.better == "higher")
    if column.better is None or len(order) < 2:
        return [""] * len(shown)
    return ["best" if value == order[0] else "second" if value == order[1] else "" for value in shown]


def _marks_of(table: Table, row: Row) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*table.marks, *row.marks, *(mark for cell in row.cells for mark in cell.marks)]))


def _number(value: float, column: Column, *, signed: bool = True) -> str:
    sign = "+" if signed and column.kind == "points" else ""
    text = f"{value * _factor(column.kind):{sign},.{digits_of(column)}f}"
    return (f"{text} B" if column.kind == "cost" else text).replace("-", "−")


def _factor(kind: Kind) -> int:
    return 100 if kind in {"percent", "points"} else 1
