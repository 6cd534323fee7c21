"""A study: manifests x seeds, from nothing to metrics; interrupted, incomplete, or with a problem in one run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.study import plan_study, run_study
from pipeline.errors import ProblemsError
from pipeline.models.publications import read_card
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


def npz(path: Path, count: int, seed: int, *, damage: bool = False) -> dict[str, Any]:
    """Write cells as a stored .npz of two splits; ``damage`` flips a byte of the last image, which only CRC shows."""
    source = SyntheticSource(count, seed)
    images = np.stack([np.asarray(item.image) for item in source.read(0, count)])
    labels = np.array([item.label for item in source.read(0, count)])
    arrays = {"train": images, "val": images[:16], "test": images}
    np.savez(
        path,
        **{f"{name}_images": array for name, array in arrays.items()},
        **{f"{name}_labels": labels[: len(array)] for name, array in arrays.items()},
    )
    if damage:
        content = bytearray(path.read_bytes())
        at = content.index(b"test_images.npy") + 4000
        content[at] ^= 1
        path.write_bytes(bytes(content))
    return {"kind": "npz", "path": str(path), "split": "test", "class_names": list(source.class_names)}


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


def test_a_finished_study_computes_nothing_again(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(undisturbed, folder)
    for path in folder.rglob("run.json"):
        path.write_text(path.read_text().replace(str(undisturbed), str(folder)))
    before = modification_times(folder)
    run_study(plan_study([folder]), "local")
    assert "min left" not in capsys.readouterr().err, "nothing was computed that could tell"
    after = modification_times(folder)
    derived = {name for name in after if Path(name).parts[-2:-1] != ("near",) and Path(name).parts[-2:-1] != ("far",)}
    assert {name: time for name, time in after.items() if name not in derived} == {
        name: time for name, time in before.items() if name not in derived
    }


@pytest.mark.parametrize(
    "at",
    [
        "runs/cells/0/evidence/near",
        pytest.param("archives/far/samples", marks=pytest.mark.slow),
        pytest.param("runs/cells/1/predictions/t3-batch/near", marks=pytest.mark.slow),
    ],
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


def test_a_model_is_trained_without_a_set_that_is_not_at_hand(tmp_path: Path, command_line: CommandLine) -> None:
    folder = write_study(tmp_path / "study")
    pool = yaml.safe_load((folder / "training.yaml").read_text())["finetune"]["generalist"]
    lost = npz(tmp_path / "lost.npz", 32, 3)
    (tmp_path / "lost.npz").unlink()
    for role, split in (("train", "train"), ("validation", "val")):
        pool[role].append({"name": "lost", "source": {**lost, "split": split}})
    change(folder, "training", finetune={"generalist": pool}, seeds={"study": [0]})
    change(folder, "cells", seeds={"study": [0]})

    code, out, err = command_line("study", str(folder), "--engine", "local")

    assert code == 0, err
    assert "min left" in err
    assert any(line.split()[:1] == ["t3-batch"] and len(line.split()) == 8 for line in out.splitlines())
    (line,) = [line for line in out.splitlines() if line.startswith("missing: ")]
    assert line.startswith("missing: training, seed 0: generalist was trained without training set 'lost': ")
    assert (run(folder, 0) / "metrics.parquet").exists()
    assert [each["name"] for each in card(folder / "generalist-0.safetensors")["sets"]] == ["pool"]


def card(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_card(path)["training"]
    return found


def test_a_checkpoint_is_taken_by_its_card_when_its_images_are_gone_and_refused_when_that_says_otherwise(
    tmp_path: Path, command_line: CommandLine
) -> None:
    folder = write_study(tmp_path / "study")
    change(folder, "training", seeds={"study": [0]})
    images = npz(tmp_path / "near.npz", 64, 40)
    expert = training("near", 40, init="generalist")
    for role, split in (("train", "train"), ("validation", "val")):
        expert[role] = [{"name": "near", "source": {**images, "split": split}}]
    change(folder, "cells", seeds={"study": [0]}, finetune={"expert": expert})
    assert command_line("study", str(folder), "--engine", "local")[0] == 0
    made = (folder / "expert-0.safetensors").read_bytes()
    (tmp_path / "near.npz").unlink()

    code, out, _ = command_line("study", str(folder), "--engine", "local")
    assert code == 0
    assert "missing: cells, seed 0: expert was taken as its card describes it, without a look at training set" in out

    change(folder, "cells", finetune={"expert": {**expert, "epochs": 2}})
    code, _, err = command_line("study", str(folder), "--engine", "local")
    assert code == 2
    assert "error: cells, seed 0: " in err
    assert "was made with other settings than finetune.expert says" in err
    assert (folder / "expert-0.safetensors").read_bytes() == made


def test_a_set_that_turns_out_to_be_damaged_costs_no_other_set(tmp_path: Path, command_line: CommandLine) -> None:
    folder = write_study(tmp_path / "study")
    sets = yaml.safe_load((folder / "cells.yaml").read_text())["evaluation_sets"]
    damaged = {"name": "torn", "source": npz(tmp_path / "torn.npz", 40, 8, damage=True)}
    change(folder, "cells", evaluation_sets=[damaged, *sets], seeds={"study": [0]})
    change(folder, "training", seeds={"study": [0]})

    code, _, err = command_line("study", str(folder), "--engine", "local")

    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: cells, seed 0: evaluation set 'torn': ")
    assert list(json.loads((run(folder, 0) / "run.json").read_text())["left_out"]) == ["torn"]
    assert sorted(path.name for path in (run(folder, 0) / "evidence").iterdir()) == ["far", "near"]


def test_a_stale_archive_without_its_source_is_left_out_and_said(tmp_path: Path, command_line: CommandLine) -> None:
    folder = write_study(tmp_path / "study")
    sets = yaml.safe_load((folder / "cells.yaml").read_text())["evaluation_sets"]
    source = npz(tmp_path / "other.npz", 40, 8)
    for name in ("training", "cells"):
        change(folder, name, seeds={"study": [0]})
    change(folder, "cells", evaluation_sets=[*sets, {"name": "other", "source": source}])
    assert command_line("study", str(folder), "--engine", "local")[0] == 0
    (tmp_path / "other.npz").unlink()
    assert command_line("study", str(folder), "--engine", "local")[0] == 0, "the archive stands in for its source"
    assert evaluated(folder) == {"near", "far", "other"}

    change(folder, "cells", evaluation_sets=[*sets, {"name": "other", "source": {**source, "limit": 30}}])
    code, out, err = command_line("study", str(folder), "--engine", "local")
    assert code == 2
    assert "changed in limit since it was stored" in err
    assert "missing: evaluation set 'other': " in out
    assert evaluated(folder) == {"near", "far"}


def evaluated(folder: Path) -> set[str]:
    return set(pl.read_parquet(run(folder, 0) / "metrics.parquet")["evaluation_set"])


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
    page = (folder / "runs" / "report" / "index.html").read_text()
    assert "The study is not complete: broken, seed 0: " in page


def test_seeds_that_would_write_to_one_place_are_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    change(folder, "cells", output="runs/cells")
    with pytest.raises(
        ProblemsError, match=r"cells, seed 1: output is .* which cells, seed 0 writes too; put \{seed\}"
    ):
        plan_study([folder])


def test_what_is_named_twice_is_made_once_and_two_manifests_may_not_write_to_one_place(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    assert len(plan_study([folder, folder / "cells.yaml"], seeds=[0, 0])) == 2
    document = yaml.safe_load((folder / "cells.yaml").read_text())
    write(folder, "twin", {**document, "name": "twin", "output": "runs/twin/{seed}"})
    with pytest.raises(ProblemsError, match=r"twin, seed 0: pair.expert is .* cells, seed 0 writes too; give one"):
        plan_study([folder])


def test_a_setting_that_no_method_can_have_is_found_before_any_work(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    change(folder, "cells", methods=["t3", {"name": "t3-batch", "lambda_min": 0.9, "lambda_max": 0.1}])
    with pytest.raises(ProblemsError, match="lambda_min must be <= lambda_max"):
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
