"""A λ for every image: the exact forward in full tiles against one merge for each image, and towers that have none."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from pipeline.drivers.infer import infer
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.errors import StaleCacheError
from pipeline.manifest import Manifest, load_manifest
from tests.main_job.factory import (
    MANIFEST,
    ShuffledEngine,
    assert_same_files,
    copy_run,
    matrix,
    read_predictions,
    result_files,
    run_infer,
    run_precompute,
    study,
)

METHODS = ["t3", "dawin"]
LOOP = {"per_sample": "merge-loop"}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


@pytest.mark.parametrize("method", METHODS)
def test_the_exact_forward_answers_as_one_merge_for_each_image(
    finished: Manifest, pair: Path, tmp_path: Path, method: str
) -> None:
    archives = Path(finished.archives)
    answers = []
    for name, compute in (("exact", {}), ("loop", LOOP)):
        manifest = study(tmp_path / name, pair, archives, methods=[method], compute=compute)
        run_precompute(manifest)
        run_infer(manifest)
        answers.append(read_predictions(manifest, method))
    ours, theirs = answers
    for column in ("row", "sample_id", "batch", "lambda", "label"):
        assert ours[column].equals(theirs[column])
    np.testing.assert_allclose(matrix(ours, "probabilities"), matrix(theirs, "probabilities"), atol=1e-4)


def test_any_order_of_work_leaves_the_same_files(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives), methods=["t3"])
    run_precompute(manifest)
    infer(manifest, ShuffledEngine(manifest, workers=2, seed=4))
    expected = {
        name: content for name, content in result_files(Path(finished.output)).items() if "predictions/t3@" in name
    }
    actual = {
        name: content for name, content in result_files(Path(manifest.output)).items() if "predictions/t3@" in name
    }
    assert_same_files(actual, expected)


def test_a_run_begun_with_one_way_refuses_the_other(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    with pytest.raises(StaleCacheError, match="implementation changed"):
        run_infer(copy_run(finished, tmp_path, pair, compute=LOOP), "t3")


def test_a_tower_without_an_exact_form_is_named_and_merged_for_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "architecture": "convnext_atto",
        "num_classes": 4,
        "model_args": CONVNEXT,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    (tmp_path / "convnext.json").write_text(json.dumps(config))
    files = {}
    for seed, name in enumerate(("generalist", "expert")):
        torch.manual_seed(seed)
        files[name] = str(tmp_path / f"{name}.safetensors")
        save_file(timm.create_model("convnext_atto", num_classes=4, **CONVNEXT).state_dict(), files[name])
    content = {
        "name": "convnext",
        "output": "run",
        "archives": "archives",
        "pair": {"architecture": "convnext.json", **files},
        "methods": ["t3"],
        "compute": {"device": "cpu"},
        "evaluation_sets": [{"name": "cells", "source": {"kind": "synthetic", "count": 24, "seed": 1}}],
    }
    (tmp_path / MANIFEST).write_text(yaml.safe_dump(content))
    manifest = load_manifest(tmp_path / MANIFEST)
    ingest(manifest, LocalEngine(manifest))
    run_precompute(manifest)
    capsys.readouterr()
    summary = run_infer(manifest)
    said = capsys.readouterr().err
    assert "one merge for each image" in said
    assert "convnext" in said.lower()
    assert summary.as_json()["ledger"]["counts"]["image_forward_calls"]["merged"] == 24
