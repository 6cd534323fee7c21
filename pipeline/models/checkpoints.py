"""Checkpoints: found, read as data (never unpickled), and brought into the key layout of their architecture."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained_from_hf
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.errors import CheckpointError, one_line
from pipeline.models.architectures import HUB_PREFIX, Architecture

CARD_KEY = "pipeline.card"
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Entries that published checkpoints carry and that are no weights: OpenAI's archive fields, and the position index
# that older Hugging Face text towers stored as a buffer.
NOT_WEIGHTS = frozenset(
    {"input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids"}
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights in the architecture's key layout, and what their publisher says about them, where it is known."""

    reference: str
    state: dict[str, Tensor]
    quick_gelu: bool | None
    preprocessing: dict[str, Any]
    architecture: dict[str, Any] | None

    def digest(self) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of all tensors, in order of names: 64 hex digits."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
        return sha.hexdigest()


def is_file_reference(reference: str) -> bool:
    """Whether a checkpoint reference names a local file rather than an open_clip tag or a hub id."""
    return not reference.startswith(HUB_PREFIX) and ("/" in reference or reference.endswith(FILE_SUFFIXES))


def load_checkpoint(reference: str, architecture: Architecture, model: nn.Module) -> Checkpoint:
    """Read weights by open_clip tag, ``hf-hub:`` id or local file, in the key layout of ``model``.

    Recognised layouts: open_clip, OpenAI, ``module.``-prefixed, and each of these inside ``state_dict``. Nothing is
    dropped or renamed beyond that; whether the keys fit is :func:`checkpoint_problems`'s answer. Raises
    :class:`CheckpointError` when the file is absent, torn or holds anything but tensors.
    """
    if reference.startswith(HUB_PREFIX):
        path, published = _fetch_from_hub(reference)
    elif is_file_reference(reference):
        path, published = Path(reference), {}
    else:
        path, published = _fetch_tag(reference, architecture)
    state, card = read_state(path)
    stated = published.get("model_cfg") or card.get("architecture")
    quick_gelu = published.get("quick_gelu")
    if quick_gelu is None and stated is not None:
        quick_gelu = bool(stated.get("quick_gelu", False))
    return Checkpoint(
        reference=reference,
        state=_in_layout_of(model, state),
        quick_gelu=quick_gelu,
        preprocessing=published.get("preprocess_cfg") or card.get("preprocessing") or {},
        architecture=stated,
    )


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a safetensors or torch file, in float32 where they are floating-point, and the card if it has one."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give a file, an open_clip tag or an hf-hub: id")
    if path.suffix == ".safetensors":
        state, card = _read_safetensors(path)
    else:
        state, card = _read_torch(path), {}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, card


def checkpoint_problems(name: str, checkpoint: Checkpoint, architecture: Architecture, model: nn.Module) -> list[str]:
    """What keeps ``checkpoint`` from being this architecture's weights, one line per kind of problem."""
    expected: Mapping[str, Tensor] = model.state_dict()
    state = checkpoint.state
    where = f"{name}: {checkpoint.reference}"
    problems = []
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        problems.append(
            f"{where}: does not fit architecture {architecture.reference!r}: "
            f"{len(missing)} missing keys ({_some(missing)}), {len(unexpected)} unexpected keys ({_some(unexpected)}); "
            "name the architecture it was made with"
        )
    common = sorted(expected.keys() & state.keys())
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in common
        if state[key].shape != expected[key].shape
    ]
    if reshaped:
        problems.append(
            f"{where}: {len(reshaped)} tensors have another shape than architecture {architecture.reference!r} "
            f"({_some(reshaped)})"
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
    if checkpoint.quick_gelu is not None and checkpoint.quick_gelu != architecture.quick_gelu:
        problems.append(
            f"{where}: was trained with {_activation(quick=checkpoint.quick_gelu)}, but architecture "
            f"{architecture.reference!r} uses {_activation(quick=architecture.quick_gelu)}; "
            "name the architecture with the matching activation (open_clip: a name that ends in -quickgelu)"
        )
    return problems


def _fetch_from_hub(reference: str) -> tuple[Path, dict[str, Any]]:
    repository = reference.removeprefix(HUB_PREFIX)
    try:
        config = Path(download_pretrained_from_hf(repository, filename="open_clip_config.json"))
        weights = Path(download_pretrained_from_hf(repository))
        published: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except Exception as error:
        raise CheckpointError(
            f"{reference}: cannot be fetched ({one_line(error)}); check the id and the network"
        ) from error
    return weights, published


def _fetch_tag(tag: str, architecture: Architecture) -> tuple[Path, dict[str, Any]]:
    published = open_clip.get_pretrained_cfg(architecture.name, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(architecture.name)
        known = f"known tags: {', '.join(tags)}" if tags else "it has no published weights"
        msg = f"{tag}: is neither a local file nor an open_clip tag of {architecture.reference!r} ({known})"
        raise CheckpointError(msg)
    try:
        path = Path(open_clip.download_pretrained(published))
    except Exception as error:
        msg = f"{tag}: weights of {architecture.reference!r} cannot be fetched ({one_line(error)}); check the network"
        raise CheckpointError(msg) from error
    preprocessing = {key: published[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in published}
    return path, {"quick_gelu": bool(published.get("quick_gelu", False)), "preprocess_cfg": preprocessing}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(metadata.get(CARD_KEY, "{}"))  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({one_line(error)})") from error


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
    expected = model.state_dict().keys()
    if any(key.startswith("text.") for key in expected):
        state = convert_to_custom_text_state_dict(state)
    return {key: value for key, value in state.items() if key in expected or key not in NOT_WEIGHTS}


def _activation(*, quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none"
