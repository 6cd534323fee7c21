"""Tables of a report about accuracy: methods, conditions, evaluation sets, severities.

The paper (arXiv 2510.27265) has accuracy by modality and condition in Table 1, methods against one another in Table 2,
and every modality in detail in Table 7; these are their counterparts, with intervals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.marks import COLLAPSE, sort_codes
from pipeline.results.report.collapse import collapsed_on
from pipeline.results.report.figure import slug
from pipeline.results.report.results import EXPERT, IN_DOMAIN, OUT_OF_DOMAIN, Results
from pipeline.results.report.spending import Spending
from pipeline.results.report.table import Cell, Column, Row, Table
from pipeline.results.report.verdicts import count_seeds, count_sets

LOOKS_AT_LABELS = "looks at labels"
INTERVALS = "Smaller figures: 95 % intervals (bootstrap over independent images, stratified by class)."


def methods_table(results: Results, costs: Sequence[Spending]) -> Table:
    """Every method with its means over evaluation sets (the paper's Table 2)."""
    spent = {cost.method: cost for cost in costs}
    rows = []
    for found in results.methods.iter_rows(named=True):
        cost = spent.get(found["method"])
        own = (COLLAPSE,) if collapsed_on(results, found["method"]) else ()
        cells = [cell_of(found, name) for name in ("accuracy", "balanced_accuracy")]
        cells += [_difference(found, reference) for reference in (GENERALIST, EXPERT)]
        cells += [Cell(found["ood"]), Cell(found["mce"])]
        cells.append(Cell((cost.cost or 0.0) if cost else 0.0 if spent else None))
        rows.append(row_of(results, found, cells, own))
    over = results.labelled.select("study", "evaluation_set").n_unique()
    return Table(
        id="methods",
        title="Means over evaluation sets",
        caption=(
            f"Means over {count_sets(over)} with labels, each counted once whatever its size{_and_seeds(results)}. "
            "Differences are in accuracy, in percentage points; a mean over several sets has no test. OOD averages "
            "base-to-novel, noise and digital. mCE is the mean Err of all conditions but in-domain; Err is 100 for the "
            "generalist, and less is better. Cost is in units of B, the forward calls of one plain model, after "
            f"stage one. {INTERVALS}"
        ),
        heading="Method",
        columns=(
            Column("accuracy", "Accuracy %", "percent", better="higher"),
            Column("balanced_accuracy", "Balanced %", "percent", better="higher"),
            Column("difference_generalist", "Against generalist", "points"),
            Column("difference_expert", "Against expert", "points"),
            Column("ood", "OOD %", "percent", better="higher"),
            Column("mce", "mCE", better="lower"),
            Column("cost", "Cost", "cost"),
        ),
        rows=tuple(rows),
        marks=marks_of_sets(results),
    )


def marks_of_sets(results: Results) -> tuple[str, ...]:
    """Marks of whole evaluation sets: what holds for one of them weighs on every mean that it is part of."""
    codes = [code for marks in results.labelled["marks"].to_list() for code in marks or ()]
    return tuple(sort_codes([code for code in codes if code != COLLAPSE]))


def _and_seeds(results: Results) -> str:
    seeds = count_seeds(results)
    return f", and over {seeds}, whose spread the intervals leave out" if seeds else ""


def conditions_table(results: Results) -> Table:
    """Accuracy by study and condition, and the mean over all evaluation sets (the paper's Table 1)."""
    found = results.labelled.select("study", "condition").unique(maintain_order=True)
    order = {name: place for place, name in enumerate((IN_DOMAIN, *OUT_OF_DOMAIN))}
    keys = sorted(
        found.iter_rows(), key=lambda key: (results.studies.index(key[0]), order.get(key[1], len(order)), str(key[1]))
    )
    rows = []
    for method in results.methods.iter_rows(named=True):
        own = results.labelled.filter(pl.col("method") == method["method"])
        cells = []
        for study, condition in keys:
            here = own.filter((pl.col("study") == study) & pl.col("condition").eq_missing(condition))
            cells.append(_mean_cell(here, "accuracy"))
        rows.append(row_of(results, method, [*cells, cell_of(method, "accuracy")]))
    several = len(results.studies) > 1
    columns = [
        Column(
            f"{study}/{condition}" if several else str(condition),
            condition or "no condition",
            "percent",
            study if several else "",
            "higher",
        )
        for study, condition in keys
    ]
    return Table(
        id="conditions",
        title="By condition",
        caption=(
            "Accuracy in %. Where a condition has several evaluation sets, their mean; the last column is the mean "
            f"over all sets{_and_seeds(results)}. {INTERVALS} A mean of several sets has its "
            "interval in the last column only."
        ),
        heading="Method",
        columns=(*columns, Column("mean", "Mean", "percent", "All" if several else "", "higher")),
        rows=tuple(rows),
    )


def set_table(results: Results, study: str, evaluation_set: str) -> Table:
    """All metrics of every method on one evaluation set (the paper's Table 7, set by set)."""
    here = results.sets.filter((pl.col("study") == study) & (pl.col("evaluation_set") == evaluation_set))
    codes = [set(marks or ()) for marks in here["marks"].to_list()]
    shared = set.intersection(*codes) if codes else set()
    rows = []
    for found in here.iter_rows(named=True):
        cells = [cell_of(found, name) for name in ("accuracy", "balanced_accuracy", "macro_auc", "ece", "err")]
        cells[:2] = [_in_place_of_interval(cell, found["marks"] or ()) for cell in cells[:2]]
        cells += [Cell(found["be"]), Cell(found["rbe"])]
        classes = None if found["predicted_classes"] is None else f"{found['predicted_classes']} of {found['classes']}"
        cells += [Cell(classes), Cell(found["mean_lambda"])]
        marks = tuple(code for code in found["marks"] or () if code not in shared)
        rows.append(row_of(results, found, cells, marks))
    columns = [
        Column("accuracy", "Accuracy %", "percent", better="higher"),
        Column("balanced_accuracy", "Balanced %", "percent", better="higher"),
        Column("macro_auc", "AUC", better="higher", digits=3),
        Column("ece", "ECE %", "percent", better="lower"),
        Column("err", "Err", better="lower"),
        Column("be", "BE", better="lower"),
        Column("rbe", "rBE", better="lower"),
        Column("predicted_classes", "Classes", "text"),
        Column("mean_lambda", "Mean λ", digits=3),
    ]
    kept = [index for index, column in enumerate(columns) if column.name not in {"be", "rbe"} or _any(rows, index)]
    return Table(
        id=f"set-{slug(study, evaluation_set)}",
        title=results.name_of(study, evaluation_set),
        caption=_describe_set(here.row(0, named=True)),
        heading="Method",
        columns=tuple(columns[index] for index in kept),
        rows=tuple(_keep(row, kept) for row in rows),
        marks=tuple(code for code in here["marks"].to_list()[0] or () if code in shared),
    )


def severity_table(results: Results, study: str, evaluation_set: str) -> Table | None:
    """Accuracy at every severity of one corrupted evaluation set; None where the set has no severities."""
    here = results.severities.filter((pl.col("study") == study) & (pl.col("evaluation_set") == evaluation_set))
    if not here.height:
        return None
    keys = here.select("corruption", "severity").unique().sort("corruption", "severity").rows()
    several = len({corruption for corruption, _ in keys}) > 1
    cells: dict[str, dict[Any, Cell]] = {}
    for found in here.iter_rows(named=True):
        cells.setdefault(found["method"], {})[found["corruption"], found["severity"]] = cell_of(found, "accuracy")
    rows = [
        row_of(results, method, [cells[method["method"]].get(key, Cell()) for key in keys])
        for method in here.unique("method", keep="first", maintain_order=True).iter_rows(named=True)
    ]
    seeds = len(results.seeds.get(study, ()))
    spread = f"Means over {seeds} training seeds, ± standard deviation." if seeds > 1 else INTERVALS
    return Table(
        id=f"severity-{slug(study, evaluation_set)}",
        title=f"{results.name_of(study, evaluation_set)} by severity",
        caption=f"Accuracy in % at each severity of {_corruptions(keys)}. {spread}",
        heading="Method",
        columns=tuple(
            Column(
                f"{corruption}/{severity}" if several else f"severity_{severity}",
                f"severity {severity}",
                "percent",
                str(corruption) if several else "",
                "higher",
            )
            for corruption, severity in keys
        ),
        rows=tuple(rows),
    )


def _corruptions(keys: Sequence[tuple[Any, Any]]) -> str:
    return ", ".join(dict.fromkeys(str(corruption) for corruption, _ in keys))


def row_of(results: Results, found: Mapping[str, Any], cells: Iterable[Cell], marks: tuple[str, ...] = ()) -> Row:
    """Row of a method: main or not, and out of the ranking where it looks at labels."""
    analysis = bool(found["analysis_only"])
    return Row(
        name=str(found["label"]),
        cells=tuple(cells),
        ranked=not analysis,
        main=found["method"] in results.main_methods(),
        marks=marks,
        note=LOOKS_AT_LABELS if analysis else "",
    )


def cell_of(found: Mapping[str, Any], name: str) -> Cell:
    """A metric with its interval and its standard deviation over seeds, by the columns of its name."""
    return Cell(found[name], found.get(f"{name}_low"), found.get(f"{name}_high"), found.get(f"{name}_sd"))


def _in_place_of_interval(cell: Cell, marks: Sequence[str]) -> Cell:
    """A collapsed method has no interval: its mark says why."""
    return replace(cell, marks=(COLLAPSE,)) if cell.low is None and COLLAPSE in marks else cell


def _difference(found: Mapping[str, Any], reference: str) -> Cell:
    """The difference with its test where it has one; a model is not compared with itself."""
    if found["method"] == reference:
        return Cell()
    return replace(cell_of(found, f"difference_{reference}"), p=found[f"p_adjusted_{reference}"])


def _mean_cell(rows: pl.DataFrame, name: str) -> Cell:
    """The mean over the sets of a condition; a single set keeps its interval and marks."""
    marks = tuple(dict.fromkeys(code for codes in rows["marks"].to_list() for code in codes or ()))
    if rows.height == 1:
        cell = cell_of(rows.row(0, named=True), name)
        return Cell(cell.value, cell.low, cell.high, cell.spread, marks=marks)
    if not rows.height or rows[name].null_count():
        return Cell(marks=marks)
    mean = rows[name].mean()
    return Cell(mean if isinstance(mean, float) else None, marks=marks)


def _describe_set(found: Mapping[str, Any]) -> str:
    parts = [f"Condition: {found['condition']}." if found["condition"] else "No condition is given."]
    parts.append(f"{found['samples'] or 0:,} labelled images")
    if found["clusters"] is not None and found["clusters"] != found["samples"]:
        parts[-1] += f" of {found['clusters']:,} independent ones"
    if found["unlabelled"]:
        parts[-1] += f", {found['unlabelled']:,} unlabelled"
    if found["rejected"]:
        parts[-1] += f", {found['rejected']:,} rejected"
    parts[-1] += f"; {found['classes']} classes."
    if found["majority_rate"] is not None:
        parts.append(f"The most common class holds {100 * found['majority_rate']:.2f} %.")
    if (found["seeds"] or 1) > 1:
        parts.append(
            f"Means over {found['seeds']} training seeds, ± standard deviation; the intervals leave the seeds out."
        )
    return " ".join(parts)


def _any(rows: Sequence[Row], index: int) -> bool:
    return any(row.cells[index].value is not None for row in rows)


def _keep(row: Row, kept: Sequence[int]) -> Row:
    return Row(row.name, tuple(row.cells[index] for index in kept), row.ranked, row.main, row.marks, row.note)
