import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from rich.table import Table

from pipeline.results.layout import read_run
from pipeline.results.ledger import ledger_rows
from pipeline.results.metrics import evaluate_run
from pipeline.results.summary import method_means
from pipeline.results.tables import ledger_table, marks_lines, results_json, results_table

from .run_factory import minimal_run, predicted_part, settings_of, study_run, totals


def shown(table: Table, width: int = 200) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def ledger(precompute: dict[str, Any], **infer: dict[str, Any]) -> dict[str, Any]:
    return {"manifest": {"methods": ["t3", "online"]}, "ledger": {"precompute": precompute, "infer": infer}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    run = study_run(tmp_path_factory.mktemp("study") / "run")
    return run, evaluate_run(run)


def test_results_table_names_each_set_once_and_rounds_to_two_decimals(study: tuple[Path, pl.DataFrame]) -> None:
    text = shown(results_table(study[1]))
    assert text.count("night-archive") == 1
    first = study[1].row(0, named=True)
    assert f"{100 * first['accuracy']:.2f}" in text
    assert "1,492 unlabelled" in text


def test_best_accuracy_of_each_set_is_bold(study: tuple[Path, pl.DataFrame]) -> None:
    table = results_table(study[1])
    column = list(table.columns[2].cells)
    expected = study[1].with_columns(best=pl.col("accuracy") == pl.col("accuracy").max().over("evaluation_set"))
    bold = [getattr(cell, "style", "") == "bold" for cell in column]
    assert bold == [bool(best) for best in expected["best"].fill_null(value=False)]


def with_an_oracle(run: Path) -> Path:
    """A run in which only a method that looks at labels makes no error."""
    run = minimal_run(run, {"pbc": None}, ["generalist", "soup", "oracle"])
    true = [0, 0, 1, 1]
    for method, predicted in {"generalist": [0] * 4, "soup@0000000a": [0, 0, 0, 1], "oracle": true}.items():
        predicted_part(run, method, "pbc", 0, range(4), predicted, true)
    settings_of(run, "soup@0000000a", alpha=0.4)
    return run


def test_marks_of_a_set_stand_beside_it_and_those_of_a_method_beside_the_method(tmp_path: Path) -> None:
    run = with_an_oracle(tmp_path)
    unmarked = evaluate_run(run)
    (run / "checks.json").write_text('{"evaluation_sets": {"pbc": {"marks": ["class-names", "leak"]}}}')
    frame = evaluate_run(run)
    collapse = "majority-collapse"
    assert unmarked["marks"].to_list() == [[collapse], [], []]
    assert frame["marks"].to_list() == [
        ["leak", "class-names", collapse],
        ["leak", "class-names"],
        ["leak", "class-names"],
    ]
    sets, methods = (list(column.cells) for column in results_table(frame).columns[:2])
    assert str(sets[0]) == "pbc†¶"
    assert [str(cell) for cell in methods] == ["generalist‖", "soup (alpha=0.4)", "oracle"]
    assert [line.split(" ")[0] for line in marks_lines(frame)] == ["†", "¶", "‖"]


def test_a_mark_that_only_a_later_version_knows_is_passed_over(tmp_path: Path) -> None:
    run = with_an_oracle(tmp_path)
    (run / "checks.json").write_text('{"evaluation_sets": {"pbc": {"marks": ["unheard-of", "leak"]}}}')
    frame = evaluate_run(run)
    assert str(next(iter(results_table(frame).columns[0].cells))) == "pbc†"
    assert [line.split(" ")[0] for line in marks_lines(frame)] == ["†", "‖"]


def test_a_method_that_looks_at_labels_is_dimmed_and_never_bold(tmp_path: Path) -> None:
    table = results_table(evaluate_run(with_an_oracle(tmp_path)))
    methods, accuracies = (list(column.cells) for column in table.columns[1:3])
    assert [str(cell) for cell in methods] == ["generalist‖", "soup (alpha=0.4)", "oracle"]
    assert [str(cell) for cell in accuracies] == ["50.00", "75.00", "100.00"]
    for cells in (methods, accuracies):
        assert [cell.style for cell in cells] == ["", "bold", "dim"]  # type: ignore[union-attr]


def test_markup_in_names_is_shown_as_written(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"[red]set": None}, ["t3"])
    predicted_part(run, "t3", "[red]set", 0, [0, 1], [0, 1], [0, 1])
    assert "[red]set" in shown(results_table(evaluate_run(run)))


