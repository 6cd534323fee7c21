import csv
import io
import json
import re

import polars as pl
import pytest

from pipeline.results.report.comparison_tables import comparison_tables
from pipeline.results.report.exports import as_csv, as_json, escape, latex
from pipeline.results.report.result_tables import conditions_table, methods_table, set_table, severity_table
from pipeline.results.report.table import (
    Cell,
    Column,
    Row,
    Table,
    as_frame,
    interval_text,
    p_text,
    ranked_rows,
    sign_of,
    value_text,
)

from .results_factory import comparison_row, make_results, method_row, set_row

ACCURACY = Column("accuracy", "Accuracy %", "percent", better="higher")
ERR = Column("err", "Err", better="lower")
HOSTILE = r"50 % & $x_1$ {\input{x}} #~^<>"


def table(*rows: Row, columns: tuple[Column, ...] = (ACCURACY, ERR)) -> Table:
    return Table("some", "Some title", "What 95 % means.", "Method", columns, rows)


def row(name: str, accuracy: float | None, err: float | None, **given: object) -> Row:
    return Row(name, (Cell(accuracy), Cell(err)), **given)  # type: ignore[arg-type]


def test_best_and_second_follow_what_is_shown_and_skip_what_is_not_ranked() -> None:
    rows = [
        row("a", 0.90001, 50.0),
        row("b", 0.90004, 20.0),
        row("c", 0.8, None),
        row("oracle", 0.99, 1.0, ranked=False),
        row("d", 0.7, 60.0),
    ]
    found = {found.name: places for found, places in ranked_rows(table(*rows))}
    assert found == {
        "a": ("best", "second"),
        "b": ("best", "best"),
        "c": ("second", ""),
        "oracle": ("", ""),
        "d": ("", ""),
    }


def test_a_share_of_one_class_is_never_the_best_value() -> None:
    collapsed = Row("collapsed", (Cell(0.95, marks=("majority-collapse",)), Cell(60.0)))
    found = {
        item.name: places for item, places in ranked_rows(table(row("a", 0.9, 50.0), row("b", 0.8, 70.0), collapsed))
    }
    assert found == {"a": ("best", "best"), "b": ("second", ""), "collapsed": ("", "second")}


def test_a_column_in_which_all_are_equal_marks_nothing() -> None:
    assert [places for _, places in ranked_rows(table(row("a", 0.5, 1.0), row("b", 0.5, 1.0)))] == [("", "")] * 2


@pytest.mark.parametrize(
    ("cell", "column", "value", "interval"),
    [
        (Cell(0.9436, 0.936, 0.9509), ACCURACY, "94.36", "93.60 to 95.09"),
        (Cell(0.9436, spread=0.0041), ACCURACY, "94.36 ± 0.41", ""),
        (Cell(-0.0932, -0.1, -0.08), Column("d", "d", "points"), "−9.32", "−10.00 to −8.00"),
        (Cell(0.02), Column("d", "d", "points"), "+2.00", ""),
        (Cell(None), ACCURACY, "–", ""),
        (Cell(1.0), Column("c", "c", "cost"), "1.00 B", ""),
        (Cell(12345), Column("n", "n", "count"), "12,345", ""),
        (Cell("7 of 8"), Column("k", "k", "text"), "7 of 8", ""),
    ],
)
def test_values_are_shown_with_their_unit_and_interval(cell: Cell, column: Column, value: str, interval: str) -> None:
    assert (value_text(cell, column), interval_text(cell, column)) == (value, interval)


def test_a_small_p_is_never_zero() -> None:
    assert (p_text(0.0), p_text(0.0004), p_text(0.0124)) == ("p < 0.001", "p < 0.001", "p = 0.012")


def test_signs_stand_only_beside_differences_whose_interval_excludes_zero_and_are_filled_where_a_test_confirms() -> (
    None
):
    points = Column("d", "d", "points")
    ends = ((0.05, 0.2), (-0.2, -0.05), (-0.1, 0.2))
    signs = {p: [sign_of(Cell(0.1, low, high, p=p), points) for low, high in ends] for p in (0.049, 0.05, None)}
    assert signs == {0.049: ["▲", "▼", ""], 0.05: ["△", "▽", ""], None: ["△", "▽", ""]}
    assert sign_of(Cell(0.9, 0.8, 0.95), ACCURACY) == ""
    assert sign_of(Cell(0.1), points) == ""


