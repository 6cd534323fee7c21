from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.errors import RunDirectoryError
from pipeline.results.metrics import evaluate
from pipeline.results.studies import Study, combine
from pipeline.results.tables import study_table

from .labelled_runs import Images, corrupted, images, record, write_run

SHARES = {"generalist": 0.55, "expert": 0.7, "t3": 0.95, "soup": 0.5}
LABELS = np.repeat([0, 1, 2], [50, 40, 30])
SEEDS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two manifests, the first with three seeds over the same images."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for seed in range(SEEDS):
        clean = images("clean", LABELS, SHARES, seed=seed)
        noisy = corrupted(clean, "pixelate", SHARES, severities=2, seed=10 + seed)
        found.append(write_run(root / f"breast-{seed}", [clean, noisy], name="breast", seed=seed))
    other = images("clean", LABELS, SHARES, seed=30, prefix="retina/test")
    return [*found, write_run(root / "retina", [other], name="retina")]


@pytest.fixture(scope="module")
def study(runs: list[Path]) -> Study:
    return combine(runs)


def drawn(run: Path, name: str, method: str) -> np.ndarray:
    row = record(evaluate(run).replicates, evaluation_set=name, method=method)
    return np.array(row["accuracy"])


def test_tables_of_all_runs_stand_below_one_another_with_their_origin(study: Study, runs: list[Path]) -> None:
    assert study.frame.height == SEEDS * 8 + 4
    assert study.frame["run"].unique(maintain_order=True).to_list() == [str(run) for run in runs]
    assert study.frame.filter(pl.col("study") == "breast")["seed"].unique(maintain_order=True).to_list() == [0, 1, 2]
    assert study.by_severity.height == SEEDS * 3 * 4
    assert study.comparisons.columns[:3] == ["study", "seed", "run"]
    for row in study.frame.iter_rows(named=True):
        expert = record(study.frame, run=row["run"], evaluation_set=row["evaluation_set"], method="expert")
        assert row["difference_expert"] == row["accuracy"] - expert["accuracy"]


def test_mean_and_deviation_over_seeds_by_hand(study: Study) -> None:
    for name in ("accuracy", "balanced_accuracy", "macro_auc", "ece", "err"):
        values = study.frame.filter(
            (pl.col("study") == "breast") & (pl.col("evaluation_set") == "pixelate") & (pl.col("method") == "soup")
        )[name].to_list()
        row = record(study.over_seeds, study="breast", evaluation_set="pixelate", label="soup")
        mean = sum(values) / 3
        assert row["seeds"] == 3
        assert row[name] == pytest.approx(mean)
        assert row[f"{name}_sd"] == pytest.approx((sum((value - mean) ** 2 for value in values) / 2) ** 0.5)
    alone = record(study.over_seeds, study="retina", evaluation_set="clean", label="soup")
    assert (alone["seeds"], alone["accuracy_sd"]) == (1, None)
    assert alone["accuracy"] == record(study.frame, study="retina", method="soup")["accuracy"]


def test_interval_of_a_mean_over_seeds_averages_replicates_of_the_same_draws(study: Study, runs: list[Path]) -> None:
    mean = {
        method: np.mean([drawn(run, "clean", method) for run in runs[:SEEDS]], axis=0)
        for method in ("t3", "generalist")
    }
    row = record(study.over_seeds, study="breast", evaluation_set="clean", label="t3")
    expected = np.percentile(mean["t3"], [2.5, 97.5])
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(tuple(expected), abs=1e-6)
    expected = np.percentile(mean["t3"] - mean["generalist"], [2.5, 97.5])
    found = (row["difference_generalist_low"], row["difference_generalist_high"])
    assert found == pytest.approx(tuple(expected), abs=1e-6)
    plain = record(study.over_seeds, study="breast", evaluation_set="clean", label="generalist")
    assert row["difference_generalist"] == pytest.approx(row["accuracy"] - plain["accuracy"])
    assert [plain[f"err{end}"] for end in ("", "_sd", "_low", "_high")] == [100, 0, 100, 100]


