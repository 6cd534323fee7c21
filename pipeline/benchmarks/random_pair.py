"""A generalist with random weights and an expert that is a perturbation of it: what merging costs needs no training."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.models.architectures import load_architecture
from pipeline.models.checkpoints import digest_weights
from pipeline.models.sources import SourceModels

PERTURBATION = 0.01


def random_pair(architecture: str, *, seed: int = 0, classes: int | None = None) -> SourceModels:
    """Pair of ``architecture`` (open_clip name, timm name or JSON file), the same for the same seed.

    ``classes`` is for image classifiers whose architecture does not state it.
    """
    torch.manual_seed(seed)
    shape = load_architecture(architecture, classes, key="--architecture")
    model = shape.build()
    generalist = {key: value.clone() for key, value in model.state_dict().items()}
    states = {"generalist": generalist, "expert": perturbed(generalist)}
    return SourceModels(
        architecture=shape,
        model=model,
        states=states,
        digests={name: digest_weights(state) for name, state in states.items()},
        preprocessing=shape.preprocessing(model),
    )


def short_name(architecture: str) -> str:
    """Name of an architecture for a title: a JSON file's without its folder."""
    return Path(architecture).stem if architecture.endswith(".json") else architecture


def perturbed(state: Mapping[str, Tensor], scale: float = PERTURBATION) -> dict[str, Tensor]:
    """State whose every floating-point entry moved by Gaussian noise of ``scale``; variances stay positive."""
    return {
        key: _moved(key, value, scale) if value.is_floating_point() else value.clone() for key, value in state.items()
    }


def _moved(key: str, value: Tensor, scale: float) -> Tensor:
    noise = scale * torch.randn_like(value)
    return value + noise.abs() if key.endswith("running_var") else value + noise
