"""A method that answers one class for every image has intervals of no width, which must not pass for certainty."""

import polars as pl
import pytest

from pipeline.results.report.collapse import without_false_certainty
from pipeline.results.report.comparison_tables import comparison_tables
from pipeline.results.report.result_tables import set_table
from pipeline.results.report.results import Results
from pipeline.results.report.table import interval_text
from pipeline.results.report.verdicts import Verdict, per_set_verdicts
from tests.results.results_factory import comparison_row, make_results, method_row, set_row

COLLAPSED = ["majority-collapse"]
NO_WIDTH = (0.02, 0.02, 0.02)
CLEAR = (0.2, 0.15, 0.25)


@pytest.fixture
def results() -> Results:
    """Generalist and soup answer one class on set a, t3 does not; on b nobody does."""
    same = {"accuracy_low": 0.7, "accuracy_high": 0.7}
    sets = [
        set_row("a", "generalist", 0.7, marks=COLLAPSED, **same),
        set_row("a", "soup", 0.72, marks=COLLAPSED, difference_generalist=NO_WIDTH, err=(98.0, 98.0, 98.0), **same),
        set_row("a", "t3", 0.9, difference_generalist=CLEAR, accuracy_low=0.85, accuracy_high=0.95),
        set_row("b", "generalist", 0.7, accuracy_low=0.6, accuracy_high=0.8),
        set_row("b", "soup", 0.9, difference_generalist=CLEAR, accuracy_low=0.85, accuracy_high=0.95),
    ]
    methods = [
        method_row("generalist", 0.7, accuracy_low=0.65, accuracy_high=0.75),
        method_row("soup", 0.8, difference_generalist=(0.1, 0.05, 0.15)),
        method_row("t3", 0.9, difference_generalist=CLEAR),
    ]
    pairs = [
        comparison_row("a", "soup", "generalist", NO_WIDTH, p_adjusted=0.01),
        comparison_row("a", "t3", "generalist", CLEAR),
        comparison_row("b", "soup", "generalist", CLEAR),
    ]
    return without_false_certainty(make_results(methods, sets, pairs))


def test_two_collapsed_methods_get_no_verdict_where_both_have_collapsed(results: Results) -> None:
    assert per_set_verdicts(results, "soup", "generalist") == {"a": Verdict.UNKNOWN, "b": Verdict.BETTER}
    assert per_set_verdicts(results, "t3", "generalist") == {"a": Verdict.BETTER}
    row = results.sets.row(by_predicate=(pl.col("method") == "soup") & (pl.col("evaluation_set") == "a"), named=True)
    assert (row["difference_generalist"], row["p_adjusted_generalist"], row["err"]) == (0.02, None, 98.0)
    assert (row["err_low"], row["accuracy_low"]) == (None, None)
    assert results.comparisons["p_adjusted"].is_null().to_list() == [True, False, False]


def test_a_mean_that_rests_on_such_a_set_has_no_interval(results: Results) -> None:
    rows = {row["method"]: row for row in results.methods.iter_rows(named=True)}
    assert rows["generalist"]["accuracy_low"] is None
    assert (rows["soup"]["difference_generalist"], rows["soup"]["difference_generalist_low"]) == (0.1, None)
    assert rows["t3"]["difference_generalist_low"] == 0.15


def test_the_mark_stands_where_the_interval_would(results: Results) -> None:
    made = set_table(results, "study", "a")
    cells = {row.name: row.cells[0] for row in made.rows}
    assert interval_text(cells["soup"], made.columns[0]) == ""
    assert cells["soup"].marks == ("majority-collapse",)
    assert cells["t3"].marks == ()
    assert interval_text(cells["t3"], made.columns[0]) == "85.00 to 95.00"


def test_the_table_of_tests_shows_the_difference_alone(results: Results) -> None:
    (made,) = comparison_tables(results)
    soup = next(row for row in made.rows if row.name == "soup")
    assert (soup.cells[0].value, soup.cells[0].low, soup.cells[0].p) == (0.02, None, None)
    assert soup.cells[1].low == 0.15