def test_seeds_over_the_same_images_that_answer_alike_have_the_interval_of_one(tmp_path: Path) -> None:
    same = images("clean", LABELS, SHARES)
    runs = [write_run(tmp_path / str(seed), [same], seed=seed) for seed in range(2)]
    row = record(combine(runs).over_seeds, label="t3")
    single = record(evaluate(runs[0]).metrics, method="t3")
    assert (row["accuracy_low"], row["accuracy_high"]) == (single["accuracy_low"], single["accuracy_high"])
    assert row["accuracy_sd"] == 0


def test_seeds_that_drew_other_images_have_a_mean_but_no_interval(tmp_path: Path) -> None:
    """A third of the images occurs in another set too, for the first seed only: they are strata of their own there."""
    clean = images("clean", LABELS, SHARES)
    noisy = corrupted(images("clean", LABELS[::3], SHARES), "pixelate", SHARES, severities=1)
    runs = [write_run(tmp_path / "0", [clean, noisy], seed=0), write_run(tmp_path / "1", [clean], seed=1)]
    rows = combine(runs).over_seeds
    row = record(rows, evaluation_set="clean", label="t3")
    assert (row["seeds"], row["accuracy_low"], row["difference_expert_high"]) == (2, None, None)
    assert row["accuracy"] is not None
    row = record(rows, evaluation_set="pixelate", label="t3")
    assert row["seeds"] == 1
    assert row["accuracy_low"] is not None


def test_summary_weighs_all_sets_of_all_studies_alike(study: Study) -> None:
    rows = study.over_seeds.filter(pl.col("label") == "t3")
    row = record(study.summary, label="t3")
    assert rows.height == row["evaluation_sets"] == 3
    assert row["accuracy"] == pytest.approx(rows["accuracy"].mean())
    assert row["mce"] == pytest.approx(rows.filter(pl.col("condition") == "digital")["err"].item())
    assert row["difference_expert"] == pytest.approx(rows["difference_expert"].mean())
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert row["difference_expert_low"] > 0


def test_adjusted_p_values_are_the_largest_over_the_seeds(study: Study) -> None:
    for row in study.over_seeds.iter_rows(named=True):
        for reference in ("generalist", "expert"):
            place = {name: row[name] for name in ("study", "evaluation_set", "method")} | {"reference": reference}
            tested = study.comparisons.filter(pl.all_horizontal([pl.col(key) == value for key, value in place.items()]))
            expected = None if row["method"] == reference else max(tested["p_adjusted"])
            assert row[f"p_adjusted_{reference}"] == expected
            assert tested.height == (0 if row["method"] == reference else row["seeds"])


def test_wins_and_losses_count_sets_on_which_the_test_confirms_the_interval(study: Study) -> None:
    """t3 is right on 95 % of all images, the expert on 70 %, the generalist on 55 %, the soup on 50 %."""
    counts = {row["label"]: (row["wins"], row["losses"]) for row in study.summary.iter_rows(named=True)}
    assert counts["t3"] == (3, 0)
    for label in ("soup", "expert"):
        others = [name for name in ("generalist", "expert") if name != label]
        wins = losses = 0
        for row in study.over_seeds.filter(pl.col("label") == label).iter_rows(named=True):
            sure = [name for name in others if row[f"p_adjusted_{name}"] < 0.05]
            better = [name for name in sure if row[f"difference_{name}_low"] > 0]
            wins += better == others
            losses += any(row[f"difference_{name}_high"] < 0 for name in sure)
        assert counts[label] == (wins, losses)
    unconfirmed = study.over_seeds.filter(
        (pl.col("difference_expert_high") < 0) & (pl.col("p_adjusted_expert") >= 0.05) & (pl.col("label") == "soup")
    )
    assert unconfirmed.height == 1, "else the test says nothing of what the paired test adds"
    assert counts["soup"] == (0, 2)


def barely_better(*methods: str) -> Images:
    """Of 200 images the generalist gets 100, and the others those and the next 8: exact p = 2 / 2^8 without Holm."""
    labels = np.tile([0, 1], 100)
    found = images("clean", labels, {"generalist": 0.0})
    rights = {"generalist": 100, **dict.fromkeys(methods, 108)}
    for method, right in rights.items():
        found.answers[method] = np.eye(3, dtype=np.float32)[np.where(np.arange(200) < right, labels, 1 - labels)]
    return found


