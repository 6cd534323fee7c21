"""A sweep re-derives λ from cached evidence: no plain model runs again, and every file is what `infer` would write."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy.special import expit, softmax
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, recall_score

from pipeline.drivers.grids import Grid, expand
from pipeline.drivers.ingest import ingest
from pipeline.drivers.sweep import Swept, manifest_of, sweep
from pipeline.engines.local import LocalEngine
from pipeline.errors import RunDirectoryError
from pipeline.manifest import Manifest
from pipeline.results.layout import is_sweep_variant
from pipeline.results.metrics import evaluate_run
from pipeline.results.report import write_report
from pipeline.results.sweeps import SweepResults, evaluate_sweep, sweep_table
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    ShuffledEngine,
    assert_same_files,
    copy_run,
    matrix,
    modification_times,
    read_evidence,
    result_files,
    run_both,
    run_infer,
    study,
)

SETTINGS: dict[str, Any] = {
    "part_rows": 24,
    "grouping": {"batch_size": 8, "window": {"rows": 24}},
    "methods": ["generalist", "expert", "t3-batch"],
    "evaluation_sets": [
        {"name": "cells", "source": {"kind": "synthetic", "count": 40, "seed": 3, "site": "a"}},
        {"name": "noise", "condition": "noise", "source": {"kind": "synthetic", "count": 20, "seed": 3, "site": "c"}},
    ],
}
PARTS = 2 + 1
# Without a confident model δ says nothing: of the 24 settings, those with both τ = 0 are equal for all δ.
VALUES = {
    "gamma": ("1", "4"),
    "delta": ("0.2", "0.5", "0.6"),
    "tau_expert": ("0", "0.3"),
    "tau_generalist": ("0", "0.4"),
}
GRID = Grid(("t3",), ("arrival",), VALUES)
COUNT = 24


def run_sweep(manifest: Manifest, grid: Grid = GRID, engine: Any = None, **options: Any) -> Swept:
    methods = expand(grid, manifest)
    return sweep(manifest, grid, methods, engine or LocalEngine(manifest), **options)


def image_forwards(run: Path) -> Counter[str]:
    """Image forwards by model in all ledgers of the run, whatever stage wrote them."""
    total: Counter[str] = Counter()
    for path in (run / "ledger").rglob("part-*.json"):
        total.update(json.loads(path.read_text())["counts"]["image_forward_calls"])
    return total


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Manifest:
    """Both stages at the manifest's own settings. Not to be written to."""
    folder = tmp_path_factory.mktemp("base")
    manifest = study(folder, pair, folder / "archives", **SETTINGS)
    ingest(manifest, LocalEngine(manifest))
    return run_both(manifest)


def copy_of(base: Manifest, folder: Path, pair: Path, **settings: Any) -> Manifest:
    return copy_run(base, folder, pair, archives=Path(base.archives), **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, base: Manifest, pair: Path) -> tuple[Path, Swept, SweepResults]:
    """The base run after the sweep over 24 settings. Not to be written to."""
    run = Path(copy_of(base, tmp_path_factory.mktemp("swept"), pair).output)
    done = run_sweep(manifest_of(run), name="grid")
    return run, done, evaluate_sweep(run, "grid")


def distinct_plans(base: Manifest, name: str) -> int:
    """How many of the settings differ in the λ of any batch, by the paper's formulas."""
    evidence = read_evidence(base, name)
    p_pt, p_ft = (softmax(matrix(evidence, f"logits_{model}"), axis=1) for model in ("generalist", "expert"))
    mean = (p_pt + p_ft) / 2
    js = (entropy(p_pt, mean, axis=1) + entropy(p_ft, mean, axis=1)) / 2
    batches = evidence["row"].to_numpy() // 8
    plans = set()
    for gamma, delta, tau_ft, tau_pt in np.ndindex(2, 3, 2, 2):
        g, d, ft, pt = (
            float(values[i]) for values, i in zip(VALUES.values(), (gamma, delta, tau_ft, tau_pt), strict=True)
        )
        lam = expit(g * js)
        raised, lowered = entropy(p_ft, axis=1) < ft, entropy(p_pt, axis=1) < pt
        adjusted = np.where(raised, np.minimum(lam + d, 1), np.where(lowered, np.maximum(lam - d, 0), lam))
        plans.add(tuple(np.round([adjusted[batches == batch].mean() for batch in np.unique(batches)], 5)))
    return len(plans)


