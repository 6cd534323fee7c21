from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.errors import RunDirectoryError
from pipeline.results.metrics import evaluate
from pipeline.results.studies import Study, combine

from .labelled_runs import corrupted, images, write_run

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


def record(frame: pl.DataFrame, **values: object) -> dict[str, object]:
    found = frame.filter(pl.all_horizontal([pl.col(name) == value for name, value in values.items()]))
    assert found.height == 1
    return found.row(0, named=True)


def drawn(run: Path, name: str, method: str) -> np.ndarray:
    row = record(evaluate(run).replicates, evaluation_set=name, method=method)
    return np.array(row["accuracy"])


def test_tables_of_all_runs_stand_below_one_another_with_their_origin(study: Study, runs: list[Path]) -> None:
    assert study.frame.height == SEEDS * 8 + 4
    assert study.frame["run"].unique(maintain_order=True).to_list() == [str(run) for run in runs]
    assert study.frame.filter(pl.col("study") == "breast")["seed"].unique(maintain_order=True).to_list() == [0, 1, 2]
    assert study.by_severity.height == SEEDS * 2 * 4
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
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(tuple(expected), abs=1e-7)
    expected = np.percentile(mean["t3"] - mean["generalist"], [2.5, 97.5])
    found = (row["difference_generalist_low"], row["difference_generalist_high"])
    assert found == pytest.approx(tuple(expected), abs=1e-7)
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


def test_wins_and_losses_count_sets_whose_interval_leaves_out_zero(study: Study) -> None:
    """t3 is right on 95 % of all images, the expert on 70 %, the generalist on 55 %, the soup on 50 %."""
    counts = {row["label"]: (row["wins"], row["losses"]) for row in study.summary.iter_rows(named=True)}
    assert counts["t3"] == (3, 0)
    assert counts["soup"] == (0, 3)
    rows = study.over_seeds.filter(pl.col("label") == "expert")
    assert counts["expert"] == (rows.filter(pl.col("difference_generalist_low") > 0).height, 0)


def test_a_method_that_is_not_everywhere_has_no_mean_in_the_summary(tmp_path: Path) -> None:
    first = images("a", LABELS, SHARES)
    second = images("b", LABELS, {name: SHARES[name] for name in ("generalist", "expert", "t3")}, prefix="b")
    runs = [write_run(tmp_path / "1", [first], name="one"), write_run(tmp_path / "2", [second], name="two")]
    summary = combine(runs).summary
    soup = record(summary, label="soup")
    assert (soup["evaluation_sets"], soup["accuracy"], soup["difference_expert_low"]) == (1, None, None)
    assert record(summary, label="t3")["evaluation_sets"] == 2


def test_the_same_seed_of_the_same_study_twice_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [images("clean", LABELS, SHARES)], seed=4) for name in ("a", "b")]
    with pytest.raises(RunDirectoryError, match=r"b: is seed 4 of study 'study', as .*a is; give"):
        combine(runs)
    with pytest.raises(RunDirectoryError, match="a run is named twice"):
        combine([runs[0], runs[0]])