@pytest.mark.parametrize("others", [5, 12])
def test_a_single_set_has_a_star_only_where_the_test_confirms_the_interval(tmp_path: Path, others: int) -> None:
    study = combine([write_run(tmp_path, [barely_better(*(f"rule-{number}" for number in range(others)))])])
    row = record(study.summary, label="rule-0")
    adjusted = others * 2 / 2**8
    assert row["difference_generalist_low"] > 0
    assert study.over_seeds["p_adjusted_generalist"].to_list() == [None] + others * [pytest.approx(adjusted)]
    cells = [str(cell) for cell in list(study_table(study).columns[3].cells)[1:]]
    assert cells == others * ["+4.00*" if adjusted < 0.05 else "+4.00 "]
    assert (row["wins"], row["losses"]) == (0, 0), "there is no expert to be better than"


def test_a_mean_over_several_sets_has_a_star_by_its_interval_alone(tmp_path: Path) -> None:
    methods = [f"rule-{number}" for number in range(12)]
    other = replace(barely_better(*methods), name="other", sample_ids=[f"other/{row}" for row in range(200)])
    study = combine([write_run(tmp_path, [barely_better(*methods), other])])
    assert {str(cell) for cell in list(study_table(study).columns[3].cells)[1:]} == {"+4.00*"}
    assert study.over_seeds["p_adjusted_generalist"].drop_nulls().to_list() == pytest.approx(24 * [12 * 2 / 2**8])


def test_a_seed_that_collapsed_leaves_the_mean_over_seeds_without_interval(tmp_path: Path) -> None:
    whole = images("clean", LABELS, SHARES)
    collapsed = images("clean", LABELS, SHARES)
    for method in ("soup", "generalist"):
        collapsed.answers[method] = np.tile(np.eye(3, dtype=np.float32)[1], (len(LABELS), 1))
    runs = [write_run(tmp_path / str(seed), [found], seed=seed) for seed, found in enumerate((whole, collapsed))]
    study = combine(runs)
    row = record(study.over_seeds, label="soup")
    assert row["accuracy"] is not None
    assert [row[f"{name}_low"] for name in ("accuracy", "balanced_accuracy", "difference_generalist", "err")] == 4 * [
        None
    ]
    assert row["difference_expert_low"] < row["difference_expert"] < row["difference_expert_high"]
    row = record(study.over_seeds, label="t3")
    assert row["difference_generalist_low"] < row["difference_generalist"] < row["difference_generalist_high"]
    summary = record(study.summary, label="soup")
    assert (summary["accuracy_low"], summary["difference_generalist_high"]) == (None, None)
    assert summary["difference_expert_low"] is not None


def test_a_method_that_is_not_everywhere_has_no_mean_in_the_summary(tmp_path: Path) -> None:
    first = images("a", LABELS, SHARES)
    second = images("b", LABELS, {name: SHARES[name] for name in ("generalist", "expert", "t3")}, prefix="b")
    runs = [write_run(tmp_path / "1", [first], name="one"), write_run(tmp_path / "2", [second], name="two")]
    summary = combine(runs).summary
    soup = record(summary, label="soup")
    assert (soup["evaluation_sets"], soup["accuracy"], soup["difference_expert_low"]) == (1, None, None)
    assert record(summary, label="t3")["evaluation_sets"] == 2


def test_no_difference_to_a_model_that_was_not_scored_on_all_sets(tmp_path: Path) -> None:
    """Its mean is over other sets: t3 is right on 95 % of both, the generalist on 90 % of the set that it has."""
    first = images("a", LABELS, {"generalist": 0.9, "expert": 0.6, "t3": 0.95})
    second = images("b", LABELS, {"expert": 0.6, "t3": 0.95}, prefix="b")
    runs = [write_run(tmp_path / "1", [first], name="one"), write_run(tmp_path / "2", [second], name="two")]
    row = record(combine(runs).summary, label="t3")
    assert [row[f"difference_generalist{end}"] for end in ("", "_low", "_high")] == [None] * 3
    assert row["difference_expert"] > 0.2
    assert row["difference_expert_low"] > 0.2


def test_the_same_seed_of_the_same_study_twice_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [images("clean", LABELS, SHARES)], seed=4) for name in ("a", "b")]
    with pytest.raises(RunDirectoryError, match=r"b: is seed 4 of study 'study', as .*a is; give"):
        combine(runs)
    with pytest.raises(RunDirectoryError, match="a run is named twice"):
        combine([runs[0], runs[0]])
