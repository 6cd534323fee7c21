from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.results.layout import read_run
from pipeline.results.report.cautions import cautions
from pipeline.results.report.loading import load_results, with_only_test
from pipeline.results.report.results import METHODS, SETS, complete
from pipeline.results.studies import Study, combine
from tests.results.labelled_runs import images, write_run
from tests.results.results_factory import method_row, set_row

SHARES = {"generalist": 0.55, "expert": 0.7, "t3": 0.95}
LABELS = np.repeat([0, 1, 2], [30, 25, 20])


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Study]:
    root = tmp_path_factory.mktemp("seeds")
    runs = [write_run(root / str(seed), [images("clean", LABELS, SHARES, seed=seed)], seed=seed) for seed in range(2)]
    return runs, combine(runs)


def test_p_over_seeds_is_the_largest(seeds: tuple[list[Path], Study]) -> None:
    runs, study = seeds
    results = load_results(study, runs, [read_run(run) for run in runs])
    for reference in ("generalist", "expert"):
        name = f"p_adjusted_{reference}"
        for row in results.sets.filter(pl.col("method") != reference).iter_rows(named=True):
            own = study.comparisons.filter((pl.col("method") == row["method"]) & (pl.col("reference") == reference))[
                "p_adjusted"
            ]
            assert len(own) == 2
            assert row[name] == max(own)


def test_p_that_the_study_has_is_taken_as_it_is(seeds: tuple[list[Path], Study]) -> None:
    runs, study = seeds
    stated = study.over_seeds.with_columns(p_adjusted_generalist=pl.lit(0.25), p_adjusted_expert=pl.lit(0.5))
    given = Study(study.frame, stated, study.summary, study.comparisons, study.by_severity)
    results = load_results(given, runs, [read_run(run) for run in runs])
    assert set(results.sets["p_adjusted_generalist"]) == {0.25}
    assert set(results.sets["p_adjusted_expert"]) == {0.5}


def test_only_a_mean_of_one_set_has_a_test() -> None:
    methods = complete(pl.DataFrame([method_row("t3", 0.9)]), METHODS)
    rows = [set_row(name, "t3", 0.9, difference_generalist=(0.1, 0.05, 0.15)) for name in ("a", "b")]
    one, two = (complete(pl.DataFrame(rows[:count]), SETS) for count in (1, 2))
    p = one["p_adjusted_generalist"][0]
    assert with_only_test(methods, one)["p_adjusted_generalist"].to_list() == [p]
    assert with_only_test(methods, two)["p_adjusted_generalist"].to_list() == [None]


def test_memory_that_ran_out_in_either_stage_is_a_caution(seeds: tuple[list[Path], Study]) -> None:
    runs, study = seeds
    run_jsons = [read_run(run) for run in runs]
    assert load_results(study, runs, run_jsons).micro_batches == ()
    in_stage_one = {**run_jsons[0], "ledger": {"precompute": {"micro_batch": 16}, "infer": {}}}
    in_both = {**run_jsons[1], "ledger": {"precompute": {"micro_batch": 16}, "infer": {"t3": {"micro_batch": 4}}}}
    results = load_results(study, runs, [in_stage_one, in_both])
    name = run_jsons[0]["manifest"]["name"]
    assert results.micro_batches == (f"{name} (16 images)", f"{name} (4 images)")
    said = " ".join(cautions(results, results.methods.row(0, named=True)))
    assert f"Memory ran out and tiles were scored in pieces: {name} (16 images); {name} (4 images)." in said
