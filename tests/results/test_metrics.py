import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from pipeline.errors import RunDirectoryError
from pipeline.results.metrics import evaluate_run
from pipeline.results.rows import RowSet
from pipeline.store.files import write_json
from pipeline.store.tables import read_metadata

from .run_factory import (
    STUDY_METHODS,
    minimal_run,
    predicted_part,
    prediction_columns,
    settings_of,
    study_run,
    write_part,
)

ROWS = np.arange(6)
TRUE = [0, 0, 0, 0, 1, 1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return minimal_run(tmp_path / "run", {"pbc": "noise"}, ["generalist", "t3"])


def record(frame: pl.DataFrame, method: str, name: str = "pbc") -> dict[str, object]:
    return frame.row(by_predicate=(pl.col("method") == method) & (pl.col("evaluation_set") == name), named=True)


def test_metrics_equal_scikit_learn_on_the_raw_arrays(tmp_path: Path) -> None:
    run = study_run(tmp_path / "run")
    frame = evaluate_run(run)
    assert frame.height == 5 * len(STUDY_METHODS)
    for row in frame.filter(pl.col("samples") > 0).iter_rows(named=True):
        raw = pl.read_parquet(run / "predictions" / row["method"] / row["evaluation_set"] / "part-*.parquet", glob=True)
        true, predicted = raw["label"].to_numpy(), raw["prediction"].to_numpy()
        assert row["samples"] == len(true)
        assert row["accuracy"] == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted), abs=1e-12)
        assert row["majority_rate"] == pytest.approx(raw["label"].value_counts()["count"].max() / len(true), abs=1e-12)
        assert row["predicted_classes"] == len(np.unique(predicted))
        plain = record(frame, "generalist", row["evaluation_set"])["accuracy"]
        assert row["err"] == pytest.approx(100 * (1 - row["accuracy"]) / (1 - plain), abs=1e-9)


def test_rows_follow_the_manifest_with_sets_outermost(tmp_path: Path) -> None:
    frame = evaluate_run(study_run(tmp_path / "run"))
    assert frame["method"].to_list()[: len(STUDY_METHODS)] == list(STUDY_METHODS)
    assert frame["evaluation_set"].unique(maintain_order=True).to_list()[:2] == ["bloodmnist", "pbc"]
    assert record(frame, "t3")["condition"] == "base-to-novel"


def test_a_method_is_labelled_by_the_settings_that_are_not_its_defaults(run: Path) -> None:
    window = {"rows": 256}
    methods = {
        "t3": ({}, "t3"),
        "soup@00000001": ({"alpha": 0.4}, "soup (alpha=0.4)"),
        "t3-batch@00000002": (
            {"order": "dirichlet(0.05)", "batch_size": 8, "window": window},
            "t3-batch (batch_size=8, order=dirichlet(0.05))",
        ),
        "t3-lambda@00000003": ({"window": window}, "t3-lambda"),
    }
    for method, (changed, _) in methods.items():
        predicted_part(run, method, "pbc", 0, ROWS, TRUE, TRUE)
        if changed:
            settings_of(run, method, **changed)
    frame = evaluate_run(run)
    assert dict(zip(frame["method"], frame["label"], strict=True)) == {
        name: label for name, (_, label) in methods.items()
    }


def test_methods_that_would_be_called_alike_keep_the_names_of_their_folders(run: Path) -> None:
    """A run whose window was changed holds the same method twice, and the window is no part of a label."""
    changed: dict[str, dict[str, object]] = {
        "t3@00000001": {"gamma": 2.0, "window": {"rows": 256}},
        "t3@00000002": {"gamma": 2.0, "window": {"rows": 512}},
        "t3@00000003": {"gamma": 3.0},
        "t3-batch@00000004": {"window": {"rows": 256}},
    }
    for method, settings in changed.items():
        predicted_part(run, method, "pbc", 0, ROWS, TRUE, TRUE)
        settings_of(run, method, **settings)
    predicted_part(run, "t3-batch", "pbc", 0, ROWS, TRUE, TRUE)
    frame = evaluate_run(run)
    assert dict(zip(frame["method"], frame["label"], strict=True)) == {
        "t3@00000001": "t3@00000001",
        "t3@00000002": "t3@00000002",
        "t3@00000003": "t3 (gamma=3.0)",
        "t3-batch": "t3-batch",
        "t3-batch@00000004": "t3-batch@00000004",
    }