def test_data_of_a_table_is_unrounded_and_typed() -> None:
    made = Table(
        "some",
        "t",
        "c",
        "Method",
        (ACCURACY, Column("n", "n", "count")),
        (
            Row("a", (Cell(1 / 3, 0.3, 0.4, spread=0.01, p=0.5, marks=("leak",)), Cell(7))),
            Row("b", (Cell(), Cell()), ranked=False, marks=("majority-collapse",)),
        ),
    )
    frame = as_frame(made)
    assert frame.to_dict(as_series=False) == {
        "name": ["a", "b"],
        "accuracy": [1 / 3, None],
        "accuracy_low": [0.3, None],
        "accuracy_high": [0.4, None],
        "accuracy_sd": [0.01, None],
        "accuracy_p": [0.5, None],
        "n": [7, None],
        "ranked": [True, False],
        "marks": [["leak"], ["majority-collapse"]],
    }
    assert frame.schema["n"] == pl.Int64


def test_csv_and_json_hold_the_same_data() -> None:
    made = table(row('a, "b"', 1 / 3, None), row("c", 0.5, 2.0))
    lines = list(csv.DictReader(io.StringIO(as_csv(made, {}))))
    assert [line["name"] for line in lines] == ['a, "b"', "c"]
    assert float(lines[0]["accuracy"]) == 1 / 3
    assert lines[0]["err"] == ""
    parsed = json.loads(as_json(made, {"leak": "†"}))
    assert parsed["rows"] == as_frame(made).to_dicts()
    assert parsed["columns"]["accuracy"] == {"title": "Accuracy %", "kind": "percent"}
    assert (parsed["title"], parsed["symbols"]) == ("Some title", {"leak": "†"})


def test_latex_is_balanced_escaped_and_marks_the_best() -> None:
    columns = (Column("x", HOSTILE, "percent", better="higher"), Column("y", "λ, γ", group="Group & more"))
    rows = (
        Row(HOSTILE, (Cell(0.9, 0.8, 0.95), Cell(1.0)), marks=("leak",)),
        Row("t3 (mapping=rescaled)", (Cell(0.5, spread=0.01), Cell(None)), note="looks at labels"),
    )
    text = latex(Table("set-a", f"T³ {HOSTILE}", "100 %", "Method", columns, rows), {"leak": "†"})
    assert balanced(text)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    assert r"\label{tab:set-a}" in text
    assert r"\textbf{90.00} {\scriptsize (80.00 to 95.00)}" in text
    assert r"50.00 $\pm$ 1.00" in text
    assert r"\textsuperscript{\dag{}}" in text
    assert r"\cmidrule(lr){3-3}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in body)
    assert r"\input" not in text
    assert not re.search(r"(?<!\\)[%#]", text)


def balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0 and len(re.findall(r"(?<!\\)\$", text)) % 2 == 0


def test_no_letter_is_lost_when_text_is_escaped_for_latex() -> None:
    assert escape(r"a\b_c") == r"a\textbackslash{}b\_c"
    assert escape("two\nlines") == "two lines"


def test_a_model_is_not_compared_with_itself_and_only_main_methods_are_shown_first() -> None:
    methods = [
        method_row("generalist", 0.8, difference_generalist=(0.0, 0.0, 0.0)),
        method_row("t3", 0.7, difference_generalist=(-0.1, -0.2, -0.05)),
        method_row("ties", 0.95, difference_generalist=(0.15, 0.1, 0.2)),
        method_row("slerp", 0.6),
        method_row("oracle", 0.99, analysis_only=True),
    ]
    made = methods_table(make_results(methods, [set_row("a", str(found["method"]), 0.8) for found in methods]), [])
    assert [found.name for found in made.main_rows] == ["generalist", "t3", "ties"]
    assert made.folded
    difference = [column.name for column in made.columns].index("difference_generalist")
    assert made.rows[0].cells[difference].value is None
    assert made.rows[2].cells[difference] == Cell(0.15, 0.1, 0.2)
    assert [found.note for found in made.rows][-1] == "looks at labels"


def test_conditions_average_their_sets_and_keep_the_interval_of_a_single_one() -> None:
    sets = [
        set_row("clean", "t3", 0.9, accuracy_low=0.85, accuracy_high=0.95),
        set_row("speckle", "t3", 0.6, condition="noise"),
        set_row("gaussian", "t3", 0.8, condition="noise", marks=["leak"]),
        set_row("elsewhere", "t3", 0.5, condition="base-to-novel"),
    ]
    made = conditions_table(make_results([method_row("t3", 0.7, accuracy_low=0.6, accuracy_high=0.8)], sets))
    assert [column.title for column in made.columns] == ["in-domain", "base-to-novel", "noise", "Mean"]
    clean, novel, noise, mean = made.rows[0].cells
    assert clean == Cell(0.9, 0.85, 0.95)
    assert novel.value == 0.5
    assert noise.value == pytest.approx(0.7)
    assert (noise.low, noise.marks) == (None, ("leak",))
    assert mean == Cell(0.7, 0.6, 0.8)


