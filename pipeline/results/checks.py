"""What ``pipeline check`` found, as a table and as sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.results.marks import MARKS

LEAKS = ("leak", "near-duplicates")


def checks_table(result: Mapping[str, Any]) -> Table:
    """Tabulate the result of :func:`pipeline.drivers.check.check`: a line for each evaluation and training set.

    Columns are counts of evaluation images: with an exact copy, with a near one. ``in the set itself`` counts images
    that the set holds earlier too.
    """
    table = Table(title="Images that sets share", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Evaluation set", overflow="fold", min_width=14)
    table.add_column("Compared with", overflow="fold", min_width=20)
    for title in ("Images", "Exact", "Near"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, entry in result["evaluation_sets"].items():
        symbols = "".join(MARKS[code].symbol for code in entry["marks"])
        headings = iter([f"{name} {symbols}".strip(), f"({entry['condition']})"])
        for other, images, counts in _comparisons(entry):
            style = "bold" if counts["exact"] or counts["near"] else "dim"
            cells = (other, f"{images:,}", f"{counts['exact']:,}", f"{counts['near']:,}")
            table.add_row(Text(next(headings, "")), *(Text(cell, style=style) for cell in cells))
        table.add_section()
    return table


def checks_lines(result: Mapping[str, Any]) -> list[str]:
    """Sentences under the table: class names, marks explained, what is not known, what was not checked."""
    lines = []
    for name, entry in result["evaluation_sets"].items():
        lines += [f"{name}: {found['model']}: {found['explanation']}" for found in entry["class_names"]]
        if entry["through_base"]:
            lines.append(f"{name}: {entry['through_base']:,} corrupted images count as their base images")
    used = {code for entry in result["evaluation_sets"].values() for code in entry["marks"]}
    lines += [f"{mark.symbol} {mark.title}: {mark.explanation}" for code, mark in MARKS.items() if code in used]
    lines += [f"unknown: {each['model']}: {each['reason']}" for each in result["unknown"]]
    lines += [f"not checked: {name}: {reason}" for name, reason in result["not_checked"].items()]
    return lines


def has_leak(result: Mapping[str, Any]) -> bool:
    """Whether any evaluation set shares an image, or nearly one, with what a model was trained on."""
    return any(code in LEAKS for entry in result["evaluation_sets"].values() for code in entry["marks"])


def _comparisons(entry: Mapping[str, Any]) -> Iterator[tuple[str, int, Mapping[str, int]]]:
    for each in entry["training"]:
        yield f"{each['model']}: {each['set']}, {each['role']}", each["images"], each
    yield "in the set itself", entry["images"], entry["within"]
    for each in entry["between"]:
        if each["exact"] or each["near"]:
            yield f"evaluation set {each['set']}", each["images"], each
