"""Manifests that extend others: what is merged, what paths count from, and what a broken chain says."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.errors import ManifestError, PipelineError
from pipeline.manifest import load_manifest, manifest_schema

PAIR = {"architecture": "models/tiny.json", "generalist": "openai", "expert": "expert.safetensors"}
SET = {"name": "cells", "source": {"kind": "synthetic", "count": 8}}
BASE: dict[str, Any] = {
    "name": "base",
    "output": "run",
    "pair": PAIR,
    "evaluation_sets": [SET],
    "coefficient": {"gamma": 0.5, "delta": 0.2},
    "grouping": {"window": {"rows": 10, "bytes": 1000}},
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_mappings_merge_and_everything_else_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    own = {
        "extends": "base.yaml",
        "coefficient": {"gamma": 2.0},
        "grouping": {"window": {"rows": 20}},
        "evaluation_sets": [{**SET, "name": "others"}],
    }
    manifest = load_manifest(write(tmp_path / "own.yaml", own))
    assert (manifest.name, manifest.coefficient.gamma, manifest.coefficient.delta) == ("base", 2.0, 0.2)
    assert (manifest.grouping.window.rows, manifest.grouping.window.bytes) == (20, 1000)
    assert [item.name for item in manifest.evaluation_sets] == ["others"]


def test_it_means_what_the_merged_file_means(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    extended = load_manifest(write(tmp_path / "own.yaml", {"extends": "base.yaml", "name": "own"}))
    assert extended == load_manifest(write(tmp_path / "whole.yaml", {**BASE, "name": "own"}))


def test_null_takes_away_what_the_base_has(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    models = {"a": "a.safetensors", "b": "b.safetensors"}
    own = {"extends": "base.yaml", "pair": None, "sources": {"architecture": "tiny.json", "models": models}}
    assert list(load_manifest(write(tmp_path / "own.yaml", own)).checkpoints) == ["a", "b"]


def test_a_chain_is_found_from_file_to_file_and_paths_count_from_the_first(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "bases" / "common.yaml", BASE)
    write(tmp_path / "shared" / "modality.yaml", {"extends": "bases/common.yaml", "archives": "archives"})
    own = write(tmp_path / "mine" / "own.yaml", {"extends": "../shared/modality.yaml", "output": "results"})
    manifest = load_manifest(own)
    assert manifest.output == str(tmp_path / "mine" / "results")
    assert manifest.archives == str(tmp_path / "mine" / "archives")
    assert manifest.architecture == str(tmp_path / "mine" / "models" / "tiny.json")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_is_refused_in_one_line(tmp_path: Path, length: int) -> None:
    for position in range(length):
        write(tmp_path / f"{position}.yaml", {"extends": f"{(position + 1) % length}.yaml"})
    path = tmp_path / "0.yaml"
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert str(caught.value) == (
        f"{path}: extends goes in a circle: {length - 1}.yaml leads back to 0.yaml; leave one of them out"
    )


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "cannot be read (No such file or directory); give the path of a manifest"),
        ("- a\n", "must be a mapping of settings, got list"),
        ("name: [1\n", "is not YAML"),
        ({"extends": 3}, "has extends: 3; it must be the path of a manifest"),
        ({"extends": ["a.yaml", "b.yaml"]}, "has extends: ['a.yaml', 'b.yaml']; it must be the path of a manifest"),
    ],
    ids=["absent", "list", "no YAML", "number", "several"],
)
def test_a_base_at_fault_is_named_beside_the_users_file(tmp_path: Path, base: Any, said: str) -> None:
    if base is not None:
        write(tmp_path / "base.yaml", base)
    path = write(tmp_path / "own.yaml", {**BASE, "extends": "base.yaml"})
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: extends {tmp_path / 'base.yaml'}, which {said}")


def test_problems_of_a_base_are_the_users_files(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {**BASE, "coefficient": {"gama": 1}, "extend": "x"})
    path = write(tmp_path / "own.yaml", {"extends": "base.yaml", "part_rows": 0})
    with pytest.raises(PipelineError) as caught:
        load_manifest(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert f"{path}: part_rows must be >= 1, got 0" in lines
    assert any("unknown key coefficient.gama; did you mean gamma?" in line for line in lines)
    assert any("unknown key extend; did you mean extends?" in line for line in lines)


def test_the_schema_has_the_key_and_then_asks_for_no_other(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(manifest_schema())
    assert list(validator.iter_errors({"extends": "base.yaml", "part_rows": 5})) == []
    assert list(validator.iter_errors({"part_rows": 5})) != []
    assert list(validator.iter_errors({"extends": 3})) != []


def test_what_is_recorded_is_the_resolved_manifest(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    manifest = load_manifest(write(tmp_path / "own.yaml", {"extends": "base.yaml"}))
    assert "extends" not in manifest.model_dump()