def test_methods_that_look_at_labels_are_for_analysis_only(run: Path) -> None:
    methods = [
        "generalist",
        "t3",
        "site-a",
        "oracle",
        "oracle@00000001",
        "x-entropy-ratio-batch",
        "clinic.rules.margin",
    ]
    for method in methods:
        predicted_part(run, method, "pbc", 0, ROWS, TRUE, TRUE)
    frame = evaluate_run(run)
    marked = frame.filter(pl.col("analysis_only"))["method"]
    assert set(marked) == {"oracle", "oracle@00000001", "x-entropy-ratio-batch"}


def test_variants_follow_one_another_as_the_run_recorded_them(run: Path) -> None:
    variants = ["soup@00000009", "generalist", "soup@00000001", "soup", "t3"]
    for method in variants:
        predicted_part(run, method, "pbc", 0, ROWS, TRUE, TRUE)
    record = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", record | {"variants": variants})
    assert evaluate_run(run)["method"].to_list() == variants


def test_metrics_file_holds_the_frame_and_a_fingerprint_and_is_reproducible(run: Path) -> None:
    predicted_part(run, "generalist", "pbc", 0, ROWS, TRUE, TRUE)
    frame = evaluate_run(run)
    path = run / "metrics.parquet"
    before = path.read_bytes()
    assert pl.read_parquet(path).equals(frame)
    assert evaluate_run(run).equals(frame)
    assert path.read_bytes() == before
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata.inputs["predictions of generalist for pbc"] == frame["fingerprint"][0]


def test_err_is_null_when_the_generalist_makes_no_error(run: Path) -> None:
    predicted_part(run, "generalist", "pbc", 0, ROWS, TRUE, TRUE)
    predicted_part(run, "t3", "pbc", 0, ROWS, [0] * 6, TRUE)
    frame = evaluate_run(run)
    assert frame["err"].to_list() == [None, None]
    assert record(frame, "t3")["predicted_classes"] == 1
    assert record(frame, "t3")["accuracy"] == record(frame, "t3")["majority_rate"]


def test_err_is_null_without_predictions_of_the_generalist(run: Path) -> None:
    predicted_part(run, "t3", "pbc", 0, ROWS, [0] * 6, TRUE)
    assert evaluate_run(run)["err"].to_list() == [None]


def test_unlabelled_rows_are_counted_apart(run: Path) -> None:
    predicted_part(run, "t3", "pbc", 0, ROWS, [0, 0, 1, 1, 1, 1], [0, 0, None, None, 1, 1])
    row = record(evaluate_run(run), "t3")
    assert (row["samples"], row["unlabelled"], row["accuracy"]) == (4, 2, 1.0)
    assert row["mean_lambda"] == 0.5


def test_an_unlabelled_set_has_null_metrics(run: Path) -> None:
    for method in ("generalist", "t3"):
        predicted_part(run, method, "pbc", 0, ROWS, [1] * 6, [None] * 6)
    row = record(evaluate_run(run), "t3")
    assert row["samples"] == 0
    assert row["unlabelled"] == 6
    assert [row[name] for name in ("accuracy", "balanced_accuracy", "err", "majority_rate")] == [None] * 4
    assert (row["predicted_classes"], row["classes"]) == (1, 2)


def test_static_methods_without_lambda_have_a_null_mean(run: Path) -> None:
    columns = prediction_columns(ROWS, np.zeros(6, int), TRUE, [None] * 6, ["a", "b"])
    write_part(run / "predictions" / "generalist" / "pbc", 0, columns)
    assert evaluate_run(run)["mean_lambda"].to_list() == [None]


def test_without_predictions_the_message_says_what_to_run(run: Path) -> None:
    with pytest.raises(RunDirectoryError, match="run `pipeline infer` first"):
        evaluate_run(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"holds no run\.json"):
        evaluate_run(tmp_path)


def test_a_gap_in_the_parts_is_named(run: Path) -> None:
    for index in (0, 2):
        predicted_part(run, "t3", "pbc", index, ROWS + 6 * index, TRUE, TRUE)
    with pytest.raises(RunDirectoryError, match=r"'t3', evaluation set 'pbc': part-00001 .*`pipeline infer`"):
        evaluate_run(run)


