"""Architectures: the name or JSON configuration of a model, and a module built from it.

open_clip describes model shapes as JSON data. A configuration of one's own is registered with open_clip under its file
name and digest, so two files of the same name never shadow each other or a built-in one. Image classifiers are timm's
and have their own module; :func:`load_architecture` tells the two apart.
"""

import difflib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import open_clip
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ManifestError, one_line
from pipeline.models.classifiers import TIMM_PREFIX, ClassifierArchitecture, classifier_architecture
from pipeline.models.preprocessing import Preprocessing
from pipeline.models.published import CONFIGURATION, HUB, cached, fetch_configuration
from pipeline.models.text_towers import absent_text_files, with_local_folders, with_shape
from pipeline.references import HUB_PREFIX
from pipeline.store.fingerprints import digest_json

PAIR_KEY = "pair.architecture"
# Settings of a tower that say where its first weights came from, not what it computes.
ORIGINS = frozenset({"hf_model_name", "hf_model_pretrained", "timm_model_pretrained"})


@dataclass(frozen=True)
class Architecture:
    """An open_clip model shape: the reference it came from, the name it is registered under and its configuration.

    ``config`` is as published, and with a Hugging Face text tower has its ``config.json`` as ``text_cfg.hf_config``.
    ``key`` is the manifest key that errors name.
    """

    reference: str
    name: str
    config: dict[str, Any]
    preprocessing_overrides: dict[str, Any]
    key: str = field(compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the configuration: equal for equal shapes, whatever the file is called."""
        return digest_json(self.config)

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use OpenAI's QuickGELU instead of GELU; the weights do not tell."""
        return bool(self.config.get("quick_gelu", False))

    def build(self) -> nn.Module:
        """Module in float32 on the CPU, in evaluation mode, with random weights."""
        with _quiet_open_clip():
            try:
                model = open_clip.create_model(
                    self.name, load_weights=False, pretrained_image=False, pretrained_text=False, precision="fp32"
                )
            except Exception as error:  # open_clip, timm and torch raise many kinds for keys that make no model
                msg = f"{self.key}: open_clip cannot build {self.reference!r} ({one_line(error)}); check its keys"
                raise CheckpointError(msg) from error
        return cast("nn.Module", model.eval())

    def tokenizer(self) -> Callable[..., Tensor]:
        """open_clip's tokenizer for this architecture: texts to token ids [len(texts), context_length]."""
        with _quiet_open_clip():
            try:
                return cast("Callable[..., Tensor]", open_clip.get_tokenizer(self.name))
            except Exception as error:  # transformers raises many kinds for files that make no tokenizer
                msg = f"{self.key}: the tokenizer of {self.reference!r} cannot be loaded ({one_line(error)})"
                raise CheckpointError(f"{msg}; check text_cfg.hf_tokenizer_name and the network") from error

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids [len(prompts), context_length]; see :func:`tokenize_prompts`."""
        return tokenize_prompts(self.tokenizer(), prompts)

    def preprocessing(self, model: nn.Module, stated: Mapping[str, Any] = MappingProxyType({})) -> Preprocessing:
        """Preprocessing of ``model``, one that :meth:`build` made, with what a checkpoint's publisher ``stated``."""
        own = open_clip.get_model_preprocess_cfg(model)
        # The size is the tower's, whatever is stated: open_clip's own rule.
        return Preprocessing.from_open_clip(own | self.preprocessing_overrides | dict(stated) | {"size": own["size"]})

    def differences(self, stated: Mapping[str, Any]) -> list[str]:
        """Settings that this and a ``stated`` configuration both name, and differently, such as the width of a head."""
        return [
            f"{tower}.{key} {theirs[key]!r} instead of {ours[key]!r}"
            for tower in ("vision_cfg", "text_cfg")
            if (theirs := stated.get(tower, {})) and (ours := self.config.get(tower, {}))
            for key in sorted(theirs.keys() & ours.keys() - ORIGINS)
            if theirs[key] != ours[key]
        ]


AnyArchitecture = Architecture | ClassifierArchitecture


def tokenize_prompts(tokenizer: Callable[..., Tensor], prompts: list[str]) -> Tensor:
    """Token ids [len(prompts), context] of whole prompts.

    open_clip cuts what exceeds the context in silence; here that is a :class:`ManifestError` naming the prompt. So are
    different prompts that come out the same: transformers takes a tokenizer without its vocabulary for a whole one, to
    which every word is unknown.
    """
    tokens = tokenizer(prompts)
    context = tokens.shape[1]
    cut = (tokenizer(prompts, context_length=context + 1)[:, :context] != tokens).any(dim=1)
    if cut.any():
        prompt = prompts[int(cut.nonzero()[0])]
        raise ManifestError(
            f"prompts: {prompt!r} is longer than the model's {context} tokens and would be cut; shorten the template "
            "or the class name, or name an architecture with a longer text_cfg.context_length"
        )
    seen: dict[tuple[int, ...], str] = {}
    for prompt, row in zip(prompts, tokens.tolist(), strict=True):
        other = seen.setdefault(tuple(row), prompt)
        if other != prompt:
            raise ManifestError(
                f"prompts: {other!r} and {prompt!r} are the same tokens to this model; "
                "name the classes apart, and check that its tokenizer has its vocabulary"
            )
    return tokens


def load_architecture(reference: str, classes: int | None = None, *, key: str = PAIR_KEY) -> AnyArchitecture:
    """Architecture by open_clip name, ``hf-hub:`` id, ``timm:`` name or path of a JSON configuration of either kind.

    ``classes`` is the class count of an image classifier whose configuration does not state it; a CLIP model takes its
    classes from prompts, whatever the count. ``key`` is the manifest key that errors name.

    Raises :class:`CheckpointError` when it is unknown (with the nearest known names), unreadable or not a model
    configuration.
    """
    if reference.startswith(HUB_PREFIX):
        return _from_hub(reference, key)
    if reference.startswith(TIMM_PREFIX):
        return classifier_architecture(reference, {"architecture": reference.removeprefix(TIMM_PREFIX)}, classes, key)
    if reference.endswith(".json"):
        return _from_file(Path(reference), classes, key)
    name = reference.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        msg = f"{key}: {reference!r} is neither an open_clip architecture nor a .json file nor timm:NAME{hint}"
        raise CheckpointError(msg)
    return Architecture(reference, name, with_shape(config, config, f"{key}: {reference}"), {}, key)


def awaited_files(reference: str) -> list[str]:
    """What :func:`load_architecture` would fetch from the hub, in words; the network is not asked.

    Empty too for a reference that it would refuse: the refusal is its own.
    """
    if reference.startswith(HUB_PREFIX):
        repository = reference.removeprefix(HUB_PREFIX)
        path = cached(repository, CONFIGURATION)
        if path is None:
            return [f"architecture from {HUB} ({repository})"]
        return absent_text_files(json.loads(path.read_text(encoding="utf-8")).get("model_cfg", {}))
    if not reference.endswith(".json"):
        return absent_text_files(open_clip.get_model_config(reference.replace("/", "-")) or {})
    try:
        config = _as_published(json.loads(Path(reference).read_text(encoding="utf-8")))["model_cfg"]
        return absent_text_files(with_local_folders(config, Path(reference).parent))
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _from_file(path: Path, classes: int | None, key: str) -> AnyArchitecture:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{key}: {path}: cannot be read ({error.strerror}); name an existing JSON file"
        raise CheckpointError(msg) from error
    except ValueError as error:
        raise CheckpointError(f"{key}: {path}: is not JSON ({error})") from error
    if isinstance(config, dict) and "architecture" in config:
        return classifier_architecture(path.name, config, classes, key)
    return _from_published(path.name, path.stem, _as_published(config), f"{key}: {path}", key, path.parent)


def _as_published(content: Any) -> Mapping[str, Any]:
    """A configuration in the layout of the hub's ``open_clip_config.json``, which nests it."""
    return content if isinstance(content, dict) and "model_cfg" in content else {"model_cfg": content}


def _from_hub(reference: str, key: str) -> Architecture:
    repository = reference.removeprefix(HUB_PREFIX)
    try:
        published = json.loads(fetch_configuration(repository).read_text(encoding="utf-8"))
    except Exception as error:  # the hub client raises many kinds; all mean that it cannot be had
        raise CheckpointError(
            f"{key}: {reference}: its configuration cannot be fetched ({one_line(error)}); check the id and the network"
        ) from error
    return _from_published(reference, repository.replace("/", "-"), published, f"{key}: {reference}", key, None)


def _from_published(
    reference: str, stem: str, published: Mapping[str, Any], where: str, key: str, folder: Path | None
) -> Architecture:
    """Architecture of a file in the layout of the hub's ``open_clip_config.json``; ``folder`` is the one it lies in."""
    config: Any = published.get("model_cfg")
    absent = sorted({"embed_dim", "vision_cfg", "text_cfg"} - set(config if isinstance(config, dict) else ()))
    if absent:
        raise CheckpointError(
            f"{where}: lacks {', '.join(absent)}; it is no open_clip model configuration, nor timm's, "
            "which has 'architecture'"
        )
    buildable = config if folder is None else with_local_folders(config, folder)
    full = with_shape(config, buildable, where)
    return Architecture(reference, _register(stem, buildable), full, published.get("preprocess_cfg", {}), key)


def _register(stem: str, config: dict[str, Any]) -> str:
    name = f"{stem}-{digest_json(config)[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)
    return name


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """Silence open_clip's warning that a model built without weights has none: here that is the intention."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