def test_24_settings_add_no_forward_of_generalist_or_expert(
    base: Manifest, swept: tuple[Path, Swept, SweepResults]
) -> None:
    run, done, _ = swept
    before, after = image_forwards(Path(base.output)), image_forwards(run)
    assert before["generalist"] == before["expert"] > 0
    assert (after["generalist"], after["expert"]) == (before["generalist"], before["expert"])
    counts = done.summary.as_json()["ledger"]["counts"]
    assert counts["image_forward_calls"]["generalist"] == counts["image_forward_calls"]["expert"] == 0
    assert sum(counts["text_forward_calls"].values()) == 0
    assert after["merged"] - before["merged"] == counts["image_forward_calls"]["merged"]


def test_each_distinct_batch_plan_is_scored_once(base: Manifest, swept: tuple[Path, Swept, SweepResults]) -> None:
    run, done, results = swept
    distinct = {name: distinct_plans(base, name) for name in ("cells", "noise")}
    assert all(1 < count < COUNT for count in distinct.values())
    merged = done.summary.ledger.per_model["image_forward_calls"]["merged"]
    assert merged == 5 * distinct["cells"] + 3 * distinct["noise"]
    assert done.summary.computed == 2 * distinct["cells"] + distinct["noise"]
    assert done.copied == COUNT * PARTS - done.summary.computed
    for (name, _), rows in results.frame.group_by("evaluation_set", "plan"):
        assert rows["work"].to_list().count("scored") == 1, name
        assert rows["accuracy"].n_unique() == rows["mean_lambda"].n_unique() == 1
    copied = results.frame.filter(work="copied")
    assert copied["forwards"].sum() == copied["merges"].sum() == 0
    ledger = run / "ledger" / "infer" / copied["key"][0] / copied["evaluation_set"][0] / "part-00000.json"
    assert json.loads(ledger.read_text())["copied_from"] in set(results.frame["key"])


def test_every_file_is_the_one_that_infer_writes(
    base: Manifest, swept: tuple[Path, Swept, SweepResults], pair: Path, tmp_path: Path
) -> None:
    run, _, results = swept
    names = [*VALUES]
    settings = results.frame.filter(evaluation_set="cells").select(names).to_dicts()
    entries = [{"name": "t3-batch", **values} for values in settings]
    assert len(entries) == COUNT
    manifest = copy_of(base, tmp_path, pair, methods=["generalist", "expert", "t3-batch", *entries])
    run_infer(manifest)
    assert_same_files(result_files(run), result_files(Path(manifest.output)))


def test_workers_in_any_order_leave_the_same_files(
    base: Manifest, swept: tuple[Path, Swept, SweepResults], pair: Path, tmp_path: Path
) -> None:
    manifest = copy_of(base, tmp_path, pair)
    run_sweep(manifest, engine=ShuffledEngine(manifest, workers=2, seed=5))
    assert_same_files(result_files(Path(manifest.output)), result_files(swept[0]))


