"""The tables of a report, made from its frames: methods, conditions, evaluation sets, severities, paired tests, costs.

The paper (arXiv 2510.27265) has accuracy by modality and condition in Table 1, methods against one another in Table 2,
cost in Table 3 and every modality in detail in Table 7; these are their counterparts, with intervals.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.ledger import MODELS
from pipeline.results.report.figure import slug
from pipeline.results.report.results import EXPERT, IN_DOMAIN, OUT_OF_DOMAIN, Results
from pipeline.results.report.spending import Spending
from pipeline.results.report.table import Cell, Column, Row, Table

REFERENCES = (GENERALIST, EXPERT, "t3", "t3-batch")
LOOKS_AT_LABELS = "looks at labels"
INTERVALS = "Smaller figures: 95 % intervals (bootstrap over independent images, stratified by class)."


def methods_table(results: Results, costs: Sequence[Spending]) -> Table:
    """Every method with its means over evaluation sets (the paper's Table 2)."""
    spent = {cost.method: cost for cost in costs}
    rows = []
    for found in results.methods.iter_rows(named=True):
        cost = spent.get(found["method"])
        cells = [_cell(found, name) for name in ("accuracy", "balanced_accuracy")]
        cells += [_cell(found, f"difference_{reference}") for reference in (GENERALIST, EXPERT)]
        cells += [Cell(found["ood"]), Cell(found["mce"])]
        cells.append(Cell((cost.cost or 0.0) if cost else 0.0 if spent else None))
        rows.append(_row(results, found, cells))
    over = results.labelled.select("study", "evaluation_set").n_unique()
    return Table(
        id="methods",
        title="Methods",
        caption=(
            f"Means over {over} labelled evaluation set{'' if over == 1 else 's'}, each counted once whatever its size. "
            "Differences are in accuracy, in percentage points. OOD averages base-to-novel, noise and digital. mCE is "
            "the mean Err of all conditions but in-domain; Err is 100 for the generalist, and less is better. Cost is in "
            f"units of B, the forward calls of one plain model, after stage one. {INTERVALS}"
        ),
        heading="Method",
        columns=(
            Column("accuracy", "Accuracy %", "percent", better="higher"),
            Column("balanced_accuracy", "Balanced %", "percent", better="higher"),
            Column("difference_generalist", "to generalist", "points", "Difference", "higher"),
            Column("difference_expert", "to expert", "points", "Difference", "higher"),
            Column("ood", "OOD %", "percent", better="higher"),
            Column("mce", "mCE", better="lower"),
            Column("cost", "Cost", "cost"),
        ),
        rows=tuple(rows),
    )


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
        rows.append(_row(results, method, [*cells, _cell(method, "accuracy")]))
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
            "Accuracy in %. Where a condition has several evaluation sets, their mean; the last column is the mean over "
            f"all sets. {INTERVALS} A mean of several sets has its interval in the last column only."
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
        cells = [_cell(found, name) for name in ("accuracy", "balanced_accuracy", "macro_auc", "ece", "err")]
        cells += [Cell(found["be"]), Cell(found["rbe"])]
        classes = None if found["predicted_classes"] is None else f"{found['predicted_classes']} of {found['classes']}"
        cells += [Cell(classes), Cell(found["mean_lambda"])]
        marks = tuple(code for code in found["marks"] or () if code not in shared)
        rows.append(_row(results, found, cells, marks))
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
        cells.setdefault(found["method"], {})[found["corruption"], found["severity"]] = _cell(found, "accuracy")
    rows = [
        _row(results, method, [cells[method["method"]].get(key, Cell()) for key in keys])
        for method in here.unique("method", keep="first", maintain_order=True).iter_rows(named=True)
    ]
    return Table(
        id=f"severity-{slug(study, evaluation_set)}",
        title=f"{results.name_of(study, evaluation_set)} by severity",
        caption=f"Accuracy in % at each severity of {', '.join(dict.fromkeys(str(key[0]) for key in keys))}. {INTERVALS}",
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


def comparison_tables(results: Results) -> list[Table]:
    """Paired tests of every method against each reference, one column for each evaluation set."""
    tables = []
    for reference in REFERENCES:
        against = results.comparisons.filter(pl.col("reference") == reference)
        keys = [place for place in results.places if against.filter(_at(*place[:2])).height]
        cells = {
            (study, name): {found["method"]: found for found in _over_seeds(against.filter(_at(study, name)))}
            for study, name, _ in keys
        }
        compared = set(against["method"])
        rows = [
            _row(results, method, [_test_cell(cells[key[:2]].get(method["method"])) for key in keys])
            for method in results.methods.iter_rows(named=True)
            if method["method"] in compared
        ]
        if rows:
            tests = ", ".join(sorted({str(test) for test in against["test"].drop_nulls()}))
            tables.append(_comparison_table(results, reference, keys, rows, tests))
    return tables


def costs_table(results: Results, costs: Sequence[Spending]) -> Table | None:
    """What each stage and method spent (the paper's Table 3, counted instead of estimated); None without a ledger."""
    if not costs:
        return None
    labels = dict(results.sets.select("method", "label").unique(maintain_order=True).iter_rows())
    analysis = set(results.sets.filter(pl.col("analysis_only"))["method"])
    main = set(results.main_methods())
    models = [name for name in _models(costs) if any(cost.image_calls.get(name) for cost in costs)]
    rows = [
        Row(
            name=labels.get(cost.method, cost.method) if cost.method else "stage one: precompute",
            cells=(
                Cell(cost.cost or 0.0),
                Cell(cost.per_image),
                *(Cell(cost.image_calls.get(model, 0)) for model in models),
                *(
                    Cell(count)
                    for count in (cost.calls, cost.images, cost.text_calls, cost.merges, cost.merges_skipped)
                ),
                Cell(cost.batches or None),
                Cell(cost.seconds),
            ),
            ranked=cost.method not in analysis,
            main=cost.method is None or cost.method in main,
            note=LOOKS_AT_LABELS if cost.method in analysis else "",
        )
        for cost in costs
    ]
    return Table(
        id="cost",
        title="Forward passes",
        caption=(
            "Counted while running, not estimated, and summed over runs and evaluation sets. B is the number of image "
            "forward calls that one plain model needs for the same images. Seconds are summed over workers."
        ),
        heading="Stage, method",
        columns=(
            Column("cost", "Cost", "cost"),
            Column("per_image", "Passes per image"),
            *(Column(f"calls_{model}", f"{model}", "count", "Image forward calls") for model in models),
            Column("calls", "all", "count", "Image forward calls"),
            Column("images", "Images", "count"),
            Column("text_calls", "Text forwards", "count"),
            Column("merges", "Merges", "count"),
            Column("merges_skipped", "Skipped", "count"),
            Column("batches", "Batches", "count"),
            Column("seconds", "Seconds", digits=1),
        ),
        rows=tuple(rows),
    )


def frame_table(frame: pl.DataFrame, *, name: str, title: str, caption: str) -> Table:
    """Any frame as a table, its first column as headings of the rows; lists are joined, fractions left as they are."""
    heading, *others = frame.columns
    kinds = {column: "count" if frame[column].dtype.is_integer() else "decimal" for column in others}
    kinds |= {column: "text" for column in others if not frame[column].dtype.is_numeric()}
    return Table(
        id=name,
        title=title,
        caption=caption,
        heading=_title(heading),
        columns=tuple(Column(column, _title(column), kinds[column]) for column in others),  # type: ignore[arg-type]
        rows=tuple(
            Row(str(row[heading]), tuple(Cell(_plain(row[column], kinds[column])) for column in others))
            for row in frame.iter_rows(named=True)
        ),
    )


def _comparison_table(
    results: Results, reference: str, keys: Sequence[tuple[str, str, str | None]], rows: list[Row], tests: str
) -> Table:
    several = len(results.studies) > 1
    seeds = max(map(len, results.seeds.values()), default=1)
    over = (
        " Over several training seeds: the mean difference, the widest interval and the largest p." if seeds > 1 else ""
    )
    return Table(
        id=f"tests-{slug(reference)}",
        title=f"Against {'the ' if reference in {GENERALIST, EXPERT} else ''}{reference}",
        caption=(
            f"Difference in accuracy to {reference} on the same images, in percentage points, with its 95 % interval and "
            f"p adjusted by Holm's method for the number of methods tested on the set ({tests or 'test not recorded'}).{over}"
        ),
        heading="Method",
        columns=tuple(
            Column(f"{study}/{name}" if several else name, name, "points", study if several else "", "higher")
            for study, name, _ in keys
        ),
        rows=tuple(rows),
    )


def _over_seeds(rows: pl.DataFrame) -> Iterable[dict[str, Any]]:
    columns = rows.group_by("method", maintain_order=True).agg(
        pl.col("difference").mean(),
        pl.col("difference_low").min(),
        pl.col("difference_high").max(),
        pl.col("p_adjusted").max(),
    )
    return columns.iter_rows(named=True)


def _test_cell(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return Cell()
    return Cell(found["difference"], found["difference_low"], found["difference_high"], p=found["p_adjusted"])


def _row(results: Results, found: Mapping[str, Any], cells: Iterable[Cell], marks: tuple[str, ...] = ()) -> Row:
    analysis = bool(found["analysis_only"])
    return Row(
        name=str(found["label"]),
        cells=tuple(cells),
        ranked=not analysis,
        main=found["method"] in results.main_methods(),
        marks=marks,
        note=LOOKS_AT_LABELS if analysis else "",
    )


def _cell(found: Mapping[str, Any], name: str) -> Cell:
    return Cell(found[name], found.get(f"{name}_low"), found.get(f"{name}_high"), found.get(f"{name}_sd"))


def _mean_cell(rows: pl.DataFrame, name: str) -> Cell:
    """The mean over the sets of a condition; a single set keeps its interval and marks."""
    marks = tuple(dict.fromkeys(code for codes in rows["marks"].to_list() for code in codes or ()))
    if rows.height == 1:
        cell = _cell(rows.row(0, named=True), name)
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
        parts.append(f"Means over {found['seeds']} training seeds, ± standard deviation.")
    return " ".join(parts)


def _models(costs: Sequence[Spending]) -> list[str]:
    others = sorted({name for cost in costs for name in cost.image_calls} - set(MODELS))
    return [*MODELS, *others]


def _at(study: str, evaluation_set: str) -> pl.Expr:
    return (pl.col("study") == study) & (pl.col("evaluation_set") == evaluation_set)


def _any(rows: Sequence[Row], index: int) -> bool:
    return any(row.cells[index].value is not None for row in rows)


def _keep(row: Row, kept: Sequence[int]) -> Row:
    return Row(row.name, tuple(row.cells[index] for index in kept), row.ranked, row.main, row.marks, row.note)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _plain(value: Any, kind: str) -> Any:
    if value is None or kind != "text":
        return value
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
