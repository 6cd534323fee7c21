"""Corrupted evaluation sets as a manifest names them: what is filled in, and what a mistake is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.manifest import Manifest, load_manifest
from pipeline.manifest.images import CorruptSource, MedMNISTCSource, NpzSource

NPZ: dict[str, Any] = {"kind": "npz", "path": "data/x.npz", "split": "test", "class_names": ["a", "b"]}
RELEASED: dict[str, Any] = {"kind": "medmnist-c", "dataset": "breastmnist"}
OURS: dict[str, Any] = {"kind": "corrupt", "of": NPZ, "corruptions": ["pixelate"]}


def write(folder: Path, *sources: dict[str, Any], **entries: Any) -> Path:
    content = {
        "name": "study",
        "output": "run",
        "pair": {"architecture": "ViT-B-32", "generalist": "openai", "expert": "expert.safetensors"},
        "evaluation_sets": [{"name": f"set-{i}", "source": source} for i, source in enumerate(sources)],
        **entries,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def problem(path: Path) -> str:
    with pytest.raises(PipelineError) as caught:
        load_manifest(path)
    (line,) = str(caught.value).splitlines()
    return line.removeprefix(f"{path}: ")


def test_defaults_are_all_severities_of_all_files_and_imagenet_cs_strengths(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, RELEASED, OURS))
    (released,), (ours,) = (item.source for item in manifest.evaluation_sets)
    assert isinstance(released, MedMNISTCSource)
    assert isinstance(ours, CorruptSource)
    assert released.severities == ours.severities == [1, 2, 3, 4, 5]
    assert (released.corruptions, released.folds, released.root, released.stratified) == (None, None, None, None)
    assert (ours.parameters, ours.seed) == ("imagenet-c", 0)
    assert Manifest.model_validate(manifest.model_dump()) == manifest


def test_paths_of_nested_sources_are_relative_to_the_manifest(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, RELEASED | {"root": "files"}, OURS))
    (released,), (ours,) = (item.source for item in manifest.evaluation_sets)
    assert isinstance(released, MedMNISTCSource)
    assert released.root == str(tmp_path / "files")
    assert isinstance(ours, CorruptSource)
    assert isinstance(ours.of, NpzSource)
    assert ours.of.path == str(tmp_path / "data/x.npz")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (RELEASED | {"corruptions": ["fog"], "folds": ["noise"]}, "corruptions and folds are both set"),
        (RELEASED | {"folds": ["nose"]}, "folds[0]: input should be 'digital', 'noise', 'blur', 'color' or"),
        (RELEASED | {"severities": [0]}, "severities[0] must be >= 1, got 0"),
        (RELEASED | {"severities": [6]}, "severities[0] must be <= 5, got 6"),
        (RELEASED | {"severities": [2, 1]}, "severities: severities must ascend, each named once, got [2, 1]"),
        (RELEASED | {"dataset": "../x"}, "dataset: must be letters, digits"),
        (RELEASED | {"corruptions": ["a/b"]}, "corruptions[0]: must be letters, digits"),
        (RELEASED | {"corruptions": ["fog", "fog"]}, "must be distinct, got fog more than once"),
        (RELEASED | {"severity": [1]}, ".severity; did you mean severities?; known: kind, dataset, root"),
        (RELEASED | {"stratified": {"images": 0}}, "stratified.images must be >= 1, got 0"),
        (OURS | {"corruptions": ["gausian_noise"]}, "imagenet-c has no 'gausian_noise'; did you mean gaussian_noise?"),
        (
            OURS | {"corruptions": ["shot_noise"], "parameters": "bloodmnist"},
            "corruptions: bloodmnist has no 'shot_noise'; it has pixelate",
        ),
        (OURS | {"parameters": "blodmnist"}, "unknown parameters 'blodmnist'; did you mean bloodmnist?"),
        (
            OURS | {"of": RELEASED},
            "of.kind: unknown source 'medmnist-c'; did you mean medmnist?; known: medmnist",
        ),
        (OURS | {"of": OURS}, "of.kind: unknown source 'corrupt'; known: medmnist, npz, synthetic"),
        (OURS | {"of": NPZ | {"pth": "x"}}, "of.pth; did you mean path?; known: kind, path, split"),
        (
            OURS | {"stratified": {"images": 3}, "of": NPZ | {"stratified": {"images": 3}}},
            "stratified is set here and in of; leave one of them out",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, source: dict[str, Any], said: str) -> None:
    found = problem(write(tmp_path, source))
    assert "evaluation_sets[0].source[0]" in found
    assert said in found


def test_a_corrupted_set_may_name_its_clean_set(tmp_path: Path) -> None:
    sets = [{"name": "clean", "source": NPZ}, {"name": "noise", "source": OURS, "clean": "clean"}]
    manifest = load_manifest(write(tmp_path, evaluation_sets=sets))
    assert [item.clean for item in manifest.evaluation_sets] == [None, "clean"]
    sets[1]["clean"] = "cleen"
    assert problem(write(tmp_path, evaluation_sets=sets)) == (
        "evaluation set 'noise': clean must name another evaluation set, got 'cleen'; did you mean clean?; "
        "the others are clean"
    )
    sets[1]["clean"] = "noise"
    assert "clean must name another evaluation set, got 'noise'" in problem(write(tmp_path, evaluation_sets=sets))


def test_a_training_set_has_no_clean_set(tmp_path: Path) -> None:
    items = [{"name": "x", "source": NPZ, "clean": "set-0"}]
    training = {"expert": {"init": "random", "train": items, "validation": items}}
    assert "clean belongs to evaluation_sets" in problem(write(tmp_path, NPZ, finetune=training))
