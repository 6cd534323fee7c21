"""Tiny open_clip and timm models and their checkpoint files: the real library at a size that costs milliseconds."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.architectures import load_architecture
from pipeline.models.publications import CARD_KEY
from pipeline.models.sources import SourceModels, load_sources

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
# As timm publishes them on the hub, but for their size.
TINY_VIT: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 5,
    "model_args": {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},
    "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"},
}
RESNET10: dict[str, Any] = {
    "architecture": "resnet10t",
    "num_classes": 5,
    "pretrained_cfg": {"input_size": [3, 40, 32], "crop_pct": 0.8},
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


def timm_model(config: dict[str, Any]) -> torch.nn.Module:
    """What plain timm makes of a configuration, in evaluation mode."""
    return timm.create_model(
        config["architecture"], num_classes=config["num_classes"], **config.get("model_args", {})
    ).eval()


def timm_state(config: dict[str, Any], seed: int, spread: float = 0.05) -> State:
    torch.manual_seed(seed)
    return perturbed(timm_model(config).state_dict(), seed, spread)


def write_pair(folder: Path, config: Path, generalist: State, expert: State) -> SourceModels:
    files = {"generalist": generalist, "expert": expert}
    return load_sources(
        str(config),
        {name: str(write_checkpoint(folder / f"{name}.safetensors", state)) for name, state in files.items()},
    )


def write_sources(folder: Path, config: Path, states: Sequence[State]) -> SourceModels:
    """Sources named site-0, site-1, ..."""
    files = {
        f"site-{index}": str(write_checkpoint(folder / f"site-{index}.safetensors", state))
        for index, state in enumerate(states)
    }
    return load_sources(str(config), files, "sources")


def along(lam: float) -> tuple[float, float]:
    """Weights of generalist and expert at λ."""
    return 1 - lam, lam


def blended(states: Sequence[State], weights: Sequence[float]) -> State:
    """θ(w) as papers write it, in float64; integer entries are the first source's."""
    return {
        key: sum(weight * state[key].double() for state, weight in zip(states, weights, strict=True)).float()
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
