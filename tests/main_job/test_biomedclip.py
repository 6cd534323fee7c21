"""The main job on a pair of BiomedCLIP's kind: validated, fine-tuned, precomputed and inferred from one manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file
from scipy.special import softmax

from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.finetune import finetune
from pipeline.drivers.ingest import ingest
from pipeline.drivers.validate import validate
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest, load_manifest
from pipeline.models.publications import read_card
from tests.main_job.factory import matrix, read_predictions, run_both
from tests.models.biomedclip import CONTEXT, as_published, make_repository, plain_model, random_state
from tests.models.factory import along, blended

TEMPLATE = "a blood cell {}."
CLASSES = ["red", "white"]


def cells(count: int, seed: int) -> dict[str, Any]:
    source = {"kind": "synthetic", "count": count, "seed": seed, "classes": len(CLASSES)}
    return {"name": "cells", "source": source, "class_names": CLASSES}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A finished run: the generalist is a file as the hub has it, the expert is trained from it."""
    folder = tmp_path_factory.mktemp("biomedclip")
    repository = make_repository(folder / "repository")
    torch.save(as_published(random_state(repository, 1)), folder / "repository" / "open_clip_pytorch_model.bin")
    content = {
        "name": "biomedclip",
        "output": "run",
        "archives": "archives",
        "pair": {
            "architecture": str(repository.relative_to(folder)),
            "generalist": "repository/open_clip_pytorch_model.bin",
            "expert": "expert.safetensors",
        },
        "prompts": {"templates": [TEMPLATE]},
        "methods": ["generalist", "expert", "t3", "t3-batch"],
        "grouping": {"batch_size": 2},
        "compute": {"device": "cpu", "tile": 4},
        "evaluation_sets": [cells(4, seed=0)],
        "finetune": {
            "expert": {
                "init": "generalist",
                "train": [cells(4, seed=1)],
                "validation": [cells(2, seed=2)],
                "epochs": 1,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "threads": 1,
            }
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    manifest = load_manifest(folder / "study.yaml")
    assert validate(manifest)[0].endswith("run `pipeline finetune` to make pair.expert")
    finetune(manifest)
    ingest(manifest, LocalEngine(manifest))
    assert validate(manifest)[0] == "pair: open_clip_config.json, 224x224 pixels, both ends fit"
    return run_both(manifest)


@torch.inference_mode()
def plain_probabilities(manifest: Manifest, lambdas: list[float]) -> np.ndarray[Any, Any]:
    """Each image by open_clip's own model with the merged weights of its λ, in float64 after the softmax."""
    repository = Path(manifest.architecture)
    generalist = torch.load(repository.parent / "open_clip_pytorch_model.bin", weights_only=True)
    expert = load_file(Path(manifest.output).parent / "expert.safetensors")
    states = [{key: state[key] for key in expert} for state in (generalist, expert)]
    model = plain_model(repository)
    transform = open_clip.image_transform(224, is_train=False, mean=[0.5, 0.4, 0.3], std=open_clip.OPENAI_DATASET_STD)
    tokens = HFTokenizer(str(repository.parent / "text"), context_length=CONTEXT)(
        [TEMPLATE.format(name) for name in CLASSES]
    )
    rows = []
    for lam, item in zip(lambdas, SyntheticSource(4, 0, classes=2).read(0, 4), strict=True):
        model.load_state_dict(blended(states, along(lam)))
        features = model.encode_image(transform(item.image)[None], normalize=True)
        rows.append(model.logit_scale.exp() * features @ model.encode_text(tokens, normalize=True).T)
    return np.asarray(softmax(torch.cat(rows).double().numpy(), axis=1))


@pytest.mark.parametrize("method", ["generalist", "expert", "t3", "t3-batch"])
def test_every_method_answers_as_plain_open_clip_with_the_weights_of_its_lambda(
    manifest: Manifest, method: str
) -> None:
    table = read_predictions(manifest, method)
    constant = {"generalist": 0.0, "expert": 1.0}
    lambdas = [constant.get(method, lam) for lam in table["lambda"].to_pylist()]
    np.testing.assert_allclose(matrix(table, "probabilities"), plain_probabilities(manifest, lambdas), atol=2e-5)


def test_training_moved_both_towers_and_the_card_says_what_the_text_tower_is(manifest: Manifest) -> None:
    folder = Path(manifest.output).parent
    generalist = torch.load(folder / "repository" / "open_clip_pytorch_model.bin", weights_only=True)
    expert = load_file(folder / "expert.safetensors")
    for key in ("visual.trunk.blocks.11.mlp.fc2.weight", "text.transformer.encoder.layer.1.output.dense.weight"):
        assert not torch.equal(generalist[key], expert[key])
    answers = [matrix(read_predictions(manifest, end), "probabilities") for end in ("generalist", "expert")]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3, "the ends are apart"
    assert read_card(folder / "expert.safetensors")["architecture"]["text_cfg"]["hf_config"]["hidden_size"] == 24
