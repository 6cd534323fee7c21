"""Pairs of tiny image classifiers: their study, their training, and plain timm with the files on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipeline.drivers.finetune import finetune
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest, load_manifest
from tests.main_job.factory import MANIFEST, run_both, single_precision

IMAGES, CLASSES = 150, 4
ROLES = ("generalist", "expert")
SOUP: dict[str, Any] = {"name": "soup", "alpha": 0.4}
DECOUPLED = {"name": "entropy-adaptive", "temperature": 0.5, "temperature_head": 0.1}
METHODS: list[Any] = ["generalist", "expert", "ensemble", "t3-batch", SOUP, "ties", DECOUPLED, "dawin"]
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {
        "architecture": "resnet10t",
        "num_classes": CLASSES,
        "model_args": {"stem_width": 8},
        "pretrained_cfg": {"input_size": [3, 28, 28], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
    },
    "vit": {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": CLASSES,
        "model_args": {"img_size": 28, "patch_size": 7, "depth": 1, "embed_dim": 24, "num_heads": 2},
    },
}
NORMALISATION = {"resnet": ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
Weights = dict[str, NDArray[np.float64]]


def cells(count: int, seed: int, site: str = "a") -> list[dict[str, Any]]:
    return [{"name": "cells", "source": {"kind": "synthetic", "count": count, "seed": seed, "site": site}}]


def write_study(folder: Path, config: dict[str, Any], **entries: Any) -> Path:
    """A pair of classifiers, how both are trained, and the set on which they are compared."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps(config))
    epochs = 10 if "vit" in config["architecture"] else 2
    training = {"epochs": epochs, "learning_rate": 5e-3, "batch_size": 16, "patience": 10, "threads": 1}
    content: dict[str, Any] = {
        "name": "classifiers",
        "output": "run",
        "archives": "archives",
        "pair": {"architecture": "tiny.json", **{role: f"./{role}.safetensors" for role in ROLES}},
        "methods": METHODS,
        "part_rows": 64,
        "compute": {"device": "cpu"},
        "evaluation_sets": cells(IMAGES, seed=11),
        "finetune": {
            "generalist": training
            | {"init": "random", "train": cells(256, seed=1, site="c"), "validation": cells(32, seed=2, site="c")},
            "expert": training | {"init": "generalist", "train": cells(256, seed=3), "validation": cells(32, seed=4)},
        },
        **entries,
    }
    (folder / MANIFEST).write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / MANIFEST


def trained_and_run(path: Path) -> Manifest:
    manifest = load_manifest(path)
    assert [item.role for item in finetune(manifest)] == ["generalist", "expert"]
    ingest(manifest, LocalEngine(manifest))
    return run_both(manifest)


class PlainTimm:
    """timm by itself: pixels normalised by hand, weights strictly loaded under timm's own names."""

    def __init__(self, backbone: str, images: dict[int, Image.Image], classes: int = CLASSES) -> None:
        config = CONFIGS[backbone]
        self.model = timm.create_model(config["architecture"], num_classes=classes, **config["model_args"]).eval()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISATION[backbone])
        self._pixels = {
            row: (torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 255 - mean) / std
            for row, image in images.items()
        }

    @torch.inference_mode()
    def logits(self, state: Weights, rows: list[int]) -> NDArray[np.float64]:
        torch.set_num_threads(1)
        own = self.model.state_dict()
        self.model.load_state_dict({key: value.to(own[key].dtype) for key, value in single_precision(state).items()})
        logits: NDArray[np.float64] = self.model(torch.stack([self._pixels[row] for row in rows])).double().numpy()
        return logits
