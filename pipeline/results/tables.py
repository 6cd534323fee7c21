"""Results and ledger for the terminal (rich) and for programs (JSON)."""

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.results.comparisons import PLAIN_MODELS, confirmed_direction, direction
from pipeline.results.ledger import LedgerRow, cost_text, ledger_rows, model_names
from pipeline.results.marks import COLLAPSE, MARKS, sort_codes
from pipeline.results.studies import Study

ABSENT = "–"
# Names of conditions at the head of narrow columns.
SHORT = {"in-domain": "in-dom.", "base-to-novel": "novel"}


def results_table(frame: pl.DataFrame) -> Table:
    """Tabulate the metrics of :func:`~pipeline.results.metrics.evaluate_run`, methods grouped by evaluation set.

    Accuracies are percentages with two decimals, the best of each set in bold, the first with its 95 % interval; AUC
    (macro) and ECE are percentages too, Err is 100 for the generalist; "Pred." counts the classes that are predicted of
    all. Methods that look at labels are dimmed, and never the best. Symbols are those of :func:`marks_lines`.
    """
    table = _table("Results by evaluation set", "Evaluation set", padding=0)
    table.add_column("Method", overflow="fold", min_width=14)
    for title in ("Acc. %", "95 %", "Bal. %", "AUC", "ECE", "Err", "Pred.", "λ"):
        table.add_column(title, justify="right", no_wrap=True)
    for _, rows in frame.group_by("evaluation_set", maintain_order=True):
        best = rows.filter(~pl.col("analysis_only"))["accuracy"].max()
        of_set = set.intersection(*({*codes} for codes in rows["marks"]))
        headings = _headings(rows.row(0, named=True), rows.height, _symbols(of_set))
        for heading, row in zip(headings, rows.iter_rows(named=True), strict=True):
            is_best = best is not None and row["accuracy"] == best and not row["analysis_only"]
            style = "bold" if is_best else "dim" if row["analysis_only"] else ""
            table.add_row(Text(heading), *(Text(cell, style=style) for cell in _result_cells(row, of_set)))
        table.add_section()
    return table


def marks_lines(frame: pl.DataFrame) -> list[str]:
    """What the symbols in a table of results mean, a line each, for the marks that occur in it."""
    used = sort_codes([code for codes in frame["marks"] for code in codes])
    known = [MARKS[code] for code in used if code in MARKS]
    return [f"{mark.symbol} {mark.title}: {mark.explanation}" for mark in known]


def results_json(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows of the metrics as JSON values, fractions unrounded and absent figures null."""
    return frame.to_dicts()


def study_table(study: Study) -> Table:
    """Tabulate a study: every method's mean accuracy over the sets of all studies and seeds, and by condition.

    The mean has its 95 % interval; "vs gen." and "vs exp." are differences in percentage points, with a star where
    the interval of the difference leaves out 0 and, if there is one set only, the paired test confirms it; "+/-" counts
    the sets on which a method is clearly better than generalist and expert, and clearly worse than one of them. Methods
    that look at labels are dimmed.
    """
    conditions = study.over_seeds["condition"].drop_nulls().unique(maintain_order=True).to_list()
    by_condition = study.over_seeds.group_by("label", "condition").agg(pl.col("accuracy").mean())
    means = {(row["label"], row["condition"]): row["accuracy"] for row in by_condition.iter_rows(named=True)}
    tested = {row["label"]: row for row in study.over_seeds.iter_rows(named=True)} if study.is_of_one_set else {}
    table = _table("Mean accuracy over all sets, studies and seeds, %", "Method", padding=0)
    for title in ("Mean", "95 %", "vs gen.", "vs exp.", *(SHORT.get(name, name) for name in conditions), "+/-"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in study.summary.iter_rows(named=True):
        cells = [
            percent(row["accuracy"]),
            interval(row["accuracy_low"], row["accuracy_high"]),
            *(_difference(row, reference, tested.get(row["label"])) for reference in PLAIN_MODELS),
            *(percent(means.get((row["label"], condition)), 1) for condition in conditions),
            f"{row['wins']}/{row['losses']}",
        ]
        style = "dim" if row["analysis_only"] else ""
        table.add_row(Text(row["label"]), *(Text(cell, style=style) for cell in cells))
    return table


def ledger_table(run_json: Mapping[str, Any]) -> Table:
    """Tabulate what each stage and method spent, by the ledger totals of ``run.json``.

    The cost class counts image forward calls in units of B, the calls that one plain model needs for the same images:
    ``1.00 B`` is the price of one model, ``3.00 B`` that of generalist, expert and merged model together. Merges and
    skipped merges add up to the batches.
    """
    rows = ledger_rows(run_json)
    models = [name for name in model_names(rows) if any(row.image_calls.get(name) for row in rows)]
    table = _table("Image forward calls by model, and what else was spent", "Stage, method")
    for title in ("Cost", *models, "Text", "Merges", "Skipped"):
        table.add_column(title, justify="right", no_wrap=True, style="bold" if title == "Cost" else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in _ledger_cells(row, models)))
    return table


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage with a fixed number of decimals, without the sign."""
    return ABSENT if value is None else f"{100 * value:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval of fractions as percentages with one decimal."""
    return ABSENT if low is None or high is None else f"{percent(low, 1)}–{percent(high, 1)}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A figure with a fixed number of decimals."""
    return ABSENT if value is None else f"{value:,.{digits}f}"


def whole(value: int) -> str:
    """A count with separators between thousands."""
    return f"{value:,}"


def _table(title: str, folding: str, *, padding: int = 1) -> Table:
    """An open table whose first column, ``folding``, gives way on a narrow terminal, so that no figure is ever cut."""
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, padding),
    )
    table.add_column(folding, overflow="fold", min_width=10)
    return table


