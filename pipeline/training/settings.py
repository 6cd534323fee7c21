"""What a training is asked to do: settings, and labelled images with their class names. Needs no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import TrainingError


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train; the defaults are the T³ paper's recipe for experts (arXiv 2510.27265), the rest is ours.

    ``crop_padding`` is in pixels on each side (None: an eighth of the image side). ``patience`` is the number of
    epochs without a better mean validation accuracy after which training stops. ``threads`` None takes torch's own
    choice. Weight decay spares gains, biases and the logit scale, as open_clip's own training does.
    """

    epochs: int = 50
    learning_rate: float = 1e-5
    batch_size: int = 32
    weight_decay: float = 0.1
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    patience: int = 5
    crop_padding: int | None = None
    horizontal_flip: bool = True
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "warmup_steps": 0, "patience": 1, "weight_decay": 0, "seed": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise TrainingError(f"training.{name} must be >= {minimum}, got {getattr(self, name)}")
        for name in ("crop_padding", "threads"):
            minimum = 0 if name == "crop_padding" else 1
            if getattr(self, name) is not None and getattr(self, name) < minimum:
                raise TrainingError(f"training.{name} must be >= {minimum} or null, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise TrainingError(f"training.learning_rate must be > 0, got {self.learning_rate}")
        if self.schedule not in {"constant", "cosine"}:
            raise TrainingError(f"training.schedule must be 'constant' or 'cosine', got {self.schedule!r}")

    def as_inputs(self) -> dict[str, str]:
        """The settings as named fingerprint inputs; ``threads`` is left out, the numeric kind holds the real count."""
        return {f"settings.{name}": str(value) for name, value in asdict(self).items() if name != "threads"}


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """Labelled images of one data set with the class names that form its softmax.

    ``images`` and ``val_images`` are uint8 [N, H, W, 3], arrays or memory maps; labels are int64 [N] in [0, classes);
    ``templates`` are prompts with one ``{}`` for the class name; ``digest`` identifies all images and labels.
    """

    name: str
    class_names: Sequence[str]
    templates: Sequence[str]
    images: npt.NDArray[np.uint8] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    val_images: npt.NDArray[np.uint8] = field(repr=False)
    val_labels: npt.NDArray[np.int64] = field(repr=False)
    digest: str

    def __post_init__(self) -> None:
        if not self.class_names or not self.templates:
            raise TrainingError(f"{self.name}: class_names and templates must not be empty")
        if unfilled := [template for template in self.templates if "{}" not in template]:
            raise TrainingError(f"{self.name}: template {unfilled[0]!r} must contain {{}} where the class name goes")
        self._check_split("training", self.images, self.labels)
        self._check_split("validation", self.val_images, self.val_labels)

    def _check_split(self, split: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise TrainingError(
                f"{self.name}: {split} images must be uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}"
            )
        if len(images) == 0 or labels.shape != (len(images),):
            raise TrainingError(
                f"{self.name}: {split} needs one label per image and at least one image, "
                f"got {len(images)} images and labels of shape {list(labels.shape)}"
            )
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise TrainingError(
                f"{self.name}: {split} labels must lie in [0, {len(self.class_names)}), "
                f"got {labels.min()} to {labels.max()}; leave unlabelled images out"
            )

    def as_inputs(self) -> dict[str, str]:
        """The set as named fingerprint inputs."""
        return {
            f"sets.{self.name}.digest": self.digest,
            f"sets.{self.name}.class_names": str([*self.class_names]),
            f"sets.{self.name}.templates": str([*self.templates]),
        }

    def describe(self) -> dict[str, Any]:
        """The set as it appears on the card of what was trained on it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "class_names": [*self.class_names],
            "templates": [*self.templates],
            "images": len(self.images),
            "val_images": len(self.val_images),
        }
