"""Image classifiers with a linear head: any timm backbone, by name or by the JSON configuration that timm publishes.

The module is split where K-source merging needs it: ``visual``, the backbone up to the features that timm's last layer
receives, and ``head``, that layer. On disk the weights keep timm's own names. Nothing is downloaded.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from pipeline.errors import CheckpointError, PipelineError, one_line
from pipeline.merging.distances import IMAGE_SIDE
from pipeline.models.preprocessing import Preprocessing
from pipeline.store.fingerprints import digest_json

TIMM_PREFIX = "timm:"
# timm's words for fitting an image into a square, in open_clip's.
RESIZE_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}
# Arguments of timm.create_model that fetch weights instead of shaping the model: weights are the manifest's matter.
LOADING_ARGUMENTS = ("pretrained", "checkpoint_path")


class LinearClassifier(nn.Module):
    """A timm model cut before its last layer: logits [N, C] are ``head(visual(images))``.

    ``classifier`` is the path of that layer inside the timm model, such as ``fc`` or ``head.fc``.
    """

    def __init__(self, visual: nn.Module, head: nn.Linear, classifier: str) -> None:
        super().__init__()
        self.visual = visual
        self.head = head
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of normalised images [N, 3, H, W]."""
        return cast("Tensor", self.head(self.visual(images)))

    def from_published_layout(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """State dict under this module's names, of one under timm's; unknown names go to the backbone."""
        ours = {f"{self.classifier}.{key}": f"head.{key}" for key in self.head.state_dict()}
        return {ours.get(key, f"visual.{key}"): value for key, value in state.items()}

    def to_published_layout(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inverse of :meth:`from_published_layout`: what plain timm loads."""
        theirs = {f"head.{key}": f"{self.classifier}.{key}" for key in self.head.state_dict()}
        return {theirs.get(key, key.removeprefix(IMAGE_SIDE)): value for key, value in state.items()}


@dataclass(frozen=True)
class ClassifierArchitecture:
    """A timm model shape: the reference it came from and its configuration as timm publishes it.

    ``config`` has ``architecture``, ``num_classes``, ``model_args`` and ``pretrained_cfg``; ``key`` is the manifest key
    that errors name.
    """

    reference: str
    config: dict[str, Any]
    key: str = field(compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the configuration: equal for equal shapes, whatever the file is called."""
        return digest_json(self.config)

    @property
    def quick_gelu(self) -> None:
        """None: timm's name alone says which activation a backbone has."""
        return

    @property
    def classes(self) -> int:
        """Number of classes of the linear head."""
        return int(self.config["num_classes"])

    def build(self) -> LinearClassifier:
        """Module in float32 on the CPU, in evaluation mode, with random weights.

        Raises :class:`CheckpointError` for arguments that make no model, and for a model that does not end in one
        linear layer.
        """
        try:
            timm_model = timm.create_model(
                self.config["architecture"],
                pretrained=False,
                pretrained_cfg_overlay=dict(self.config["pretrained_cfg"]),
                num_classes=self.classes,
                **self.config["model_args"],
            ).eval()
        except Exception as error:  # timm and torch raise many kinds for arguments that make no model
            raise self._cannot("build it", error) from error
        model = self._cut(timm_model)
        height, width = self._input_size(model)
        try:
            with torch.inference_mode():
                logits = model(torch.zeros(1, 3, height, width))
        except Exception as error:  # a backbone refuses an input of the wrong size or channels in its own words
            raise self._cannot(f"run it on {height}x{width} RGB pixels", error) from error
        if logits.shape != (1, self.classes):
            raise self._refuse(f"gives logits of shape {list(logits.shape)} for one image")
        return model

    def preprocessing(self, model: nn.Module, stated: Mapping[str, Any] = MappingProxyType({})) -> Preprocessing:
        """Preprocessing of ``model``, one that :meth:`build` made, with what a checkpoint's publisher ``stated``.

        timm's evaluation resizes to size/crop_pct and cuts the middle out. The geometry of archives has no such
        margin: images are resized to the model's input directly, as open_clip does, so that nothing is cut off but
        what sticks out of the square.
        """
        theirs = _data_config(model)
        own = {
            "mean": theirs["mean"],
            "std": theirs["std"],
            "interpolation": theirs["interpolation"],
            "resize_mode": RESIZE_MODES.get(theirs["crop_mode"], theirs["crop_mode"]),
            "fill_color": 0,
        }
        try:
            return Preprocessing.from_open_clip(own | dict(stated) | {"size": self._input_size(model)})
        except PipelineError as error:
            raise CheckpointError(f"{self.key}: {self.reference!r}: {error}; change its pretrained_cfg") from error

    def differences(self, stated: Mapping[str, Any]) -> list[str]:
        """Settings that this and a ``stated`` configuration both name, and differently, as no shape may show."""
        pairs = [("architecture", stated.get("architecture"), self.config["architecture"])]
        theirs, ours = stated.get("model_args") or {}, self.config["model_args"]
        pairs += [(f"model_args.{key}", theirs[key], ours[key]) for key in sorted(theirs.keys() & ours.keys())]
        return [f"{name} {their!r} instead of {our!r}" for name, their, our in pairs if their not in (None, our)]

    def _cut(self, timm_model: nn.Module) -> LinearClassifier:
        """Take the last layer off and leave the features that it receives."""
        path = cast("Any", timm_model).pretrained_cfg.get("classifier")
        if isinstance(path, tuple | list):
            raise self._refuse(f"ends in {len(path)} layers ({', '.join(path)})")
        head = dict(timm_model.named_modules()).get(path) if path else None
        if not isinstance(head, nn.Linear):
            raise self._refuse(f"ends in {'no known layer' if head is None else type(head).__name__}")
        timm_model.set_submodule(path, nn.Identity())
        return LinearClassifier(timm_model, head, path)

    def _input_size(self, model: nn.Module) -> tuple[int, int]:
        size = self.config["model_args"].get("img_size") or _data_config(model)["input_size"][1:]
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    def _cannot(self, what: str, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.key}: {self.reference!r}: timm cannot {what} ({one_line(error)}); check its keys"
        )

    def _refuse(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.key}: {self.reference!r} {what}; a classifier must end in one linear layer: choose another backbone"
        )