def test_a_part_that_the_ledger_counted_but_is_gone_is_named(run: Path) -> None:
    predicted_part(run, "t3", "pbc", 0, ROWS, TRUE, TRUE)
    ledger = run / "ledger" / "infer" / "t3" / "pbc"
    ledger.mkdir(parents=True)
    for index in range(2):
        (ledger / f"part-{index:05d}.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="part-00001"):
        evaluate_run(run)


def test_a_missing_last_part_shows_by_the_rows_of_the_evidence(run: Path) -> None:
    write_part(run / "evidence" / "pbc", 0, {"row": ROWS})
    write_part(run / "evidence" / "pbc", 1, {"row": ROWS + 6})
    for method in ("generalist", "t3"):
        predicted_part(run, method, "pbc", 0, ROWS, TRUE, TRUE)
    with pytest.raises(RunDirectoryError, match=r"'generalist', .*'pbc': 6 of the 12 rows of evidence .* row 6"):
        evaluate_run(run)


def test_a_method_that_covers_fewer_rows_than_another_is_named_with_its_missing_part(run: Path) -> None:
    for index in range(2):
        predicted_part(run, "generalist", "pbc", index, ROWS + 6 * index, TRUE, TRUE)
    predicted_part(run, "t3", "pbc", 0, ROWS, TRUE, TRUE)
    with pytest.raises(RunDirectoryError, match=r"'t3', .*'pbc': 6 of the 12 .*'generalist'.* part-00001"):
        evaluate_run(run)


def test_a_method_that_covers_other_rows_is_refused(run: Path) -> None:
    predicted_part(run, "generalist", "pbc", 0, ROWS, TRUE, TRUE)
    predicted_part(run, "t3", "pbc", 0, np.append(ROWS, 99), [*TRUE, 0], [*TRUE, 0])
    with pytest.raises(RunDirectoryError, match=r"'t3', .*'pbc': 1 rows that method 'generalist' .* row 99"):
        evaluate_run(run)


def test_a_method_without_any_part_for_a_set_that_others_scored_is_named(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None, "oct": None}, ["generalist", "t3"])
    for method, name in (("generalist", "pbc"), ("generalist", "oct"), ("t3", "pbc")):
        predicted_part(run, method, name, 0, ROWS, TRUE, TRUE)
    with pytest.raises(RunDirectoryError, match="'t3', evaluation set 'oct': all parts"):
        evaluate_run(run)


@pytest.mark.parametrize("second", [[5, 6], [7, 7]], ids=["across parts", "within a part"])
def test_a_row_that_appears_twice_is_named(run: Path, second: list[int]) -> None:
    predicted_part(run, "t3", "pbc", 0, ROWS, TRUE, TRUE)
    predicted_part(run, "t3", "pbc", 1, second, [0, 0], [0, 0])
    with pytest.raises(RunDirectoryError, match=rf"'t3', .*'pbc': part-00001.* row {min(second)} appears twice"):
        evaluate_run(run)


def test_methods_with_other_labels_are_refused(run: Path) -> None:
    predicted_part(run, "generalist", "pbc", 0, ROWS, TRUE, TRUE)
    predicted_part(run, "t3", "pbc", 0, ROWS, TRUE, [1] * 6)
    with pytest.raises(RunDirectoryError, match=r"'t3', .* labels differ"):
        evaluate_run(run)


def test_a_torn_part_is_named(run: Path) -> None:
    path = predicted_part(run, "t3", "pbc", 0, ROWS, TRUE, TRUE)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunDirectoryError, match=r"'t3', .* torn"):
        evaluate_run(run)


def test_a_label_outside_the_classes_is_named(run: Path) -> None:
    predicted_part(run, "t3", "pbc", 0, ROWS, TRUE, [0, 0, 7, 0, 1, 1])
    with pytest.raises(RunDirectoryError, match=r"row 2 .* outside the 2 classes"):
        evaluate_run(run)


def test_row_sets_agree_with_python_sets() -> None:
    generator = np.random.default_rng(3)
    addresses = generator.choice(400_000, 5_000, replace=False)
    rows, reference = RowSet(), RowSet()
    for chunk in np.array_split(addresses, 7):
        assert rows.add(chunk) is None
    assert reference.add(np.sort(np.append(addresses[:-10], [500_000, 450_000]))) is None
    assert len(rows) == 5_000
    assert rows != reference
    assert rows.missing(reference) == (2, 450_000)
    assert reference.missing(rows) == (10, min(addresses[-10:]))
    assert rows.add(addresses[40:60]) == min(addresses[40:60])
