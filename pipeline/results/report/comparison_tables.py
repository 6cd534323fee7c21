"""Paired tests of the report: every method against the generalist, the expert and T³, on the same images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.report.figure import slug
from pipeline.results.report.result_tables import row_of
from pipeline.results.report.results import EXPERT, Results
from pipeline.results.report.table import SIGNIFICANT, Cell, Column, Row, Table
from pipeline.results.report.verdicts import count_seeds

REFERENCES = (GENERALIST, EXPERT, "t3", "t3-batch")


def comparison_tables(results: Results) -> list[Table]:
    """Paired tests of every method against each reference, one column for each evaluation set."""
    tables = []
    for reference in REFERENCES:
        against = results.comparisons.filter(pl.col("reference") == reference)
        found = _of_sets(results, reference) if reference in {GENERALIST, EXPERT} else _over_seeds(against)
        keys = [place for place in results.places if against.filter(_at(*place[:2])).height]
        cells = {(row["study"], row["evaluation_set"], row["method"]): _test_cell(row) for row in found}
        compared = set(against["method"])
        rows = [
            row_of(results, method, [cells.get((*key[:2], method["method"]), Cell()) for key in keys])
            for method in results.methods.iter_rows(named=True)
            if method["method"] in compared
        ]
        if rows:
            tests = ", ".join(sorted({str(test) for test in against["test"].drop_nulls()}))
            tables.append(_comparison_table(results, reference, keys, rows, tests))
    return tables


def _comparison_table(
    results: Results, reference: str, keys: Sequence[tuple[str, str, str | None]], rows: list[Row], tests: str
) -> Table:
    several = len(results.studies) > 1
    seeds = count_seeds(results)
    interval = "the interval of that mean" if reference in {GENERALIST, EXPERT} else "the widest interval"
    over = f" Over {seeds}: the mean difference, {interval} and the largest p." if seeds else ""
    return Table(
        id=f"tests-{slug(reference)}",
        title=f"Against {'the ' if reference in {GENERALIST, EXPERT} else ''}{reference}",
        caption=(
            f"Difference in accuracy to {reference} on the same images, in percentage points, with its 95 % interval "
            f"and p adjusted by Holm's method for all methods tested on the set ({tests or 'test not recorded'}). "
            f"Intervals are for one comparison at a time, and a filled sign needs p < {SIGNIFICANT} too.{over}"
        ),
        heading="Method",
        columns=tuple(
            Column(f"{study}/{name}" if several else name, name, "points", study if several else "")
            for study, name, _ in keys
        ),
        rows=tuple(rows),
    )


def _of_sets(results: Results, reference: str) -> Iterable[dict[str, Any]]:
    """Differences to the generalist or the expert as everywhere on the page: the mean over seeds with its interval."""
    name = f"difference_{reference}"
    columns = {"difference": name, "difference_low": f"{name}_low", "difference_high": f"{name}_high"}
    compared = results.labelled.filter(pl.col("method") != reference)
    return compared.select(
        "study", "evaluation_set", "method", p_adjusted=f"p_adjusted_{reference}", **columns
    ).iter_rows(named=True)


def _over_seeds(rows: pl.DataFrame) -> Iterable[dict[str, Any]]:
    """Differences to another method; an interval or test that one seed lacks is missing for all."""
    ends = {"difference_low": pl.col("difference_low").min(), "difference_high": pl.col("difference_high").max()}
    ends["p_adjusted"] = pl.col("p_adjusted").max()
    columns = rows.group_by("study", "evaluation_set", "method", maintain_order=True).agg(
        pl.col("difference").mean(),
        *(pl.when(pl.col(name).null_count() == 0).then(value).alias(name) for name, value in ends.items()),
    )
    return columns.iter_rows(named=True)


def _test_cell(found: Mapping[str, Any]) -> Cell:
    return Cell(found["difference"], found["difference_low"], found["difference_high"], p=found["p_adjusted"])


def _at(study: str, evaluation_set: str) -> pl.Expr:
    return (pl.col("study") == study) & (pl.col("evaluation_set") == evaluation_set)
