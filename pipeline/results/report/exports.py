"""Tables of the report as files: LaTeX (booktabs), CSV or JSON, one file for each table."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.results.marks import MARKS, sort_codes
from pipeline.results.report.table import (
    Cell,
    Column,
    Place,
    Row,
    Table,
    as_frame,
    interval_text,
    ranked_rows,
    used_marks,
    value_text,
)

LATEX = MappingProxyType(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "λ": r"$\lambda$",
        "γ": r"$\gamma$",
        "δ": r"$\delta$",
        "τ": r"$\tau$",
        "ε": r"$\varepsilon$",
        "θ": r"$\theta$",
        "α": r"$\alpha$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "³": r"$^3$",
        "†": r"\dag{}",
        "‡": r"\ddag{}",
        "§": r"\S{}",
        "¶": r"\P{}",
        "‖": r"$\|$",
    }
)
"""What LaTeX takes for a command, and letters that its default fonts lack; all else is left as it is (UTF-8)."""


def latex(table: Table, symbols: Mapping[str, str]) -> str:
    """One ``table`` environment that needs the package booktabs: best values bold, second underlined.

    Intervals follow their value in small type; ``symbols`` maps codes of marks to what is printed for them, and the
    caption says what those in the table mean.
    """
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_caption(table, symbols)}}}",
        rf"\label{{tab:{table.id}}}",
        rf"\begin{{tabular}}{{l{''.join('l' if column.kind == 'text' else 'r' for column in table.columns)}}}",
        r"\toprule",
        *_latex_groups(table),
        " & ".join(escape(text) for text in (table.heading, *(column.title for column in table.columns))) + r" \\",
        r"\midrule",
        *(_latex_row(table, row, marked, symbols) for row, marked in ranked_rows(table)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(table: Table, symbols: Mapping[str, str]) -> str:  # noqa: ARG001 - one signature for all formats
    """Comma-separated values, fractions unrounded, marks joined by semicolons."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    frame = as_frame(table)
    writer.writerow(frame.columns)
    for row in frame.iter_rows():
        writer.writerow([";".join(value) if isinstance(value, list) else value for value in row])
    return file.getvalue()


def as_json(table: Table, symbols: Mapping[str, str]) -> str:
    """Title, caption, meaning of the columns and rows, fractions unrounded and absent figures null."""
    value: dict[str, Any] = {
        "id": table.id,
        "title": table.title,
        "caption": table.caption,
        "columns": {column.name: {"title": column.title, "kind": column.kind} for column in table.columns},
        "symbols": dict(symbols),
        "rows": as_frame(table).to_dicts(),
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


FORMATS: Mapping[str, tuple[str, Callable[[Table, Mapping[str, str]], str]]] = MappingProxyType(
    {"latex": ("tex", latex), "csv": ("csv", as_csv), "json": ("json", as_json)}
)
"""Suffix and writer of each format."""


def escape(text: str) -> str:
    """Text as LaTeX prints it, whatever a user called a method or a set."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _latex_caption(table: Table, symbols: Mapping[str, str]) -> str:
    """Title with the marks of the whole table, caption, and the title of every mark that the table shows."""
    used = [code for code in sort_codes(used_marks([table])) if code in symbols and code in MARKS]
    meaning = "; ".join(rf"\textsuperscript{{{escape(symbols[code])}}}~{escape(MARKS[code].title)}" for code in used)
    title = escape(table.title) + _latex_marks(table.marks, symbols)
    return f"{title}. {escape(table.caption)}" + (f" {meaning}." if meaning else "")


def _latex_marks(codes: Sequence[str], symbols: Mapping[str, str]) -> str:
    marks = "".join(escape(symbols.get(code, "")) for code in codes)
    return rf"\textsuperscript{{{marks}}}" if marks else ""


def _latex_groups(table: Table) -> list[str]:
    if not table.groups:
        return []
    cells, rules, place = [""], [], 2
    for title, span in table.groups:
        if title:
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(title)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + span - 1}}}")
        else:
            cells += [""] * span
        place += span
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _latex_row(table: Table, row: Row, marked: Sequence[Place], symbols: Mapping[str, str]) -> str:
    name = escape(row.name + (f" ({row.note})" if row.note else "")) + _latex_marks(row.marks, symbols)
    cells = [
        _latex_cell(cell, column, place, symbols)
        for cell, column, place in zip(row.cells, table.columns, marked, strict=True)
    ]
    return " & ".join([name, *cells]) + r" \\"


def _latex_cell(cell: Cell, column: Column, place: Place, symbols: Mapping[str, str]) -> str:
    text = escape(value_text(cell, column))
    text = rf"\textbf{{{text}}}" if place == "best" else rf"\underline{{{text}}}" if place == "second" else text
    interval = interval_text(cell, column)
    return text + _latex_marks(cell.marks, symbols) + (rf" {{\scriptsize ({escape(interval)})}}" if interval else "")
