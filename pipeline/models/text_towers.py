"""Text towers from Hugging Face, as BiomedCLIP has one: their configuration, and what they need to be built.

open_clip's configuration only names such a tower; its shape is in the named folder's or hub repository's
``config.json``. That is read here, so that it takes part in fingerprints and checks. Its weights are never fetched: a
checkpoint of the whole model gives them.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, one_line
from pipeline.models.published import HUB, cached

# Where open_clip looks a tower and its tokenizer up: hub repositories, or folders.
MODEL, TOKENIZER = "hf_model_name", "hf_tokenizer_name"
# Key of our own, beside open_clip's: what ``config.json`` says.
SHAPE = "hf_config"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
# Entries of ``config.json`` that say who wrote it, not what it describes.
ORIGINS = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})
EXTRA = "in the checkout: pip install -c constraints.txt '.[biomedclip]'"


def tower_name(config: Mapping[str, Any]) -> str | None:
    """Name of the Hugging Face text tower of an open_clip configuration; None where open_clip's own serves."""
    name = config.get("text_cfg", {}).get(MODEL)
    return str(name) if name else None


def with_local_folders(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What open_clip builds from: names that are folders inside ``folder``, beside the configuration, as paths."""
    text = {key: value for key, value in config["text_cfg"].items() if key != SHAPE}
    for key in (MODEL, TOKENIZER):
        if text.get(key) and (folder / text[key]).is_dir():
            text[key] = str((folder / text[key]).resolve())
    return {**config, "text_cfg": text}


def with_shape(config: Mapping[str, Any], buildable: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``config`` and in it the shape of its Hugging Face text tower, read from where ``buildable`` names it.

    Raises :class:`CheckpointError`, beginning with ``where``, when transformers is not installed and when the tower's
    configuration cannot be had.
    """
    name = tower_name(buildable)
    if name is None:
        return dict(config)
    require_transformers(where, name)
    from transformers import PretrainedConfig

    try:
        shape, _ = PretrainedConfig.get_config_dict(name)
    except Exception as error:  # the hub client raises many kinds; all mean that it cannot be had
        raise CheckpointError(
            f"{where}: the configuration of its text tower {name!r} cannot be had ({one_line(error)}); check the name "
            f"and the network, or name a folder that holds its config.json in text_cfg.{MODEL}"
        ) from error
    kept = {key: value for key, value in shape.items() if key not in ORIGINS}
    return {**config, "text_cfg": {**config["text_cfg"], SHAPE: kept}}


def require_transformers(where: str, name: str) -> None:
    """Raise :class:`CheckpointError`, beginning with ``where``, unless the package that makes these towers is there."""
    if importlib.util.find_spec("transformers") is None:
        raise CheckpointError(f"{where}: its text tower {name!r} is Hugging Face's and needs transformers; {EXTRA}")


def absent_text_files(buildable: Mapping[str, Any]) -> list[str]:
    """Hub repositories that a text tower still needs files of, in words; the network is not asked."""
    text = buildable.get("text_cfg", {})
    wanted = {MODEL: ("config.json",), TOKENIZER: TOKENIZER_FILES}
    named = [(text[key], files) for key, files in wanted.items() if text.get(key)]
    absent = [name for name, files in named if not Path(name).is_dir() and cached(name, *files) is None]
    return [f"text tower's files from {HUB} ({name})" for name in dict.fromkeys(absent)]