def classifier_architecture(
    reference: str, published: Mapping[str, Any], classes: int | None, key: str
) -> ClassifierArchitecture:
    """Architecture of a configuration in the layout of timm's ``config.json`` on the Hugging Face hub.

    ``classes`` serves where the configuration states no ``num_classes``. Raises :class:`CheckpointError` for an
    unknown architecture (with the nearest known names) and for a class count that is absent or contradicted.
    """
    where = f"{key}: {reference!r}"
    name = str(published["architecture"])
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise CheckpointError(f"{where}: timm has no architecture {name!r}{hint}")
    sections = {section: published.get(section) or {} for section in ("model_args", "pretrained_cfg")}
    for section, value in sections.items():
        if not isinstance(value, dict):
            raise CheckpointError(f"{where}: {section} must be an object, got {value!r}")
    if loading := [argument for argument in LOADING_ARGUMENTS if argument in sections["model_args"]]:
        raise CheckpointError(f"{where}: model_args.{loading[0]} fetches weights; name them as a checkpoint instead")
    counts = [count for count in (published.get("num_classes"), classes) if count is not None]
    if not counts:
        beside = key.removesuffix("architecture") + "classes"
        raise CheckpointError(
            f"{where}: how many classes it has is not said; set {beside}, or num_classes in a JSON configuration"
        )
    if not all(type(count) is int and count >= 2 for count in counts):
        raise CheckpointError(f"{where}: num_classes must be an integer >= 2, got {counts[0]!r}")
    if len(set(counts)) > 1:
        raise CheckpointError(f"{where}: has {counts[0]} classes (num_classes), not {counts[1]} as is asked")
    return ClassifierArchitecture(reference, {"architecture": name, "num_classes": counts[0], **sections}, key)


def _data_config(model: nn.Module) -> dict[str, Any]:
    """What timm says about the images that a model takes."""
    resolve = cast("Callable[[object], dict[str, Any]]", resolve_model_data_config)
    return resolve(model.visual)