def test_marks_of_all_methods_stand_beside_the_set_and_those_of_one_beside_the_method() -> None:
    sets = [set_row("a", "t3", 0.9, marks=["leak"]), set_row("a", "soup", 0.5, marks=["leak", "majority-collapse"])]
    made = set_table(make_results([method_row("t3", 0.9), method_row("soup", 0.5)], sets), "study", "a")
    assert made.marks == ("leak",)
    assert [found.marks for found in made.rows] == [(), ("majority-collapse",)]


def test_columns_that_nothing_was_computed_for_are_shown_as_absent_but_be_is_left_out() -> None:
    plain = set_table(make_results([method_row("t3", 0.9)], [set_row("a", "t3", 0.9)]), "study", "a")
    assert "be" not in {column.name for column in plain.columns}
    assert value_text(plain.rows[0].cells[2], plain.columns[2]) == "–"
    corrupted = set_table(make_results([method_row("t3", 0.9)], [set_row("a", "t3", 0.9, be=0.8)]), "study", "a")
    assert "be" in {column.name for column in corrupted.columns}


def test_severities_are_columns() -> None:
    base = {"study": "study", "evaluation_set": "a", "method": "t3", "label": "t3", "analysis_only": False}
    severities = [base | {"corruption": "pixelate", "severity": level, "accuracy": 1 - level / 10} for level in (2, 1)]
    results = make_results([method_row("t3", 0.9)], [set_row("a", "t3", 0.9)], severities=severities)
    made = severity_table(results, "study", "a")
    assert made is not None
    assert [column.title for column in made.columns] == ["severity 1", "severity 2"]
    assert [cell.value for cell in made.rows[0].cells] == [0.9, 0.8]
    assert severity_table(results, "study", "b") is None


def test_paired_tests_over_seeds_have_the_interval_of_the_mean_and_the_largest_p() -> None:
    """Against T³ there is no interval of the mean: the widest of all seeds."""
    methods = [method_row("generalist", 0.8), method_row("t3", 0.9), method_row("soup", 0.85)]
    own = set_row("a", "t3", 0.9, difference_generalist=(0.15, 0.08, 0.21)) | {"p_adjusted_generalist": 0.2}
    pairs = [
        comparison_row("a", method, reference, difference, p_adjusted=p, seed=seed)
        for method, reference in (("t3", "generalist"), ("soup", "t3"))
        for seed, difference, p in ((0, (0.1, 0.05, 0.15), 0.01), (1, (0.2, 0.1, 0.25), 0.2))
    ]
    sets = [set_row("a", "generalist", 0.8), own, set_row("a", "soup", 0.85)]
    to_generalist, to_t3 = comparison_tables(make_results(methods, sets, pairs, seeds={"study": (0, 1)}))
    assert [[found.name for found in made.rows] for made in (to_generalist, to_t3)] == [["t3"], ["soup"]]
    assert to_generalist.rows[0].cells[0] == Cell(0.15, 0.08, 0.21, p=0.2)
    cell = to_t3.rows[0].cells[0]
    assert cell.value == pytest.approx(0.15)
    assert (cell.low, cell.high, cell.p) == (0.05, 0.25, 0.2)
    assert (
        "Over 2 training seeds: the mean difference, the interval of that mean and the largest p"
        in to_generalist.caption
    )
    assert "the widest interval and the largest p" in to_t3.caption


def test_means_carry_the_marks_of_their_sets_and_methods_that_collapsed_theirs() -> None:
    methods = [method_row("t3", 0.9), method_row("soup", 0.5)]
    sets = [set_row("a", "t3", 0.9, marks=["leak"]), set_row("a", "soup", 0.5, marks=["leak", "majority-collapse"])]
    made = methods_table(make_results(methods, sets), [])
    assert made.marks == ("leak",)
    assert [found.marks for found in made.rows] == [(), ("majority-collapse",)]


def test_latex_explains_the_marks_in_its_caption() -> None:
    made = Table(
        "set-a",
        "Set",
        "Text.",
        "Method",
        (ACCURACY,),
        (Row("t3", (Cell(0.9),), marks=("majority-collapse",)),),
        ("leak",),
    )
    text = latex(made, {"leak": "†", "majority-collapse": "‖", "class-names": "¶"})
    assert balanced(text)
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    assert caption.startswith(r"\caption{Set\textsuperscript{\dag{}}. Text. ")
    assert r"\textsuperscript{\dag{}}~images seen in training" in caption
    assert r"\textsuperscript{$\|$}~one class for all images." in caption
    assert "class names" not in caption
