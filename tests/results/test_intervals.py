"""Metrics of runs with probabilities, clusters and corruptions, against scikit-learn, scipy and plain loops."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest, chi2
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pipeline.results import metrics
from pipeline.results.metrics import Evaluation, evaluate, evaluate_run
from pipeline.statistics.multiple import holm

from .labelled_runs import Images, corrupted, images, record, write_run
from .run_factory import minimal_run, predicted_part, write_part

SHARES = {"generalist": 0.6, "expert": 0.75, "t3": 0.8, "soup": 0.7}
WORSE = {"generalist": 0.4, "expert": 0.45, "t3": 0.55, "soup": 0.5}
LABELS = np.repeat([0, 1, 2], [60, 40, 20])
WIDTH = "accuracy_high"


def replicates(evaluation: Evaluation, name: str, method: str) -> dict[str, np.ndarray]:
    row = record(evaluation.replicates, evaluation_set=name, method=method)
    return {key: np.array(row[key]) for key in ("accuracy", "balanced_accuracy", "ece")}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Images], Evaluation]:
    clean = images("clean", LABELS, SHARES)
    sets = [clean, corrupted(clean, "pixelate", WORSE)]
    run = write_run(tmp_path_factory.mktemp("run") / "run", sets, part_rows=250)
    return run, sets, evaluate(run)


def test_metrics_of_probabilities_equal_scikit_learn(study: tuple[Path, list[Images], Evaluation]) -> None:
    _, sets, evaluation = study
    for found in sets:
        for method, probabilities in found.answers.items():
            row = record(evaluation.metrics, evaluation_set=found.name, method=method)
            scaled = probabilities / probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
            expected = roc_auc_score(found.labels, scaled, multi_class="ovr", average="macro")
            assert row["macro_auc"] == pytest.approx(expected, abs=1e-6)
            answer = probabilities.argmax(axis=1)
            assert row["predicted_counts"] == np.bincount(answer, minlength=3).tolist()
            assert row["clusters"] == 120


def test_intervals_surround_the_metric_and_hold_the_percentiles_of_the_replicates(
    study: tuple[Path, list[Images], Evaluation],
) -> None:
    evaluation = study[2]
    for row in evaluation.metrics.iter_rows(named=True):
        drawn = replicates(evaluation, row["evaluation_set"], row["method"])
        for name, values in drawn.items():
            low, high = np.percentile(values, [2.5, 97.5])
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high), abs=1e-6)
        for name in ("accuracy", "balanced_accuracy"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
            assert drawn[name].mean() == pytest.approx(row[name], abs=0.01)


def test_a_replicate_is_the_metric_of_the_images_that_were_drawn(tmp_path: Path) -> None:
    """With one image in each class but one, the draws are those of that class alone: accuracies can be enumerated."""
    labels = np.array([0, 0, 0, 1, 2])
    given = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 0]]
    found = Images("tiny", labels, {"generalist": given}, [f"s{row}" for row in range(5)])
    evaluation = evaluate(write_run(tmp_path, [found]))
    drawn = replicates(evaluation, "tiny", "generalist")
    # Of the pair that is alone in its class, 0 to 2 are right; of the first class 0 to 3.
    assert set(np.round(drawn["accuracy"] * 5).astype(int)) == {0, 1, 2, 3, 4, 5}
    certain = 1 - drawn["accuracy"]
    assert drawn["ece"] == pytest.approx(certain, abs=1e-6)


def test_err_is_100_for_the_generalist_in_every_replicate(study: tuple[Path, list[Images], Evaluation]) -> None:
    evaluation = study[2]
    for name in ("clean", "pixelate"):
        row = record(evaluation.metrics, evaluation_set=name, method="generalist")
        assert (row["err"], row["err_low"], row["err_high"]) == (100.0, 100.0, 100.0)
        drawn, reference = (replicates(evaluation, name, method)["accuracy"] for method in ("t3", "generalist"))
        expected = np.percentile(100 * (1 - drawn) / (1 - reference), [2.5, 97.5])
        row = record(evaluation.metrics, evaluation_set=name, method="t3")
        assert (row["err_low"], row["err_high"]) == pytest.approx(tuple(expected), abs=1e-3)


def test_err_has_no_interval_where_a_replicate_lacks_errors_of_the_generalist(tmp_path: Path) -> None:
    found = images("set", np.repeat([0, 1], 20), {"generalist": 1.0, "t3": 0.5})
    found.answers["generalist"][0] = [0.1, 0.8, 0.1]
    row = record(evaluate_run(write_run(tmp_path, [found])), method="t3")
    assert row["err"] is not None
    assert (row["err_low"], row["err_high"]) == (None, None)


def test_a_set_and_its_copy_as_corrupted_images_are_drawn_alike(tmp_path: Path) -> None:
    clean = images("clean", LABELS, SHARES)
    copy = Images(
        "copy",
        clean.labels,
        clean.answers,
        [f"{name}/pixelate/1" for name in clean.sample_ids],
        group_ids=list(clean.sample_ids),
        corruption=["pixelate"] * 120,
        severity=[1] * 120,
        clean="clean",
    )
    evaluation = evaluate(write_run(tmp_path, [clean, copy]))
    for method in SHARES:
        first, second = (replicates(evaluation, name, method) for name in ("clean", "copy"))
        for name, values in first.items():
            assert np.array_equal(values, second[name])
    # Were the two drawn apart, their mean would be narrower than either.
    summary, row = (record(frame, method="t3") for frame in (evaluation.summary, evaluation.metrics[:4]))
    assert (summary["accuracy_low"], summary[WIDTH]) == pytest.approx((row["accuracy_low"], row[WIDTH]), abs=1e-6)


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_an_image_in_its_cluster_promise_no_more_than_the_image(tmp_path: Path, copies: int) -> None:
    single = images("set", LABELS, SHARES)

    def repeated(*, grouped: bool) -> Images:
        given = {method: np.repeat(values, copies, axis=0) for method, values in single.answers.items()}
        ids = [f"{name}/{copy}" for name in single.sample_ids for copy in range(copies)]
        groups = [name for name in single.sample_ids for _ in range(copies)] if grouped else []
        return Images("set", np.repeat(LABELS, copies), given, ids, group_ids=list(groups))

    alone = evaluate_run(write_run(tmp_path / "a", [single]))
    grouped = evaluate_run(write_run(tmp_path / "b", [repeated(grouped=True)]))
    apart = evaluate_run(write_run(tmp_path / "c", [repeated(grouped=False)]))
    ends = [f"{name}{end}" for name in ("accuracy", "balanced_accuracy", "err", "ece") for end in ("_low", "_high")]
    # Clusters of the same names in the same classes are drawn alike: equal to the last stored bit but for rounding.
    for name in ends:
        assert grouped[name].to_list() == pytest.approx(alone[name].to_list(), abs=1e-4)
    widths = [(frame[WIDTH] - frame["accuracy_low"]).to_numpy() for frame in (alone, apart)]
    assert (widths[1] < 0.8 * widths[0]).all()


def test_groups_of_several_classes_are_drawn_whole(tmp_path: Path) -> None:
    """Two patients, each right on all or none of their images: accuracies of 0, a half and 1 only."""
    labels = np.array([0, 1, 0, 1])
    answer = np.eye(3, dtype=np.float32)[[0, 1, 1, 0]]
    found = Images("set", labels, {"t3": answer}, ["a", "b", "c", "d"], group_ids=["p", "p", "q", "q"])
    evaluation = evaluate(write_run(tmp_path, [found]))
    drawn = replicates(evaluation, "set", "t3")
    assert set(drawn["accuracy"]) == {0.0, 0.5, 1.0}
    assert np.array_equal(drawn["accuracy"], drawn["balanced_accuracy"])
    assert evaluation.metrics["clusters"].to_list() == [2]


def test_metrics_by_severity_are_those_of_the_images_at_that_severity(
    study: tuple[Path, list[Images], Evaluation],
) -> None:
    _, (_, found), evaluation = study
    table = evaluation.metrics_by_severity
    assert table.height == 6 * len(SHARES)
    table = table.filter(pl.col("severity") > 0)
    assert table["evaluation_set"].unique().to_list() == ["pixelate"]
    severity = np.array(found.severity)
    for row in table.iter_rows(named=True):
        chosen = severity == row["severity"]
        true, answer = found.labels[chosen], found.answers[row["method"]][chosen].argmax(axis=1)
        plain = found.answers["generalist"][chosen].argmax(axis=1)
        accuracy = (true == answer).mean()
        assert row["samples"] == 120
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, answer))
        assert row["err"] == pytest.approx(100 * (1 - accuracy) / (true != plain).mean())
        assert row["accuracy_low"] < accuracy < row["accuracy_high"]


def test_balanced_errors_of_a_run_equal_medmnist_cs(study: tuple[Path, list[Images], Evaluation]) -> None:
    _, (clean, found), evaluation = study
    severity = np.array(found.severity)

    def errors(method: str) -> tuple[float, float]:
        answer = found.answers[method].argmax(axis=1)
        by_severity = [
            1 - balanced_accuracy_score(found.labels[severity == s], answer[severity == s]) for s in range(1, 6)
        ]
        on_clean = 1 - balanced_accuracy_score(clean.labels, clean.answers[method].argmax(axis=1))
        return float(np.mean(by_severity)), float(on_clean)

    reference, clean_reference = errors("generalist")
    for method in SHARES:
        error, on_clean = errors(method)
        row = record(evaluation.metrics, evaluation_set="pixelate", method=method)
        assert row["be"] == pytest.approx(error / reference)
        assert row["rbe"] == pytest.approx((error - on_clean) / (reference - clean_reference))
        row = record(evaluation.metrics, evaluation_set="clean", method=method)
        assert (row["be"], row["rbe"]) == (None, None)


def test_relative_balanced_error_takes_the_clean_images_that_were_corrupted(tmp_path: Path) -> None:
    clean = images("clean", LABELS, SHARES)
    kept = np.arange(0, 120, 3)
    subset = Images(
        "subset",
        clean.labels[kept],
        {method: values[kept] for method, values in clean.answers.items()},
        [clean.sample_ids[row] for row in kept],
    )
    found = corrupted(subset, "pixelate", WORSE)
    found.clean = "clean"
    row = record(evaluate_run(write_run(tmp_path, [clean, found])), evaluation_set="pixelate", method="t3")

    def error(item: Images, method: str) -> float:
        return float(1 - balanced_accuracy_score(item.labels, item.answers[method].argmax(axis=1)))

    severity = np.array(found.severity)
    means = []
    for method in ("t3", "generalist"):
        answer = found.answers[method].argmax(axis=1)
        levels = [1 - balanced_accuracy_score(found.labels[severity == s], answer[severity == s]) for s in range(1, 6)]
        means.append(np.mean(levels) - error(subset, method))
    assert row["rbe"] == pytest.approx(means[0] / means[1])


def test_severity_zero_of_all_clean_images_is_the_clean_set(study: tuple[Path, list[Images], Evaluation]) -> None:
    evaluation = study[2]
    for method in SHARES:
        row = record(evaluation.metrics_by_severity, method=method, severity=0)
        clean = record(evaluation.metrics, method=method, evaluation_set="clean")
        assert (row["corruption"], row["samples"]) == ("pixelate", clean["samples"])
        for name in ("accuracy", "balanced_accuracy", "err", "ece", "accuracy_low", "accuracy_high"):
            assert row[name] == pytest.approx(clean[name], abs=1e-6)


def test_without_a_clean_set_or_a_generalist_the_ratios_are_null(tmp_path: Path) -> None:
    clean = images("clean", LABELS, SHARES)
    found = corrupted(clean, "pixelate", WORSE)
    found.clean = None
    row = record(evaluate_run(write_run(tmp_path / "a", [found])), method="t3")
    assert row["be"] is not None
    assert row["rbe"] is None
    del found.answers["generalist"]
    row = record(evaluate_run(write_run(tmp_path / "b", [found])), method="t3")
    assert (row["be"], row["rbe"], row["err"]) == (None, None, None)


def test_comparisons_equal_scipy_and_are_adjusted_within_set_and_reference(
    study: tuple[Path, list[Images], Evaluation],
) -> None:
    _, sets, evaluation = study
    table = evaluation.comparisons
    assert table.group_by("evaluation_set", "reference").len()["len"].to_list() == [3] * 6
    for row in table.iter_rows(named=True):
        found = next(item for item in sets if item.name == row["evaluation_set"])
        right, other = (
            found.answers[name].argmax(axis=1) == found.labels for name in (row["method"], row["reference"])
        )
        first, second = int((right & ~other).sum()), int((other & ~right).sum())
        assert (row["discordant_method"], row["discordant_reference"]) == (first, second)
        assert row["difference"] == pytest.approx(right.mean() - other.mean())
        assert row["difference_low"] < row["difference"] < row["difference_high"]
        assert (row["samples"], row["clusters"]) == (len(found.labels), 120)
        if row["evaluation_set"] == "clean":
            small = first + second < 25
            chi_square = (first - second) ** 2 / (first + second)
            expected = binomtest(first, first + second).pvalue if small else chi2.sf(chi_square, 1)
            assert row["test"] == ("exact McNemar" if small else "McNemar")
        else:
            share = (right.astype(int) - other).reshape(5, 120).sum(axis=0) / 5
            assert np.count_nonzero(share) >= 25
            expected = chi2.sf(share.sum() ** 2 / (share**2).sum(), 1)
            assert row["test"] == "clustered McNemar"
        assert row["p_value"] == pytest.approx(expected)
    for _, rows in table.group_by("evaluation_set", "reference"):
        assert rows["p_adjusted"].to_list() == pytest.approx(holm(rows["p_value"]))


def test_summary_averages_sets_and_takes_differences_replicate_by_replicate(
    study: tuple[Path, list[Images], Evaluation],
) -> None:
    evaluation = study[2]
    means = {
        method: np.mean([replicates(evaluation, name, method)["accuracy"] for name in ("clean", "pixelate")], axis=0)
        for method in SHARES
    }
    for method in SHARES:
        row = record(evaluation.summary, method=method)
        rows = evaluation.metrics.filter(pl.col("method") == method)
        assert row["evaluation_sets"] == 2
        assert row["accuracy"] == pytest.approx(rows["accuracy"].mean())
        assert row["mce"] == pytest.approx(rows.filter(pl.col("condition") == "digital")["err"].item())
        assert row["ood"] is None
        expected = np.percentile(means[method], [2.5, 97.5])
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(tuple(expected), abs=1e-6)
        expected = np.percentile(means[method] - means["expert"], [2.5, 97.5])
        found = (row["difference_expert_low"], row["difference_expert_high"])
        assert found == pytest.approx(tuple(expected), abs=1e-6)


def test_an_image_that_one_method_rejected_is_left_out_of_its_figures_only(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"set": None}, ["generalist", "t3"])
    predicted_part(run, "generalist", "set", 0, [0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 1, 0])
    predicted_part(run, "t3", "set", 0, [0, 1, 2], [0, 1, 1], [0, 0, 1])
    write_part(run / "rejects" / "infer" / "t3" / "set", 0, {"row": [3], "sample_id": ["s3"], "reason": ["broken"]})
    evaluation = evaluate(run)
    rows = {row["method"]: row for row in evaluation.metrics.iter_rows(named=True)}
    assert (rows["generalist"]["accuracy"], rows["t3"]["accuracy"]) == (0.75, pytest.approx(2 / 3))
    assert (rows["generalist"]["clusters"], rows["t3"]["clusters"]) == (4, 3)
    comparison = record(evaluation.comparisons, method="t3")
    assert (comparison["samples"], comparison["discordant_reference"], comparison["discordant_method"]) == (3, 1, 0)


def test_the_order_of_methods_and_sets_is_part_of_what_an_evaluation_depends_on(tmp_path: Path) -> None:
    sets = [images(name, LABELS, SHARES, prefix=name) for name in ("a", "b")]
    run = write_run(tmp_path, sets)
    assert evaluate_run(run)["method"].to_list() == [*SHARES, *SHARES]
    record_of = json.loads((run / "run.json").read_text())
    record_of["manifest"]["methods"] = [*SHARES][::-1]
    record_of["manifest"]["evaluation_sets"] = record_of["manifest"]["evaluation_sets"][::-1]
    (run / "run.json").write_text(json.dumps(record_of))
    again = evaluate_run(run)
    assert again["method"].to_list() == 2 * [*SHARES][::-1]
    assert again["evaluation_set"].unique(maintain_order=True).to_list() == ["b", "a"]


def test_an_evaluation_is_read_again_while_nothing_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = images("clean", LABELS, SHARES)
    run = write_run(tmp_path, [clean, corrupted(clean, "pixelate", WORSE)])
    first = evaluate(run)
    paths = [run / f"{name}.parquet" for name in metrics.SCHEMAS]
    written = [path.read_bytes() for path in paths]
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "score_sets", lambda _: pytest.fail("computed again"))
        again = evaluate(run)
    for name in metrics.SCHEMAS:
        assert getattr(again, name).equals(getattr(first, name))
        assert getattr(again, name).schema == getattr(first, name).schema
    paths[2].unlink()
    evaluate(run)
    assert [path.read_bytes() for path in paths] == written


@pytest.mark.parametrize("change", ["predictions", "evidence", "clean", "rejects", "labels"])
def test_an_evaluation_is_computed_again_after_any_change(tmp_path: Path, change: str) -> None:
    clean = images("clean", LABELS, SHARES)
    sets = [clean, corrupted(clean, "pixelate", WORSE)]
    run = write_run(tmp_path, sets)
    first = evaluate(run)
    if change == "predictions":
        sets[0].answers["t3"] = np.roll(sets[0].answers["t3"], 1, axis=0)
    elif change == "evidence":
        sets[0].group_ids = [f"patient {row // 2}" for row in range(120)]
    elif change == "clean":
        sets[1].clean = None
    elif change == "rejects":
        write_part(run / "rejects" / "infer" / "t3" / "clean", 0, {"row": [1_000]})
        write_part(run / "rejects" / "precompute" / "clean", 0, {"row": [1_000]})
    else:
        (run / "predictions" / "t3.json").write_text('{"changed": {"gamma": 2.0}}')
    write_run(run, sets)
    second = evaluate(run)
    assert not second.metrics.equals(first.metrics)


def test_a_run_without_groups_in_its_evidence_has_a_cluster_for_every_image(tmp_path: Path) -> None:
    """Evidence of runs made before the columns were there, and of runs whose evidence was deleted."""
    found = images("set", LABELS, SHARES)
    run = write_run(tmp_path, [found])
    with_evidence = evaluate_run(run)
    for path in (run / "evidence" / "set").iterdir():
        path.unlink()
    assert evaluate_run(run).drop("fingerprint").equals(with_evidence.drop("fingerprint"))
    assert with_evidence["clusters"].to_list() == [120] * 4
