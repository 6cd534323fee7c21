"""Paired tests of the report: every method against the generalist, the expert and T³, on the same images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.report.figure import slug
from pipeline.results.report.result_tables import row_of
from pipeline.results.report.results import EXPERT, Results
from pipeline.results.report.table import Cell, Column, Row, Table

REFERENCES = (GENERALIST, EXPERT, "t3", "t3-batch")


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
            row_of(results, method, [_test_cell(cells[key[:2]].get(method["method"])) for key in keys])
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
    seeds = max(map(len, results.seeds.values()), default=1)
    over = (
        " Over several training seeds: the mean difference, the widest interval and the largest p." if seeds > 1 else ""
    )
    return Table(
        id=f"tests-{slug(reference)}",
        title=f"Against {'the ' if reference in {GENERALIST, EXPERT} else ''}{reference}",
        caption=(
            f"Difference in accuracy to {reference} on the same images, in percentage points, with its 95 % interval "
            f"and p adjusted by Holm's method for all methods tested on the set ({tests or 'test not recorded'}). "
            f"Signs and intervals are for one comparison at a time.{over}"
        ),
        heading="Method",
        columns=tuple(
            Column(f"{study}/{name}" if several else name, name, "points", study if several else "")
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


def _at(study: str, evaluation_set: str) -> pl.Expr:
    return (pl.col("study") == study) & (pl.col("evaluation_set") == evaluation_set)
