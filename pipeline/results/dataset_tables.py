"""Data statistics and provenance for the terminal (rich) and for programs (JSON)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.results.tables import ABSENT, percent, whole

SHORT_DIGEST = 12


def datasets_json(statistics: pl.DataFrame, provenance: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Both tables as JSON values, digests in full and absent figures null."""
    return {"statistics": statistics.to_dicts(), "provenance": provenance.to_dicts()}


def datasets_tables(statistics: pl.DataFrame, provenance: pl.DataFrame) -> list[Table]:
    """Tables of statistics, of images per class and of provenance; each fits a terminal of 80 columns.

    The arguments are the frames of :mod:`pipeline.results.datasets`.
    """
    return [_statistics_table(statistics), _classes_table(statistics), _provenance_table(provenance)]


def _statistics_table(frame: pl.DataFrame) -> Table:
    numbers = ("Images", "Classes", "Per class", "Maj. %", "Groups", "Pixels")
    table = _table("Data statistics", ["Evaluation set"], numbers)
    for row in frame.iter_rows(named=True):
        low, high = row["smallest_class"], row["largest_class"]
        cells = [
            "\n".join(filter(None, (row["evaluation_set"], row["condition"] and f"({row['condition']})"))),
            whole(row["images"]) + (f"\n{whole(row['rejected'])} rejected" if row["rejected"] else ""),
            whole(row["classes"]),
            whole(low) if low == high else f"{whole(low)}-{whole(high)}",
            percent(row["majority_rate"]),
            ABSENT if row["groups"] is None else whole(row["groups"]),
            "\n".join(filter(None, (row["stored_size"], row["source_size"] and f"of {row['source_size']}"))),
        ]
        _add(table, cells)
    return table


def _classes_table(frame: pl.DataFrame) -> Table:
    table = _table("Images per class", ["Evaluation set", "Classes in the order of their labels"], ())
    for row in frame.iter_rows(named=True):
        counts = [f"{name} {whole(count)}" for name, count in zip(row["class_names"], row["class_counts"], strict=True)]
        if row["unlabelled"]:
            counts.append(f"not known {whole(row['unlabelled'])}")
        _add(table, [row["evaluation_set"], "; ".join(counts)])
    return table


def _provenance_table(frame: pl.DataFrame) -> Table:
    table = _table(
        "Where the images come from", ["Evaluation set", "Source", "Shifts", "Licence, address"], ["SHA-256"]
    )
    for row in frame.iter_rows(named=True):
        source = " ".join(_words(row, "kind", "name", "split"))
        severities = f"severity {', '.join(str(level) for level in row['severities'])}" if row["severities"] else ""
        cells = [
            row["evaluation_set"],
            f"{source}, {whole(row['images'])} listed",
            "\n".join(filter(None, (", ".join(row["corruptions"]), severities))) or ABSENT,
            "\n".join(_words(row, "license", "homepage")) or ABSENT,
            (row["sha256"] or ABSENT)[:SHORT_DIGEST],
        ]
        _add(table, cells)
    return table


def _words(row: Mapping[str, Any], *keys: str) -> Iterable[str]:
    return (row[key] for key in keys if row[key])


def _add(table: Table, cells: Sequence[str]) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _table(title: str, folding: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in folding:
        table.add_column(name, overflow="fold", min_width=8)
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table
