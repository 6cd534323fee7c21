"""What a user's mistake looks like on the command line: one line that says what to do, exit code 2, no traceback."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from medmnist.info import INFO

from pipeline.cli import main
from pipeline.drivers.downloads import NOT_YET
from pipeline.drivers.validate import InvalidManifestError
from tests.models.factory import TINY, State, changed, random_state, write_checkpoint, write_config
from tests.results.run_factory import minimal_run, predicted_part

MANIFEST: dict[str, Any] = {
    "name": "study",
    "output": "run",
    "archives": "archives",
    "pair": {
        "architecture": "tiny.json",
        "generalist": "generalist.safetensors",
        "expert": "expert.safetensors",
    },
    "prompts": {"templates": ["a {}"]},
    "compute": {"device": "cpu"},
    "evaluation_sets": [{"name": "cells", "source": {"kind": "synthetic", "count": 6, "size": 28}}],
}
SYNTHETIC = MANIFEST["evaluation_sets"][0]["source"]
CLASSES = ["malignant", "benign"]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, State]:
    config = write_config(tmp_path_factory.mktemp("states"))
    return random_state(config, seed=1), random_state(config, seed=2)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Study:
    """A folder with a tiny pair and a manifest."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "study.yaml"

    def write(self, **entries: Any) -> Path:
        content = changed(MANIFEST, **entries)
        self.manifest.write_text(yaml.safe_dump(content), encoding="utf-8")
        return self.manifest


