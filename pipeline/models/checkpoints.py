"""Checkpoints: found, read as data (never unpickled), and brought into the key layout of their architecture."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import CheckpointError, one_line
from pipeline.models.architectures import AnyArchitecture
from pipeline.models.classifiers import LinearClassifier
from pipeline.models.publications import Publication, read_publication, tag_configuration
from pipeline.models.published import fetch_hub_weights, fetch_tag_weights, hub_weights, tag_weights
from pipeline.references import HUB_PREFIX, is_file_reference
from pipeline.store.files import write_atomically

# Entries that published checkpoints carry and that are no weights: OpenAI's archive fields, and the position index
# that older Hugging Face text towers stored as a buffer.
NOT_WEIGHTS = frozenset(
    {"input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids"}
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights in the architecture's key layout, and what their publisher says about them."""

    reference: str
    state: dict[str, Tensor]
    publication: Publication

    def digest(self) -> str:
        """See :func:`digest_weights`."""
        return digest_weights(self.state)


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in order of names: 64 hex digits.

    The digest of a checkpoint on a training's card is the one that a run records for it.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def load_checkpoint(reference: str, architecture: AnyArchitecture, model: nn.Module) -> Checkpoint:
    """Read weights by open_clip tag, ``hf-hub:`` id or local file, in the key layout of ``model``.

    Recognised layouts: open_clip, OpenAI, timm (for a classifier), ``module.``-prefixed, and each of these inside
    ``state_dict``. Nothing is dropped or renamed beyond that; whether the keys fit is :func:`checkpoint_problems`'s
    answer. Raises :class:`CheckpointError` when the file is absent, torn or holds anything but tensors, and for a
    classifier's weights that are not a local file.
    """
    publication = read_publication(reference, architecture)
    state = read_state(_locate(reference, architecture))
    return Checkpoint(reference, _in_layout_of(model, state), publication)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file, in float32 where they are floating-point."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give a file, an open_clip tag or an hf-hub: id")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def write_checkpoint(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Commit weights as safetensors, whole or not at all; ``metadata`` goes into the header."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}

    def write(temporary: Path) -> None:
        # safetensors makes the file readable to its owner alone; on shared storage it must be like its neighbours.
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=dict(metadata))
        temporary.chmod(mode)

    write_atomically(path, write)


def published_layout(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of ``model`` under the names that a checkpoint file has: timm's for a classifier, else its own."""
    return model.to_published_layout(state) if isinstance(model, LinearClassifier) else dict(state)


def checkpoint_problems(
    name: str, checkpoint: Checkpoint, architecture: AnyArchitecture, model: nn.Module
) -> list[str]:
    """What keeps ``checkpoint`` from being this architecture's weights, one line per kind of problem."""
    expected = published_layout(model, model.state_dict())
    state = published_layout(model, checkpoint.state)
    where = f"{name}: {checkpoint.reference}"
    problems = []
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    common = sorted(expected.keys() & state.keys())
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in common
        if state[key].shape != expected[key].shape
    ]
    if missing or unexpected:
        shapes = f", {len(reshaped)} tensors of another shape ({_some(reshaped)})" if reshaped else ""
        problems.append(
            f"{where}: does not fit architecture {architecture.reference!r}: {len(missing)} missing keys "
            f"({_some(missing)}), {len(unexpected)} unexpected keys ({_some(unexpected)}){shapes}; "
            "name the architecture it was made with"
        )
    elif reshaped:
        problems.append(
            f"{where}: {len(reshaped)} tensors have another shape than architecture {architecture.reference!r} "
            f"({_some(reshaped)})"
        )
    if not problems and (hidden := architecture.differences(checkpoint.publication.architecture or {})):
        problems.append(
            f"{where}: was made with other settings than architecture {architecture.reference!r} ({_some(hidden)}); "
            "name the architecture it was made with"
        )
    retyped = [
        f"{key} {state[key].dtype} instead of {expected[key].dtype}"
        for key in common
        if state[key].dtype != expected[key].dtype
    ]
    if retyped:
        problems.append(f"{where}: {len(retyped)} tensors have another dtype ({_some(retyped)})")
    broken = [key for key in common if state[key].is_floating_point() and not torch.isfinite(state[key]).all()]
    if broken:
        problems.append(
            f"{where}: {len(broken)} tensors hold NaN or infinite values ({_some(broken)}); the file is damaged"
        )
    theirs, ours = checkpoint.publication.quick_gelu, architecture.quick_gelu
    if theirs is not None and ours is not None and theirs != ours:
        problems.append(
            f"{where}: was trained with {_activation(quick=theirs)}, but architecture "
            f"{architecture.reference!r} uses {_activation(quick=ours)}; "
            "name the architecture with the matching activation (open_clip: a name that ends in -quickgelu)"
        )
    return problems


def _locate(reference: str, architecture: AnyArchitecture) -> Path:
    """Path of the weights, fetched first where they are published elsewhere."""
    if is_file_reference(reference):
        return Path(reference)
    on_hub = reference.startswith(HUB_PREFIX)
    repository = reference.removeprefix(HUB_PREFIX)
    tag = {} if on_hub else tag_configuration(reference, architecture)
    try:
        return fetch_hub_weights(repository) if on_hub else fetch_tag_weights(tag)
    except Exception as error:  # the hub client raises many kinds; all mean that it cannot be had
        where = (hub_weights(repository) if on_hub else tag_weights(tag)).where
        raise CheckpointError(
            f"{reference}: weights of {architecture.reference!r} cannot be fetched from {where} ({one_line(error)}); "
            "check the network, or fetch them elsewhere and name the file"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = one_line(error)
        msg = f"{path}: is not a whole safetensors file ({reason}); copy it again, or make it again"
        raise CheckpointError(msg) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # a remark on the pickle protocol, before the refusal below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make torch's unpickler raise many kinds
        reason = one_line(error, 160)
        msg = f"{path}: cannot be read as plain weights ({reason}); save it as safetensors or as a torch state dict"
        raise CheckpointError(msg) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no state dict (names to tensors); save the model's state_dict()")
    return state


def _in_layout_of(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if isinstance(model, LinearClassifier):
        return model.from_published_layout(state)
    expected = model.state_dict().keys()
    if any(key.startswith("text.") for key in expected):
        state = convert_to_custom_text_state_dict(state)
    return {key: value for key, value in state.items() if key in expected or key not in NOT_WEIGHTS}


def _activation(*, quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none"
