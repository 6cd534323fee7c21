import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.results.metrics import evaluate_run
from pipeline.results.report.costs import cost_figures, mean_accuracies, read_costs
from pipeline.store.files import write_json
from tests.results.run_factory import FakeSet, minimal_run, study_run

SETS = [
    FakeSet("blood", "in-domain", ["a", "b"], 3200, 0.1),
    FakeSet("pbc", "base-to-novel", ["a", "b"], 3200, 0.4),
]
# The factory's ledger: 200 calls of each plain model for 6,400 images, tiles of 32.
STAGE_ONE = "stage one, once per archive"
LABEL = "t3-lambda (gamma=0.5)"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_run(tmp_path_factory.mktemp("costs") / "run", sets=SETS)


@pytest.fixture(scope="module")
def frame(run: Path) -> pl.DataFrame:
    return evaluate_run(run)


def test_costs_are_calls_over_those_of_one_plain_model(run: Path) -> None:
    costs = read_costs([run])
    assert list(costs) == [STAGE_ONE, "t3", "t3-lambda", LABEL]
    assert [(cost.calls, cost.unit) for cost in costs.values()] == [(400, 200), (200, 200), (200, 200), (600, 200)]
    assert [cost.cost for cost in costs.values()] == [2.0, 1.0, 1.0, 3.0]


def test_runs_are_added_before_they_are_divided(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    calls = record["ledger"]["infer"]["t3"]["counts"]["image_forward_calls"]
    calls["merged"] *= 2
    record["manifest"]["seeds"] = {"training": 1}
    write_json(tmp_path / "run.json", record)
    cost = read_costs([run, tmp_path])["t3"]
    assert (cost.calls, cost.unit) == (600, 400)


def test_bars_say_what_is_cheap(run: Path, frame: pl.DataFrame) -> None:
    bars, _ = cost_figures([run], frame)
    assert bars.id == "costs"
    assert (
        "1.00 B: t3, t3-lambda. 2.00 B: stage one, once per archive. 3.00 B: t3-lambda (gamma=0.5)." in bars.description
    )
    assert bars.data.columns == ["label", "method", "calls", "unit", "cost"]
    for label in (STAGE_ONE, "t3", LABEL):
        assert f">{label}</text>" in bars.svg


def test_accuracy_stands_against_cost_for_methods_with_a_ledger(run: Path, frame: pl.DataFrame) -> None:
    _, scatter = cost_figures([run], frame)
    assert scatter.data["label"].to_list() == ["t3", "t3-lambda", LABEL]
    t3 = frame.filter(pl.col("method") == "t3")["accuracy"].to_list()
    assert scatter.data["accuracy"][0] == pytest.approx(sum(t3) / 2)
    assert f"t3 {50 * sum(t3):.2f} % at 1.00 B" in scatter.description


def test_each_set_counts_once_however_many_seeds_it_has() -> None:
    rows = [
        ("t3", "blood", "x", 0.5, False),
        ("t3", "blood", "x", 0.7, False),
        ("t3", "blood", "y", 0.9, False),
        ("soup", "blood", "x", 0.4, False),
        ("oracle", "blood", "x", 1.0, True),
        ("oracle", "blood", "y", 1.0, True),
        ("t3", "blood", "unlabelled", None, False),
    ]
    frame = pl.DataFrame(rows, schema=["label", "study", "evaluation_set", "accuracy", "analysis_only"], orient="row")
    assert mean_accuracies(frame) == pytest.approx({"t3": (0.6 + 0.9) / 2})


def test_a_run_without_a_ledger_has_no_figure(tmp_path: Path, frame: pl.DataFrame) -> None:
    assert cost_figures([minimal_run(tmp_path, {"pbc": None}, ["t3"])], frame) == []
