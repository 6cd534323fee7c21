"""A study: manifests x seeds, from nothing to metrics; interrupted, incomplete, or with a problem in one run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.drivers.study import plan_study, run_study
from pipeline.errors import ProblemsError
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import assert_same_files, modification_times, result_files, run_cli, start_cli, tiny_config

SEEDS = [0, 1]
METHODS = ["generalist", "expert", "t3-batch"]


def cells(count: int, seed: int, **more: Any) -> dict[str, Any]:
    return {"kind": "synthetic", "count": count, "seed": seed, **more}


def training(name: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "train": [{"name": name, "source": cells(64, seed)}],
        "validation": [{"name": name, "source": cells(32, seed + 1)}],
        "epochs": 1,
        "learning_rate": 1e-3,
        "threads": 1,
        **more,
    }


def write_study(folder: Path) -> Path:
    """Two manifests: one that trains a generalist, named so that it comes last, and one that all depends on it."""
    folder.mkdir(parents=True)
    (folder / "tiny.json").write_text(json.dumps(tiny_config()))
    generalist = {"architecture": "tiny.json", "generalist": "generalist-{seed}.safetensors"}
    common = {"archives": "archives", "seeds": {"study": SEEDS}, "compute": {"device": "cpu"}, "part_rows": 32}
    documents: dict[str, dict[str, Any]] = {
        "training": {
            "output": "runs/training/{seed}",
            "pair": generalist,
            "finetune": {"generalist": training("pool", 20, init="random")},
        },
        "cells": {
            "output": "runs/cells/{seed}",
            "pair": {**generalist, "expert": "expert-{seed}.safetensors"},
            "methods": METHODS,
            "evaluation_sets": [
                {"name": "near", "source": cells(70, 30)},
                {"name": "far", "condition": "base-to-novel", "source": cells(40, 31, site="c")},
            ],
            "finetune": {"expert": training("near", 40, init="generalist")},
        },
    }
    for name, document in documents.items():
        write(folder, name, {"name": name, **common, **document})
    return folder


def write(folder: Path, name: str, document: dict[str, Any]) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))


def change(folder: Path, name: str, **entries: Any) -> None:
    document = yaml.safe_load((folder / f"{name}.yaml").read_text())
    write(folder, name, {**document, **entries})


def run(folder: Path, seed: int) -> Path:
    return folder / "runs" / "cells" / str(seed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study. Not to be written to."""
    folder = write_study(tmp_path_factory.mktemp("undisturbed") / "study")
    summary = run_study(plan_study([folder]), "local")
    assert (summary.problems, summary.missing) == ([], [])
    assert summary.runs == [run(folder, seed) for seed in SEEDS]
    return folder


def test_a_study_makes_a_run_for_every_seed_with_models_of_its_own(undisturbed: Path) -> None:
    records = [json.loads((run(undisturbed, seed) / "run.json").read_text()) for seed in SEEDS]
    assert [record["seeds"]["training"] for record in records] == SEEDS
    assert {record["manifest"]["name"] for record in records} == {"cells"}
    for model in ("generalist", "expert"):
        assert len({record["fingerprints"][model] for record in records}) == len(SEEDS)
    for seed in SEEDS:
        predictions = run(undisturbed, seed) / "predictions"
        assert sorted(path.parent.name for path in predictions.glob("*/near")) == sorted(METHODS)
        assert (run(undisturbed, seed) / "metrics.parquet").exists()
        assert (run(undisturbed, seed) / "checks.json").exists()


def test_a_finished_study_computes_nothing_again(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(undisturbed, folder)
    for path in folder.rglob("run.json"):
        path.write_text(path.read_text().replace(str(undisturbed), str(folder)))
    before = modification_times(folder)
    run_study(plan_study([folder]), "local")
    after = modification_times(folder)
    derived = {name for name in after if Path(name).parts[-2:-1] != ("near",) and Path(name).parts[-2:-1] != ("far",)}
    assert {name: time for name, time in after.items() if name not in derived} == {
        name: time for name, time in before.items() if name not in derived
    }


@pytest.mark.parametrize(
    "at", ["archives/far/samples", "runs/cells/0/evidence/near", "runs/cells/1/predictions/t3-batch/near"]
)
def test_a_killed_study_goes_on_where_it_was(undisturbed: Path, tmp_path: Path, at: str) -> None:
    folder = write_study(tmp_path / "study")
    process = start_cli("study", str(folder), "--engine", "local")
    while process.poll() is None and not list((folder / at).glob("part-*")):
        pass
    process.kill()
    process.communicate()
    committed = modification_times(folder)
    assert committed

    code, _, err = run_cli("study", str(folder), "--engine", "local")
    assert code == 0, err
    for seed in SEEDS:
        assert_same_files(result_files(run(folder, seed)), result_files(run(undisturbed, seed)))
    after = modification_times(folder)
    assert {name: after[name] for name in committed} == committed


def test_a_study_without_one_data_set_runs_the_rest_and_says_what_is_missing(
    undisturbed: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    folder = write_study(tmp_path / "study")
    sets = yaml.safe_load((folder / "cells.yaml").read_text())["evaluation_sets"]
    absent = {"kind": "npz", "path": "nowhere.npz", "split": "test", "class_names": ["a", "b"]}
    change(folder, "cells", evaluation_sets=[{"name": "lost", "source": absent}, *sets])

    code, out, _ = command_line("study", str(folder), "--engine", "local")

    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("missing: ")]
    assert line.startswith("missing: evaluation set 'lost': ")
    assert "nowhere.npz: no such file" in line
    left_out = json.loads((run(folder, 0) / "run.json").read_text())["left_out"]
    assert list(left_out) == ["lost"]
    assert "nowhere.npz: no such file" in left_out["lost"]
    assert_same_files(result_files(run(folder, 0)), result_files(run(undisturbed, 0)))


def test_a_run_that_cannot_be_made_does_not_stop_the_others(tmp_path: Path, command_line: CommandLine) -> None:
    folder = write_study(tmp_path / "study")
    document = yaml.safe_load((folder / "cells.yaml").read_text())
    del document["finetune"]
    document |= {"name": "broken", "output": "runs/broken/{seed}", "seeds": {"study": [0]}}
    write(folder, "a-broken", document)

    code, _, err = command_line("study", str(folder), "--engine", "local")

    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: broken, seed 0: ")
    assert "expert-0.safetensors" in line
    assert all((run(folder, seed) / "metrics.parquet").exists() for seed in SEEDS)


def test_seeds_that_would_write_to_one_place_are_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    change(folder, "cells", output="runs/cells")
    with pytest.raises(
        ProblemsError, match=r"cells, seed 1: output is .* which cells, seed 0 writes too; put \{seed\}"
    ):
        plan_study([folder])


def test_a_folder_without_manifests_and_a_study_without_sets_are_refused(
    tmp_path: Path, command_line: CommandLine
) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = command_line("study", str(tmp_path / "empty"))
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: {tmp_path / 'empty'}: holds no manifest (*.yaml); give a manifest, or a folder of them",
    )
    folder = write_study(tmp_path / "study")
    code, _, err = command_line("study", str(folder / "training.yaml"))
    assert code == 2
    assert "no manifest of the study names an evaluation set" in err
