"""Tiny open_clip models and their checkpoint files: the real library at a size that costs milliseconds."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.architectures import load_architecture
from pipeline.models.publications import CARD_KEY

State = dict[str, Tensor]

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_RESNET: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "text_cfg": TINY["text_cfg"],
}


def changed(config: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """A configuration with ``entries`` set; ``text_cfg__layers`` goes into the section ``text_cfg``."""
    result = copy.deepcopy(config)
    for path, value in entries.items():
        *sections, key = path.split("__")
        place = result
        for section in sections:
            place = place[section]
        place[key] = value
    return result


def write_config(folder: Path, config: dict[str, Any] = TINY, name: str = "tiny.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def random_state(config_path: Path, seed: int, spread: float = 0.1) -> State:
    """Weights of an untrained model, pushed so far that two seeds differ in every tensor, gains and biases too."""
    torch.manual_seed(seed)
    return perturbed(load_architecture(str(config_path)).build().state_dict(), seed, spread)


def perturbed(state: State, seed: int, spread: float) -> State:
    """Every floating-point tensor plus noise of standard deviation ``spread``; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)

    def pushed(key: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value.clone()
        noise = spread * torch.randn(value.shape, generator=generator)
        return value + (noise.abs() if key.endswith("running_var") else noise)

    return {key: pushed(key, value).contiguous() for key, value in state.items()}


def write_checkpoint(path: Path, state: State, card: dict[str, Any] | None = None) -> Path:
    save_file(state, path, metadata=None if card is None else {CARD_KEY: json.dumps(card)})
    return path


def interpolated(generalist: State, expert: State, lam: float) -> State:
    """θ(λ) as papers write it, in float64; integer entries are the generalist's."""
    return {
        key: ((1 - lam) * value.double() + lam * expert[key].double()).float() if value.is_floating_point() else value
        for key, value in generalist.items()
    }
