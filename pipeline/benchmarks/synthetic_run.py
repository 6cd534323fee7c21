"""Synthetic images and the demo's tiny pair with random weights: a run of any size, for benchmarks of the pipeline."""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from pipeline.benchmarks.random_pair import perturbed
from pipeline.models.architectures import load_architecture

ARCHITECTURE = "tiny.json"
PERTURBATION = 0.02
SET_NAME = "cells"


def write_pair(folder: Path) -> None:
    """Write ``tiny.json`` and the checkpoints of a random generalist and its perturbation to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = resources.files("pipeline.demo").joinpath(ARCHITECTURE).read_text(encoding="utf-8")
    (folder / ARCHITECTURE).write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    state = load_architecture(str(folder / ARCHITECTURE)).build().state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "generalist.safetensors")
    save_file(perturbed(state, PERTURBATION), folder / "expert.safetensors")


def write_manifest(folder: Path, pair: Path, images: int, *, threads: int = 1) -> Path:
    """Write a manifest of one set of ``images`` for ``t3-batch`` to ``folder``, with the pair that lies in ``pair``."""
    settings: dict[str, Any] = {
        "name": f"{images} images",
        "output": "run",
        "archives": "archives",
        "pair": {
            "architecture": str((pair / ARCHITECTURE).resolve()),
            "generalist": str((pair / "generalist.safetensors").resolve()),
            "expert": str((pair / "expert.safetensors").resolve()),
        },
        "methods": ["t3-batch"],
        "compute": {"device": "cpu", "threads": threads},
        "evaluation_sets": [{"name": SET_NAME, "source": {"kind": "synthetic", "count": images}}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
