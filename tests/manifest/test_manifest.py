"""Manifests as users write them: what is filled in, what paths count from, and what the environment says."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import Manifest, load_manifest
from tests.manifest.factory import SOURCES, Write, of_sources, problems


def source(manifest: Manifest, position: int = 0) -> Any:
    return manifest.evaluation_sets[position].source[0]


def test_defaults_are_the_papers_and_the_designs(write: Write) -> None:
    manifest = load_manifest(write())
    rule, grouping, compute = manifest.coefficient, manifest.grouping, manifest.compute
    assert (rule.rule, rule.gamma, rule.delta) == ("t3", 1.0, 0.5)
    assert (rule.tau_generalist, rule.tau_expert, rule.lambda_min, rule.lambda_max) == (0.05, 0.05, 0.0, 1.0)
    assert (grouping.kind, grouping.batch_size, grouping.tolerance) == ("arrival", 32, None)
    assert (grouping.window.rows, grouping.window.bytes) == (65_536, 8 * 1024**3)
    assert (compute.threads, compute.tile, compute.workers, compute.device) == (1, 32, 1, "auto")
    assert (manifest.part_rows, manifest.pair.precision, manifest.prompts.text_tower) == (8192, "fp32", "merged")
    assert (rule.mapping, grouping.order, grouping.clusters) == ("sigmoid", "arrival", 3)
    assert (manifest.seeds.training, manifest.seeds.merging, manifest.seeds.order) == (0, 0, 0)
    assert manifest.selected_methods == ["generalist", "expert", "t3-batch"]
    assert (source(manifest).seed, source(manifest).site) == (0, "a")


def test_the_default_methods_follow_the_grouping(write: Write) -> None:
    assert load_manifest(write(grouping__kind="lambda")).selected_methods == ["generalist", "expert", "t3-lambda"]
    assert load_manifest(write(methods=["t3"], grouping__kind="lambda")).selected_methods == ["t3"]
    mixture = load_manifest(write(grouping__kind="mixture", grouping__clusters=5, coefficient__rule="dawin"))
    assert mixture.selected_methods == ["generalist", "expert", "dawin-mixture"]
    own = load_manifest(write(coefficient__rule="clinic.rules:margin"))
    assert own.selected_methods == ["generalist", "expert", "clinic.rules:margin-batch"]


def test_all_are_the_methods_that_the_models_allow(write: Write) -> None:
    every = load_manifest(write(methods="all")).selected_methods
    assert {"generalist", "t3", "dawin-mixture", "slerp", "ties", "mixup", "entropy-adaptive", "oracle"} <= {*every}
    assert len(every) == len({*every}) > 25
    sites = load_manifest(of_sources(write(methods="all"))).selected_methods
    assert sites == ["site-1", "site-2", "site-3", "ensemble", "mean", "entropy-adaptive"]
    models = SOURCES["models"] | {"generalist": "laion2b"}
    based = load_manifest(of_sources(write(methods="all"), models=models)).selected_methods
    assert {*based} == {*models, "ensemble", "mean", "entropy-adaptive", "task-arithmetic", "ties"}


def test_sources_are_named_in_order_and_the_pair_may_lie_among_them(write: Write, tmp_path: Path) -> None:
    manifest = load_manifest(of_sources(write()))
    assert manifest.checkpoints == {
        "site-1": str(tmp_path / "checkpoints/site-1.safetensors"),
        "site-2": "openai",
        "site-3": "hf-hub:org/model",
    }
    assert manifest.architecture == str(tmp_path / "models/tiny.json")
    assert (manifest.is_pair, manifest.checkpoint_key("site-2")) == (False, "sources.models.site-2")
    assert manifest.selected_methods == ["site-1", "site-2", "site-3", "entropy-adaptive"]
    both = load_manifest(of_sources(write(), models={"expert": "b.pt", "generalist": "a.pt", "third": "c.pt"}))
    assert both.is_pair
    assert both.selected_methods == ["expert", "generalist", "third", "t3-batch"]


def test_entries_of_methods_may_have_settings(write: Write) -> None:
    entries = ["soup", {"name": "soup", "alpha": 0.4}, {"name": "t3-batch", "order": "dirichlet(0.05)", "gamma": 2}]
    assert load_manifest(write(methods=entries)).selected_methods == entries
    own = [{"name": "clinic.rules:margin-lambda", "sharpness": 3, "tolerance": 0.1}]
    assert load_manifest(write(methods=own)).selected_methods == own


def test_a_source_may_be_one_or_several(write: Write) -> None:
    one = {"kind": "synthetic", "count": 8}
    several = load_manifest(write(evaluation_sets=[{"name": "cells", "source": [one, one | {"seed": 1}]}]))
    assert [item.seed for item in several.evaluation_sets[0].source] == [0, 1]
    assert len(load_manifest(write()).evaluation_sets[0].source) == 1


def test_paths_are_relative_to_the_manifest(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    npz = {"kind": "npz", "path": "data/x.npz", "split": "test", "class_names": ["a", "b"]}
    training = {
        "init": "../start.pt",
        "train": [{"name": "x", "source": npz}],
        "validation": [{"name": "x", "source": npz}],
    }
    manifest = load_manifest(
        write(
            data_root="data",
            pair__architecture="models/tiny.json",
            pair__generalist="checkpoints/generalist",
            evaluation_sets=[{"name": "x", "source": npz}],
            finetune__expert=training,
        )
    )
    assert manifest.output == str(tmp_path / "runs/study")
    assert manifest.archives == str(tmp_path.parent / "archives")
    assert manifest.data_root == str(tmp_path / "data")
    assert manifest.pair.architecture == str(tmp_path / "models/tiny.json")
    assert manifest.pair.generalist == str(tmp_path / "checkpoints/generalist")
    assert manifest.pair.expert == str(tmp_path / "expert.safetensors")
    assert source(manifest).path == str(tmp_path / "data/x.npz")
    expert = manifest.finetune["expert"]
    assert expert.init == str(tmp_path.parent / "start.pt")
    assert expert.train[0].source[0].path == str(tmp_path / "data/x.npz")


@pytest.mark.parametrize("reference", ["openai", "laion2b_s34b_b79k", "hf-hub:org/model"])
def test_tags_and_hub_ids_are_no_paths(write: Write, reference: str) -> None:
    assert load_manifest(write(pair__generalist=reference)).pair.generalist == reference


def test_absolute_paths_stay(write: Write, tmp_path: Path) -> None:
    assert load_manifest(write(output="/data/run")).output == "/data/run"


def test_environment_variables_are_replaced(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUDY_RUNS", "/scratch/runs")
    monkeypatch.setenv("STUDY_EMPTY", "")
    monkeypatch.delenv("STUDY_UNSET", raising=False)
    manifest = load_manifest(
        write(
            output="${STUDY_RUNS}/a",
            archives="${STUDY_UNSET:-/scratch/archives}",
            prompts__templates=["${STUDY_EMPTY:-a photo} of {}"],
        )
    )
    assert manifest.output == "/scratch/runs/a"
    assert manifest.archives == "/scratch/archives"
    assert manifest.prompts.templates == ["a photo of {}"]


def test_every_unset_variable_is_named_with_its_key(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_UNSET", raising=False)
    found = problems(write(output="${STUDY_UNSET}/a", prompts__templates=["x {}", "${STUDY_UNSET} {}"]))
    assert found == [
        "output: environment variable STUDY_UNSET is not set; set it or write the value",
        "prompts.templates[1]: environment variable STUDY_UNSET is not set; set it or write the value",
    ]


def test_the_data_root_of_the_environment_is_relative_to_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PIPELINE_DATA_ROOT", "../data")
    npz = {"kind": "npz", "path": "${PIPELINE_DATA_ROOT}/x.npz", "split": "test", "class_names": ["a", "b"]}
    manifest = load_manifest(write(evaluation_sets=[{"name": "x", "source": npz}]))
    assert manifest.data_root == str(tmp_path / "data")
    assert source(manifest).path == str(tmp_path / "data/x.npz")


def test_the_command_line_beats_the_manifest_and_the_manifest_the_environment(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_DATA_ROOT", "/environment")
    path = write(data_root="/manifest")
    assert load_manifest(path).data_root == "/manifest"
    overruled = load_manifest(path, data_root=Path("given"), output=Path("elsewhere"))
    assert overruled.data_root == str(tmp_path / "given")
    assert overruled.output == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("order", ["arrival", "iid", "temporal", "dirichlet(0.05)", "dirichlet(.5)"])
def test_orders_are_accepted(write: Write, order: str) -> None:
    assert load_manifest(write(grouping__order=order)).grouping.order == order


def test_a_manifest_means_the_same_after_being_written_out(write: Write) -> None:
    manifest = load_manifest(write(coefficient__gamma=0.5, grouping__kind="lambda"))
    assert Manifest.model_validate(json.loads(manifest.model_dump_json())) == manifest