@pytest.fixture
def study(tmp_path: Path, states: tuple[State, State], monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.delenv("PIPELINE_DATA_ROOT", raising=False)
    write_config(tmp_path)
    for name, state in zip(("generalist", "expert"), states, strict=True):
        write_checkpoint(tmp_path / f"{name}.safetensors", state)
    study = Study(tmp_path)
    study.write()
    return study


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def run_main(*arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of ``pipeline ARGUMENTS``, in this process."""
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfd.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run_main


def only_line(result: tuple[int, str, str]) -> str:
    """The one line of an error, without its mark."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


def replace_expert(study: Study, edit: Callable[[State], State], card: dict[str, Any] | None = None) -> None:
    state = edit(random_state(study.folder / "tiny.json", seed=2))
    write_checkpoint(study.folder / "expert.safetensors", state, card)


def of_another_architecture(study: Study) -> None:
    deeper = write_config(study.folder, changed(TINY, vision_cfg__layers=3), "deeper.json")
    replace_expert(study, lambda _state: random_state(deeper, seed=2))


def with_missing_keys(study: Study) -> None:
    replace_expert(study, lambda state: {key: value for key, value in state.items() if not key.startswith("ln_final")})


def with_nan_weights(study: Study) -> None:
    replace_expert(study, lambda state: state | {"visual.proj": state["visual.proj"] * float("nan")})


def with_quickgelu(study: Study) -> None:
    replace_expert(study, lambda state: state, card={"architecture": changed(TINY, quick_gelu=True)})


def truncated(study: Study) -> None:
    path = study.folder / "expert.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def absent(study: Study) -> None:
    (study.folder / "expert.safetensors").unlink()


MISMATCHED_PAIRS = {
    of_another_architecture: ("does not fit architecture 'tiny.json'", "0 missing keys (none), 12 unexpected keys"),
    with_missing_keys: ("2 missing keys (ln_final.bias, ln_final.weight), 0 unexpected keys (none)",),
    with_nan_weights: ("1 tensors hold NaN or infinite values (visual.proj); the file is damaged",),
    with_quickgelu: ("was trained with QuickGELU, but architecture 'tiny.json' uses GELU",),
    truncated: ("is not a whole safetensors file",),
    absent: ("no such checkpoint",),
}


@pytest.mark.parametrize("command", [("validate",), ("precompute", "--engine", "local")], ids=lambda c: c[0])
@pytest.mark.parametrize("damage", MISMATCHED_PAIRS, ids=lambda damage: damage.__name__)
def test_a_mismatched_pair_is_one_line(
    study: Study, run: Run, damage: Callable[[Study], None], command: tuple[str, ...]
) -> None:
    damage(study)
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("pair.expert: ")
    assert "expert.safetensors" in line
    for said in MISMATCHED_PAIRS[damage]:
        assert said in line


def of_sources(study: Study, *names: str, **entries: Any) -> Path:
    """The study with K sources instead of its pair: ``site-a`` and ``site-b`` are its two checkpoints."""
    files = {"site-a": "generalist", "site-b": "expert"}
    models = {name: f"./{files.get(name, name)}.safetensors" for name in names or files}
    content = changed(MANIFEST, sources={"architecture": "tiny.json", "models": models}, **entries)
    del content["pair"]
    study.manifest.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return study.manifest


COMMANDS = pytest.mark.parametrize("command", [("validate",), ("precompute", "--engine", "local")], ids=lambda c: c[0])


@COMMANDS
def test_sources_of_differing_architecture_are_one_line(study: Study, run: Run, command: tuple[str, ...]) -> None:
    of_another_architecture(study)
    of_sources(study)
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("sources.models.site-b: ")
    assert "expert.safetensors: does not fit architecture 'tiny.json'" in line
    assert "0 missing keys (none), 12 unexpected keys" in line


@COMMANDS
@pytest.mark.parametrize("method", ["t3-batch", "soup", "slerp", "dawin", "oracle", "mixup"])
def test_a_method_that_needs_a_pair_is_refused_without_one(
    study: Study, run: Run, method: str, command: tuple[str, ...]
) -> None:
    of_sources(study, methods=["site-a", method])
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line == (f"study: method {method!r} needs a generalist and an expert; the models are site-a, site-b")


def test_methods_that_start_from_a_generalist_are_refused_without_one(study: Study, run: Run) -> None:
    of_sources(study, methods=["ties"])
    assert only_line(run("validate", study.manifest)) == (
        "study: method 'ties' needs a generalist and at least one expert; the models are site-a, site-b"
    )
    of_sources(study, "generalist", "site-b", methods=["soup"])
    assert only_line(run("validate", study.manifest)) == (
        "study: method 'soup' needs a generalist and an expert; the models are generalist, site-b"
    )
    of_sources(study, "generalist", "site-b", methods=["ties", "task-arithmetic", "mean", "entropy-adaptive"])
    code, out, err = run("validate", study.manifest)
    assert code == 0, err
    assert "sources: tiny.json, 28x28 pixels, 2 sources fit" in out


@COMMANDS
def test_the_generalists_text_tower_is_refused_without_a_generalist(
    study: Study, run: Run, command: tuple[str, ...]
) -> None:
    of_sources(study, prompts={"templates": ["a {}"], "text_tower": "generalist"})
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line == "study: prompts.text_tower is generalist, but there is no such model; set it to merged"


def test_a_method_asked_for_by_name_must_suit_the_sources(study: Study, run: Run) -> None:
    of_sources(study)
    line = only_line(run("infer", study.manifest, "--engine", "local", "--method", "site-c"))
    assert line.startswith("--method: unknown method 'site-c'; did you mean site-")
    line = only_line(run("infer", study.manifest, "--engine", "local", "--method", "t3-batch"))
    assert line == "study: method 't3-batch' needs a generalist and an expert; the models are site-a, site-b"


def test_training_of_a_model_that_is_not_described_is_one_line(study: Study, run: Run) -> None:
    item = {"name": "cells", "source": SYNTHETIC}
    training = {"init": "random", "train": [item], "validation": [item]}
    of_sources(study, finetune={"site-a": training})
    line = only_line(run("finetune", study.manifest, "--role", "site-b"))
    assert line == "study: finetune.site-b is not set; did you mean site-a?; set there are: site-a"


def test_a_bound_that_is_above_the_other_is_one_line(study: Study, run: Run) -> None:
    study.write(methods=[{"name": "t3", "lambda_min": 0.8, "lambda_max": 0.2}])
    for command in (("validate",), ("precompute", "--engine", "local"), ("infer", "--engine", "local")):
        line = only_line(run(command[0], study.manifest, *command[1:]))
        assert "t3: lambda_min must be <= lambda_max, got 0.8 and 0.2" in line


def test_an_unknown_architecture_is_one_line(study: Study, run: Run) -> None:
    study.write(pair__architecture="ViT-B-33")
    for command in (("validate",), ("ingest", "--engine", "local"), ("precompute", "--engine", "local")):
        line = only_line(run(command[0], study.manifest, *command[1:]))
        assert "pair.architecture: 'ViT-B-33'" in line
        assert "did you mean" in line
        assert "ViT-B-32" in line


def test_a_pair_without_an_expert_is_one_line(study: Study, run: Run) -> None:
    study.write(pair__expert=None)
    assert "pair.expert is required for this command; name a checkpoint" in only_line(run("validate", study.manifest))


def test_a_wrong_md5_is_one_line_with_both_digests(study: Study, run: Run) -> None:
    (study.folder / "data").mkdir()
    (study.folder / "data" / "breastmnist.npz").write_bytes(b"another file of that name")
    source = {"kind": "medmnist", "flag": "breastmnist", "split": "test"}
    study.write(evaluation_sets=[{"name": "breast", "source": source}])
    for command in (("validate",), ("ingest", "--engine", "local")):
        line = only_line(run(command[0], study.manifest, *command[1:], "--data-root", study.folder / "data"))
        assert line.startswith("evaluation set 'breast': ")
        assert "breastmnist.npz: MD5 is " in line
        assert f"published is {INFO['breastmnist']['MD5']}; delete it and fetch" in line
    assert not (study.folder / "archives" / "breast").exists()


@pytest.mark.parametrize("command", ["validate", "ingest", "precompute", "infer", "finetune"])
def test_a_typo_in_the_manifest_is_one_line_with_the_nearest_key(study: Study, run: Run, command: str) -> None:
    study.write(coefficient={"gama": 0.5})
    line = only_line(run(command, study.manifest))
    assert line.startswith(f"{study.manifest}: unknown key coefficient.gama; did you mean gamma?")


def test_a_value_out_of_bounds_is_one_line(study: Study, run: Run) -> None:
    study.write(coefficient={"gamma": -1})
    assert only_line(run("validate", study.manifest)) == f"{study.manifest}: coefficient.gamma must be > 0, got -1"


def test_an_absent_manifest_is_one_line(study: Study, run: Run) -> None:
    line = only_line(run("precompute", study.folder / "absent.yaml"))
    assert "absent.yaml: cannot be read (No such file or directory); give the path of a manifest" in line


@pytest.mark.parametrize("command", ["validate", "ingest", "precompute", "infer"])
def test_no_evaluation_sets_is_one_line(study: Study, run: Run, command: str) -> None:
    study.write(evaluation_sets=[])
    engine = () if command == "validate" else ("--engine", "local")
    assert only_line(run(command, study.manifest, *engine)) == (
        "study: evaluation_sets is empty; list at least one set"
    )


def write_npz(path: Path, images: int, labels: int | None = None) -> dict[str, Any]:
    """A file in MedMNIST's layout, and the source that names it."""
    np.savez(
        path,
        test_images=np.zeros((images, 28, 28), np.uint8),
        test_labels=np.zeros((images if labels is None else labels, 1), np.uint8),
    )
    return {"kind": "npz", "path": path.name, "split": "test", "class_names": CLASSES}


@pytest.mark.parametrize("command", [("validate",), ("ingest", "--engine", "local")], ids=lambda c: c[0])
def test_an_empty_set_is_one_line(study: Study, run: Run, command: tuple[str, ...]) -> None:
    study.write(evaluation_sets=[{"name": "none", "source": write_npz(study.folder / "x.npz", 0)}])
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("evaluation set 'none': ")
    assert "it is empty; choose another split" in line


@pytest.mark.parametrize("command", [("validate",), ("ingest", "--engine", "local")], ids=lambda c: c[0])
def test_another_number_of_class_names_is_one_line(study: Study, run: Run, command: tuple[str, ...]) -> None:
    item = {"name": "cells", "source": SYNTHETIC, "class_names": ["one", "two", "three"]}
    study.write(evaluation_sets=[item])
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("evaluation set 'cells': class_names lists 3 names, its source has 4 classes (")
    assert "give one name per class, in this order" in line


def test_a_mismatch_of_class_names_after_ingestion_is_one_line(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    study.write(evaluation_sets=[{"name": "cells", "source": SYNTHETIC, "class_names": ["one", "two", "three"]}])
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "class_names lists 3 names, its source has 4 classes" in line


def test_an_unknown_method_is_one_line(study: Study, run: Run) -> None:
    line = only_line(run("infer", study.manifest, "--engine", "local", "--method", "t3-bach"))
    assert line.startswith("--method: unknown method 't3-bach'; did you mean t3-batch?; `pipeline methods` lists all")
    study.write(methods=["t3-bach"])
    line = only_line(run("infer", study.manifest, "--engine", "local"))
    assert line.startswith(f"{study.manifest}: methods[0]: unknown method 't3-bach'; did you mean t3-batch?")


def test_a_plain_model_cannot_be_asked_for_online(study: Study, run: Run) -> None:
    line = only_line(run("infer", study.manifest, "--engine", "local", "--online", "--method", "expert"))
    assert line == "--online: expert needs no λ to be cached; leave out --online, or the method"


@pytest.mark.parametrize("command", ["precompute", "infer"])
def test_a_missing_archive_is_one_line_that_says_to_ingest(study: Study, run: Run, command: str) -> None:
    line = only_line(run(command, study.manifest, "--engine", "local"))
    assert str(study.folder / "archives" / "cells") in line
    assert "run `pipeline ingest`" in line


def test_missing_parts_of_an_archive_are_one_line(study: Study, run: Run) -> None:
    study.write(part_rows=2)
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    (study.folder / "archives" / "cells" / "samples" / "part-00001.parquet").unlink()
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "1 of 3 parts are missing; run `pipeline ingest`" in line


def test_sources_that_are_not_ingested_yet_are_one_line(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    study.write(evaluation_sets=[{"name": "cells", "source": [SYNTHETIC, SYNTHETIC | {"seed": 9}]}])
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "lists sources that it does not hold yet; run `pipeline ingest`" in line


def test_an_archive_for_another_model_size_is_one_line(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    config = changed(TINY, vision_cfg__image_size=42)
    write_config(study.folder, config)
    for seed, name in enumerate(("generalist", "expert")):
        write_checkpoint(study.folder / f"{name}.safetensors", random_state(study.folder / "tiny.json", seed))
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "height=28" in line
    assert "height=42" in line
    assert "give another 'archives' folder" in line


def test_ingest_resizes_as_the_checkpoints_say(study: Study, run: Run) -> None:
    """A publisher may state a resize mode (SigLIP: squash): the archive that ingest makes must then fit."""
    card = {"preprocessing": {"resize_mode": "squash"}}
    for seed, name in enumerate(("generalist", "expert")):
        state = random_state(study.folder / "tiny.json", seed)
        write_checkpoint(study.folder / f"{name}.safetensors", state, card)
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    code, _, err = run("precompute", study.manifest, "--engine", "local")
    assert code == 0, err


def test_missing_evidence_is_one_line_that_says_to_precompute(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    line = only_line(run("infer", study.manifest, "--engine", "local"))
    assert line == f"{study.folder / 'run'}: 1 parts have no evidence yet (cells); run `pipeline precompute`"


@pytest.mark.parametrize("changed_threads", [2])
def test_a_run_of_another_numeric_kind_is_one_line(study: Study, run: Run, changed_threads: int) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    assert run("precompute", study.manifest, "--engine", "local")[0] == 0
    study.write(compute={"device": "cpu", "threads": changed_threads})
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "threads was 1 and is now 2" in line


def test_problems_of_several_sets_are_a_line_each(study: Study, run: Run) -> None:
    study.write(
        evaluation_sets=[
            {"name": "none", "source": write_npz(study.folder / "x.npz", 0)},
            {"name": "uneven", "source": write_npz(study.folder / "y.npz", 3, labels=2)},
            {"name": "absent", "source": {"kind": "npz", "path": "z.npz", "split": "test", "class_names": CLASSES}},
        ]
    )
    with_nan_weights(study)
    code, out, err = run("validate", study.manifest)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, "", 4)
    assert all(line.startswith("error: ") for line in lines)
    for said in ("NaN", "'none'", "3 images but 2 labels", "z.npz: no such file"):
        assert sum(said in line for line in lines) == 1


def test_what_is_only_to_be_downloaded_is_no_error_beside_one(
    study: Study, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_DATA_ROOT", str(study.folder))
    study.write(
        evaluation_sets=[
            {"name": "cells", "source": SYNTHETIC},
            {"name": "breast", "source": {"kind": "medmnist", "flag": "breastmnist", "split": "test"}},
            {"name": "absent", "source": {"kind": "npz", "path": "z.npz", "split": "test", "class_names": CLASSES}},
        ]
    )
    code, out, err = run("validate", study.manifest)
    assert code == 2
    assert out == f"breast: {NOT_YET} breastmnist.npz from {INFO['breastmnist']['url']}\n"
    assert only_line((code, "", err)).startswith("evaluation set 'absent': ")


def test_problems_and_downloads_stay_apart_across_processes() -> None:
    copy = pickle.loads(pickle.dumps(InvalidManifestError(["a is wrong"], ["b is awaited"])))
    assert (copy.problems, copy.awaited, str(copy)) == (("a is wrong",), ("b is awaited",), "a is wrong")


@pytest.mark.parametrize("command", ["evaluate", "report", "inspect"])
@pytest.mark.parametrize("place", ["absent", "empty"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, run: Run, command: str, place: str) -> None:
    (tmp_path / "empty").mkdir()
    line = only_line(run(command, tmp_path / place))
    assert line.startswith(str(tmp_path / place))


@pytest.mark.parametrize("command", ["evaluate", "report", "inspect"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_record_of_a_run_is_one_line(tmp_path: Path, run: Run, command: str, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert str(tmp_path) in only_line(run(command, tmp_path))


def test_an_output_that_cannot_be_a_folder_is_one_line(study: Study, run: Run) -> None:
    (study.folder / "run").write_text("a file")
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert line.startswith(str(study.folder / "run"))


def test_the_local_engine_refuses_several_workers_in_one_line(study: Study, run: Run) -> None:
    line = only_line(run("precompute", study.manifest, "--engine", "local", "--workers", "2"))
    assert line == "--workers 2: the local engine is this process alone; use --engine ray"


def test_nothing_to_finetune_is_one_line(study: Study, run: Run) -> None:
    assert "is not set; say there how a checkpoint is trained" in only_line(run("finetune", study.manifest))


def test_a_prompt_that_would_be_cut_is_one_line(study: Study, run: Run) -> None:
    study.write(prompts={"templates": ["a {}" + " very" * 30]})
    line = only_line(run("validate", study.manifest))
    assert "is longer than the model's 20 tokens" in line


def test_what_is_right_is_accepted(study: Study, run: Run) -> None:
    code, out, err = run("validate", study.manifest)
    assert code == 0, err
    assert out.splitlines()[-1] == "valid"


def installed(*arguments: object) -> tuple[int, str, str]:
    """The console script itself, in a process of its own."""
    command = [str(Path(sys.executable).parent / "pipeline"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_installed_command_prints_one_line_for_a_typo(study: Study) -> None:
    study.write(grouping={"batch-size": 8})
    line = only_line(installed("precompute", study.manifest))
    assert line.startswith(f"{study.manifest}: unknown key grouping.batch-size; did you mean batch_size?")


def test_the_installed_command_prints_one_line_for_a_mismatched_pair(study: Study) -> None:
    with_nan_weights(study)
    assert "NaN" in only_line(installed("validate", study.manifest))


def test_the_installed_command_prints_one_line_for_a_missing_archive_on_ray(study: Study) -> None:
    assert "run `pipeline ingest`" in only_line(installed("precompute", study.manifest))


def test_the_installed_command_prints_the_schema() -> None:
    code, out, err = installed("manifest", "schema")
    assert code == 0, err
    assert json.loads(out)["title"] == "Manifest"


def test_a_site_without_an_image_is_one_line(study: Study, run: Run) -> None:
    source = write_npz(study.folder / "x.npz", 12)
    sites = [{**source, "site": {"index": index, "of": 16, "alpha": 0.01}} for index in range(16)]
    seen = set()
    for index, site in enumerate(sites):
        study.write(evaluation_sets=[{"name": "clinic", "source": site}])
        result = run("validate", study.manifest)
        seen.add(result[0])
        if result[0] == 0:
            continue
        line = only_line(result)
        assert line.startswith("evaluation set 'clinic': ")
        assert f"site {index} of 16 got no image at alpha 0.01; choose another index, seed or alpha" in line
    assert seen == {0, 2}


def two_runs(folder: Path) -> list[Path]:
    """Runs in folders of one name over sets of one name; the second is right half as often."""
    runs = [minimal_run(folder / night / "run", {"pbc": None}, ["generalist"]) for night in ("monday", "tuesday")]
    for path, predicted in zip(runs, ([0, 0, 1, 1], [0, 1, 1, 0]), strict=True):
        predicted_part(path, "generalist", "pbc", 0, range(4), predicted, [0, 0, 1, 1])
    return runs


def test_runs_of_one_name_over_sets_of_one_name_are_kept_apart(tmp_path: Path, run: Run) -> None:
    runs = two_runs(tmp_path)
    code, out, err = run("evaluate", *runs, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["accuracy"] for row in rows] == [1.0, 0.5]
    assert [row["evaluation_set"] for row in rows] == [f"{path}/pbc" for path in runs]
    code, out, err = run("evaluate", *runs)
    assert code == 0, err
    assert "100.00" in out
    assert "50.00" in out


def test_a_run_that_is_named_twice_is_one_line(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_runs(tmp_path)
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    for again in (first, Path("monday/run"), first / ".." / "run", Path("link")):
        line = only_line(run("evaluate", first, second, again, "--json"))
        assert line == f"{first}, {second}, {again}: a run is named twice; name each once"
    assert not (first / "metrics.parquet").exists()
