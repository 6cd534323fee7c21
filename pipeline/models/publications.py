"""What a checkpoint's publisher says about it: activation, preprocessing, architecture; read without the weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
from safetensors import SafetensorError, safe_open

from pipeline.errors import CheckpointError, one_line
from pipeline.models.architectures import AnyArchitecture
from pipeline.models.classifiers import ClassifierArchitecture
from pipeline.models.published import fetch_configuration
from pipeline.references import HUB_PREFIX, is_file_reference

CARD_KEY = "pipeline.card"
PREPROCESSING_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True, slots=True)
class Publication:
    """What is stated; None or empty where nothing is. ``preprocessing`` has open_clip's keys.

    ``class_names`` are those of a linear head, in the order of its outputs.
    """

    quick_gelu: bool | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] | None = None


def read_publication(reference: str, architecture: AnyArchitecture) -> Publication:
    """What is stated for a tag by open_clip, for a hub id by its configuration, for a local safetensors by its card.

    Other local files state nothing. Raises :class:`CheckpointError` for an unknown tag, an unreachable hub, and a
    classifier's weights that are not a local file.
    """
    if isinstance(architecture, ClassifierArchitecture) and not is_file_reference(reference):
        raise CheckpointError(
            f"{reference}: is no local file, and weights of an image classifier ({architecture.reference!r}) are not "
            "fetched; download them first and give the file"
        )
    if reference.startswith(HUB_PREFIX):
        published = _hub_configuration(reference)
        return _from_parts(published.get("model_cfg"), published.get("preprocess_cfg"))
    if is_file_reference(reference):
        card = read_card(Path(reference))
        publication = _from_parts(card.get("architecture"), card.get("preprocessing"))
        if isinstance(architecture, ClassifierArchitecture) and (names := _head_classes(card)):
            return replace(publication, class_names=names)
        return publication
    tag = tag_configuration(reference, architecture)
    preprocessing = {key: tag[key] for key in PREPROCESSING_KEYS if key in tag}
    return Publication(quick_gelu=bool(tag.get("quick_gelu", False)), preprocessing=preprocessing)


def read_card(path: Path) -> dict[str, Any]:
    """Card in the header of a safetensors file; empty where there is none, or no such file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            card: dict[str, Any] = json.loads((file.metadata() or {}).get(CARD_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({one_line(error)})") from error
    return card


def tag_configuration(tag: str, architecture: AnyArchitecture) -> dict[str, Any]:
    """open_clip's entry for a tag of an architecture; :class:`CheckpointError` naming the known tags."""
    assert not isinstance(architecture, ClassifierArchitecture), "only open_clip has tags"
    published: dict[str, Any] = open_clip.get_pretrained_cfg(architecture.name, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(architecture.name)
        known = f"known tags: {', '.join(tags)}" if tags else "it has no published weights"
        msg = f"{tag}: is neither a local file nor an open_clip tag of {architecture.reference!r} ({known})"
        raise CheckpointError(msg)
    return published


def stated_preprocessing(publications: Sequence[Publication]) -> dict[str, Any]:
    """What several checkpoints state about preprocessing, the first one's word counting most."""
    stated: dict[str, Any] = {}
    for publication in reversed(publications):
        stated |= publication.preprocessing
    return stated


def _from_parts(architecture: Mapping[str, Any] | None, preprocessing: Mapping[str, Any] | None) -> Publication:
    quick_gelu = None
    if architecture is not None and "vision_cfg" in architecture:  # a classifier's configuration has no such question
        quick_gelu = bool(architecture.get("quick_gelu", False))
    return Publication(quick_gelu, dict(preprocessing or {}), architecture)


def _head_classes(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Classes that a linear head was trained on: all its training sets have the same; none where no card tells."""
    sets = card.get("training", {}).get("sets", [])
    return tuple(sets[0]["class_names"]) if sets else tuple(card.get("class_names", ()))


def _hub_configuration(reference: str) -> dict[str, Any]:
    try:
        path = fetch_configuration(reference.removeprefix(HUB_PREFIX))
        published: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # the hub client raises many kinds; all mean that it cannot be had
        msg = f"{reference}: cannot be fetched ({one_line(error)}); check the id and the network"
        raise CheckpointError(msg) from error
    return published