def test_a_repeated_sweep_does_nothing_and_its_results_are_equal_bytes(
    base: Manifest, swept: tuple[Path, Swept, SweepResults], tmp_path: Path
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(swept[0], run)
    before = modification_times(run)
    done = run_sweep(manifest_of(run), name="grid")
    assert (done.summary.computed, done.copied, done.summary.skipped) == (0, 0, COUNT * PARTS)
    assert modification_times(run) == before
    evaluate_sweep(run, "grid")
    for suffix in (".parquet", ".svg", ".json"):
        assert (run / "sweeps" / f"grid{suffix}").read_bytes() == (swept[0] / "sweeps" / f"grid{suffix}").read_bytes()


def test_lost_parts_are_made_again_and_scored_only_where_no_setting_has_them(
    swept: tuple[Path, Swept, SweepResults], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(swept[0], run)
    cells = swept[2].frame.filter(evaluation_set="cells")
    shared = cells.filter(pl.len().over("plan") > 1)
    alone = cells.filter(pl.len().over("plan") == 1)["key"][0]
    scored, copied = (shared.filter(work=work)["key"][0] for work in ("scored", "copied"))
    lost = [run / "predictions" / key / "cells" / "part-00001.parquet" for key in (alone, scored, copied)]
    lost[0].write_bytes(lost[0].read_bytes()[:100])
    for path in lost[1:]:
        path.unlink()
    done = run_sweep(manifest_of(run), name="grid")
    assert (done.summary.computed, done.copied) == (1, 2)
    assert_same_files(result_files(run), result_files(swept[0]))
    repeated = evaluate_sweep(run, "grid").frame
    assert repeated.equals(swept[2].frame), "a part filled from a copy must not hide what was spent"


def test_a_sweep_stays_out_of_evaluation_and_report(
    base: Manifest, swept: tuple[Path, Swept, SweepResults], tmp_path: Path
) -> None:
    plain, after = tmp_path / "plain", tmp_path / "after"
    shutil.copytree(base.output, plain)
    shutil.copytree(swept[0], after)
    assert evaluate_run(after).equals(evaluate_run(plain))
    assert (after / "metrics.parquet").read_bytes() == (plain / "metrics.parquet").read_bytes()
    pages = [write_report(run).read_text() for run in (after, plain)]
    assert pages[0] == pages[1]


def test_a_half_done_sweep_stays_out_of_evaluation_too(
    swept: tuple[Path, Swept, SweepResults], base: Manifest, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(swept[0], run)
    keys = swept[2].frame["key"].unique().to_list()
    for key in keys:
        (run / "predictions" / key / "cells" / "part-00001.parquet").unlink()
    assert evaluate_run(run).height == 2 * len(SETTINGS["methods"])
    with pytest.raises(RunDirectoryError, match="1 parts are missing; run `pipeline sweep` again"):
        evaluate_sweep(run, "grid")


def test_a_setting_that_infer_is_asked_for_is_no_sweeps_own(
    base: Manifest, swept: tuple[Path, Swept, SweepResults], pair: Path, tmp_path: Path
) -> None:
    entry = {"name": "t3-batch", "gamma": 4.0, "delta": 0.2, "tau_expert": 0.3, "tau_generalist": 0.4}
    manifest = study(tmp_path, pair, Path(base.archives), **{**SETTINGS, "methods": [*SETTINGS["methods"], entry]})
    shutil.copytree(swept[0], manifest.output)
    assert run_infer(manifest).computed == 0
    record = json.loads((Path(manifest.output) / "run.json").read_text())
    visible = [key for key in swept[2].frame["key"].unique() if not is_sweep_variant(record, key)]
    assert len(visible) == 1
    assert visible[0] in evaluate_run(Path(manifest.output))["method"].to_list()


def test_the_manifests_own_setting_is_part_of_a_sweep_without_new_work(
    base: Manifest, pair: Path, tmp_path: Path
) -> None:
    manifest = copy_of(base, tmp_path, pair)
    done = run_sweep(manifest, Grid(("t3",), ("arrival",), {"gamma": ("1", "2")}))
    assert (done.summary.skipped, done.summary.computed) == (PARTS, PARTS)
    assert evaluate_run(Path(manifest.output))["method"].n_unique() == 3


def test_results_equal_scikit_learn(swept: tuple[Path, Swept, SweepResults]) -> None:
    run, _, results = swept
    assert results.frame.height == 2 * COUNT
    assert results.frame["evaluation_set"].to_list() == ["cells"] * COUNT + ["noise"] * COUNT
    assert results.varied == tuple(VALUES)
    generalist = pl.read_parquet(run / "predictions" / "generalist" / "noise" / "*.parquet")
    for row in results.frame.filter(evaluation_set="noise").sample(4, seed=1).iter_rows(named=True):
        answers = pl.read_parquet(run / "predictions" / row["key"] / "noise" / "*.parquet")
        label, prediction = answers["label"].to_numpy(), answers["prediction"].to_numpy()
        accuracy = accuracy_score(label, prediction)
        error = 1 - accuracy_score(generalist["label"], generalist["prediction"])
        recall = recall_score(label, prediction, average="macro", labels=np.unique(label))
        assert row["samples"] == len(label)
        assert row["accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert row["balanced_accuracy"] == pytest.approx(recall, abs=1e-12)
        assert row["err"] == pytest.approx(100 * (1 - accuracy) / error, abs=1e-9)
        assert row["mean_lambda"] == pytest.approx(answers["lambda"].cast(pl.Float64).mean(), abs=1e-7)
    assert results.frame["plan"].str.len_chars().eq(64).all()


def test_groupings_and_rules_of_one_sweep_have_their_own_settings(base: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = copy_of(base, tmp_path, pair)
    values = {"gamma": ("1", "2"), "tolerance": ("null", "0.1"), "batch_size": ("16",)}
    grid = Grid(("t3", "dawin"), ("arrival", "lambda", "sample"), values)
    run_sweep(manifest, grid, name="mixed")
    frame = evaluate_sweep(Path(manifest.output), "mixed").frame.filter(evaluation_set="cells")
    counts = dict(frame.group_by("method").len().iter_rows())
    assert counts == {
        "t3-batch": 2,
        "t3-lambda": 4,
        "t3": 2,
        "dawin-batch": 1,
        "dawin-lambda": 2,
        "dawin": 1,
    }
    assert frame.filter(rule="dawin")["gamma"].null_count() == 4
    assert frame.filter(grouping="sample")["batch_size"].null_count() == 3


def test_the_command_prints_what_it_found_and_where_it_lies(
    base: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    run = copy_of(base, tmp_path, pair).output
    command = ("sweep", run, "--engine", "local", "--gamma", "1,4", "--delta", "0.5", "--delta", "0.2")
    code, out, err = command_line(*command, "--name", "mine", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["name"], found["varied"], len(found["results"])) == ("mine", ["gamma", "delta"], 8)
    assert found["ledger"]["counts"]["image_forward_calls"]["expert"] == 0
    stored = pl.read_parquet(found["table"])
    assert stored["gamma"].to_list() == [1.0, 1.0, 4.0, 4.0] * 2
    assert "<svg" in Path(found["figure"]).read_text()
    code, out, _ = command_line(*command, "--name", "mine")
    assert code == 0
    assert "0 parts computed, 12 already there" in out
    assert "mine.parquet" in out.replace("\n", "")


def test_a_preset_says_what_it_varies(base: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine) -> None:
    run = copy_of(base, tmp_path, pair).output
    code, out, err = command_line("sweep", run, "--engine", "local", "--table", "9", "--rule", "t3,dawin")
    assert code == 0, err
    assert out.startswith("what λ is made of")
    frame = pl.read_parquet(next((Path(run) / "sweeps").glob("*.parquet")))
    assert set(frame["method"]) == {"t3-batch", "dawin-batch"}


def test_the_table_shows_every_figure_in_80_columns(swept: tuple[Path, Swept, SweepResults]) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(sweep_table(swept[2]))
    text = console.file.getvalue()
    assert "…" not in text
    assert "copied" in text


def test_a_run_without_evidence_is_refused(
    base: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest = copy_of(base, tmp_path, pair)
    (Path(manifest.output) / "evidence" / "noise" / "part-00000.parquet").unlink()
    code, _, err = command_line("sweep", manifest.output, "--engine", "local", "--gamma", "1,2")
    assert code == 2
    assert err.splitlines() == [
        f"error: {manifest.output}: 1 parts have no evidence yet (noise); run `pipeline precompute`"
    ]
    assert "sweeps" not in json.loads((Path(manifest.output) / "run.json").read_text())


def test_a_name_belongs_to_one_grid(base: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine) -> None:
    run = copy_of(base, tmp_path, pair).output
    assert command_line("sweep", run, "--engine", "local", "--gamma", "1", "--name", "a")[0] == 0
    code, _, err = command_line("sweep", run, "--engine", "local", "--gamma", "2", "--name", "a")
    assert code == 2
    assert err == f"error: {run}: sweep 'a' has other settings; give another --name\n"
