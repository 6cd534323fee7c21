"""Files that are published elsewhere: where they are, whether this machine has them, and fetching them.

A file that the hub's cache on this machine holds is used without asking the network, so that a run neither waits for
an absent network nor changes with the hub.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_hf

CONFIGURATION = "open_clip_config.json"
HUB = "the Hugging Face hub"


@dataclass(frozen=True, slots=True)
class Published:
    """Published weights: ``where`` they come from in words, ``path`` on this machine or None if not there."""

    where: str
    path: Path | None


def fetch_configuration(repository: str) -> Path:
    """open_clip's configuration of a hub repository, fetched unless it is there; any error is the hub client's."""
    return cached(repository, CONFIGURATION) or Path(download_pretrained_from_hf(repository, filename=CONFIGURATION))


def cached(repository: str, *names: str) -> Path | None:
    """The first of a hub repository's files ``names`` that this machine has; the network is not asked."""
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def hub_weights(repository: str) -> Published:
    """open_clip weights of a hub repository."""
    return Published(f"{HUB} ({repository})", cached(repository, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))


def tag_weights(configuration: Mapping[str, Any]) -> Published:
    """Weights of an open_clip tag, by open_clip's own entry for it, which prefers the hub to an address."""
    repository, name = os.path.split(configuration.get("hf_hub", ""))
    if not repository:
        kept = Path("~/.cache/clip").expanduser() / Path(configuration.get("url", "")).name
        return Published(configuration.get("url", ""), kept if kept.is_file() else None)
    if not name:
        return hub_weights(repository)
    safe = f"{Path(name).stem}.safetensors"
    return Published(f"{HUB} ({repository})", cached(repository, safe, name))


def fetch_hub_weights(repository: str) -> Path:
    """Weights of a hub repository, fetched unless they are there; any error is the hub client's."""
    return hub_weights(repository).path or Path(download_pretrained_from_hf(repository))


def fetch_tag_weights(configuration: Mapping[str, Any]) -> Path:
    """Weights of an open_clip tag, fetched unless they are there; any error is the client's.

    Of a file that came from an address open_clip checks the digest each time, as a fetch may have been cut short.
    """
    kept = tag_weights(configuration).path if configuration.get("hf_hub") else None
    return kept or Path(open_clip.download_pretrained(dict(configuration)))