def _headings(row: Mapping[str, Any], height: int, symbols: str) -> list[str]:
    """What holds for the whole set, one line beside each of its ``height`` methods, the rest beside the last."""
    lines = [f"{row['evaluation_set']}{symbols}"]
    lines += [f"({row['condition']})"] if row["condition"] else []
    lines += [f"{whole(row['samples'])} samples"]
    lines += [f"+{whole(row['unlabelled'])} unlabelled"] if row["unlabelled"] else []
    lines += [f"majority {percent(row['majority_rate'])} %"] if row["majority_rate"] is not None else []
    lines += [""] * (height - len(lines))
    return [*lines[: height - 1], "\n".join(lines[height - 1 :])]


def _symbols(codes: Collection[str]) -> str:
    """Symbols of marks; a code that this version does not know, from a later one, has none."""
    return "".join(MARKS[code].symbol for code in sort_codes([*codes]) if code in MARKS)


def _interval(row: Mapping[str, Any]) -> str:
    """The interval of the accuracy; a method that answers one class has none worth showing, but its mark."""
    if COLLAPSE in row["marks"]:
        return MARKS[COLLAPSE].symbol
    return interval(row["accuracy_low"], row["accuracy_high"])


def _result_cells(row: Mapping[str, Any], of_set: Collection[str]) -> list[str]:
    """Cells of one method; marks that the whole set has stand beside the set."""
    return [
        row["label"]
        + _symbols({*row["marks"]} - {*of_set})
        + (f" ({whole(row['rejected'])} rejected)" if row["rejected"] else ""),
        percent(row["accuracy"]),
        _interval(row),
        percent(row["balanced_accuracy"]),
        percent(row["macro_auc"], 1),
        percent(row["ece"], 1),
        decimal(row["err"], 1),
        f"{row['predicted_classes']}/{row['classes']}",
        decimal(row["mean_lambda"]),
    ]


def _difference(row: Mapping[str, Any], reference: str, tested: Mapping[str, Any] | None) -> str:
    """Percentage points, starred where they are clear; ``tested`` has the p-value of the one set that there is."""
    value, low, high = (row[f"difference_{reference}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return ABSENT
    clear = confirmed_direction(low, high, tested[f"p_adjusted_{reference}"]) if tested else direction(low, high)
    return f"{100 * value:+.2f}{'*' if clear else ' '}"


def _ledger_cells(row: LedgerRow, models: list[str]) -> list[str]:
    return [
        row.method or row.stage,
        cost_text(row),
        *(whole(row.image_calls.get(model, 0)) for model in models),
        *(whole(count) for count in (row.text_calls, row.merges, row.merges_skipped)),
    ]