def test_no_figure_is_cut_on_a_narrow_terminal(study: tuple[Path, pl.DataFrame]) -> None:
    for table in (results_table(study[1]), ledger_table(read_run(study[0]))):
        assert "…" not in shown(table, width=80)
    wide, narrow = (shown(results_table(study[1]), width) for width in (120, 80))
    for row in study[1].filter(pl.col("samples") > 0).iter_rows(named=True):
        ends = [row[f"accuracy_{end}"] for end in ("low", "high")]
        interval = "‖" if "majority-collapse" in row["marks"] else "–".join(f"{100 * end:.1f}" for end in ends)
        figures = [f"{100 * row['accuracy']:.2f}", interval, f"{100 * row['balanced_accuracy']:.2f}"]
        figures += [f"{100 * row['ece']:.1f}", f"{row['err']:.1f}", f"{row['predicted_classes']}/{row['classes']}"]
        for text in (wide, narrow):
            assert any(set(figures) <= set(line.split()) for line in text.splitlines())
    coefficients = [[line.split()[-1] for line in text.splitlines() if " 4/4 " in line] for text in (wide, narrow)]
    assert coefficients[0] == coefficients[1] == ["0.00", "1.00", "–", "0.61", "0.61", "0.61"] * 2


def test_results_json_is_json_with_nulls(study: tuple[Path, pl.DataFrame]) -> None:
    values = results_json(study[1])
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values[-1]["accuracy"] is None


def test_cost_counts_models_per_batch() -> None:
    stage_one = totals({"generalist": 10, "expert": 10}, 320, 0, 0, 10, 1.0)
    rows = ledger_rows(
        ledger(
            stage_one,
            online=totals({"generalist": 10, "expert": 10, "merged": 10}, 320, 10, 0, 10, 1.0),
            t3=totals({"merged": 10}, 320, 8, 2, 10, 1.0),
        )
    )
    assert [(row.method, row.cost) for row in rows] == [(None, 2.0), ("t3", 1.0), ("online", 3.0)]


def test_batches_larger_than_the_tile_do_not_count_as_more_models() -> None:
    stage_one = totals({"generalist": 10, "expert": 10}, 320, 0, 0, 1, 1.0)
    rows = ledger_rows(ledger(stage_one, t3=totals({"merged": 10}, 320, 5, 0, 5, 1.0)))
    assert [row.cost for row in rows] == [2.0, 1.0]


def test_a_method_read_from_evidence_has_no_cost() -> None:
    row = ledger_rows(ledger({}, t3=totals({}, 0, 0, 0, 0, 0.0)))[0]
    assert row.cost is None


def test_cost_of_sources_counts_every_one_of_them() -> None:
    stage_one = totals({"site-a": 10, "site-b": 10, "site-c": 10}, 320, 0, 0, 10, 1.0)
    rows = ledger_rows(ledger(stage_one, t3=totals({"merged": 10}, 320, 10, 0, 10, 1.0)))
    assert [row.cost for row in rows] == [3.0, 1.0]
    columns = [str(column.header) for column in ledger_table(ledger(stage_one)).columns]
    assert columns[1:] == ["Cost", "site-a", "site-b", "site-c", "Text", "Merges", "Skipped"]


def test_the_unit_counts_rejected_images_as_well() -> None:
    """A tile is paid for whether or not its images are good: B is what one model needs for the images it was given."""
    stage_one = totals({"generalist": 10, "expert": 10}, 320, 0, 0, 10, 1.0)
    half = totals({"merged": 10}, 320, 10, 0, 10, 1.0)
    half["counts"] |= {"samples": 160, "rejected": 160}
    rows = ledger_rows(ledger(stage_one, t3=half))
    assert [row.cost for row in rows] == [2.0, 1.0]


def test_ledger_table_shows_calls_and_cost(study: tuple[Path, pl.DataFrame]) -> None:
    text = shown(ledger_table(read_run(study[0])))
    for expected in ("precompute", "2.00 B", "1.00 B", "3.00 B", "merged", "118"):
        assert expected in text


def test_ledger_table_of_a_run_without_ledger_is_empty() -> None:
    assert ledger_table({"manifest": {}}).row_count == 0


def test_method_means_average_over_labelled_sets(study: tuple[Path, pl.DataFrame]) -> None:
    frame = study[1]
    for means in method_means(frame):
        rows = frame.filter((pl.col("method") == means.method) & (pl.col("samples") > 0)).to_dicts()
        accuracy = {row["condition"]: row["accuracy"] for row in rows}
        assert means.accuracy == pytest.approx(sum(accuracy.values()) / 4)
        assert means.ood == pytest.approx(sum(accuracy[name] for name in ("base-to-novel", "noise", "digital")) / 3)
        assert means.mce == pytest.approx(sum(row["err"] for row in rows if row["condition"] != "in-domain") / 3)
