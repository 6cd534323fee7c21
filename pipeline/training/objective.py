"""What is minimised: cross-entropy over a classifier's logits, or over zero-shot logits of a CLIP model.

Zero-shot logits are against class embeddings that carry a gradient.

Legend: B images, H height, W width, C classes (colour channels in pixels), T templates, D embedding width.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import TrainingError
from pipeline.models.architectures import tokenize_prompts
from pipeline.models.class_embeddings import encode_classes, fill_templates
from pipeline.models.classifiers import LinearClassifier
from pipeline.training.batches import augment, normalise
from pipeline.training.settings import TrainingSet, TrainingSettings

VALIDATION_BATCH = 256
LOGIT_SCALE_MAX = math.log(100)

Tokenizer = Callable[..., Tensor]


class Objective:
    """Loss and accuracy of one model on one training set.

    A :class:`LinearClassifier` has no use for ``tokenizer`` and prompts; any other model is a CLIP model and needs it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None,
        training_set: TrainingSet,
        settings: TrainingSettings,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self._model, self._set, self._device = model, training_set, device
        if not isinstance(model, LinearClassifier):
            assert tokenizer is not None, "a CLIP model reads prompts"
            prompts = fill_templates(training_set.class_names, training_set.templates)
            self._tokens = tokenize_prompts(tokenizer, prompts).to(device)
        self._padding = _crop_padding(training_set, settings)
        self._horizontal_flip = settings.horizontal_flip
        self._mean, self._std = (torch.tensor(value, dtype=torch.float32, device=device) for value in (mean, std))

    def loss(self, rows: npt.NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Mean cross-entropy of the augmented training images at ``rows``."""
        pixels_BHWC = torch.from_numpy(np.array(self._set.images[rows])).to(self._device)
        labels_B = torch.from_numpy(np.array(self._set.labels[rows], dtype=np.int64)).to(self._device)
        pixels_BHWC = augment(
            pixels_BHWC, padding=self._padding, horizontal_flip=self._horizontal_flip, generator=generator
        )
        classify = self._classifier()
        return functional.cross_entropy(classify(normalise(pixels_BHWC, self._mean, self._std)), labels_B)

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Fraction of validation images classified correctly; the caller puts the model in evaluation mode."""
        classify = self._classifier()
        correct = 0
        for start in range(0, len(self._set.val_images), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
            pixels_BHWC = torch.from_numpy(np.array(self._set.val_images[rows])).to(self._device)
            logits_BC = classify(normalise(pixels_BHWC, self._mean, self._std))
            predictions_B = logits_BC.argmax(dim=1).cpu().numpy()
            correct += int((predictions_B == self._set.val_labels[rows]).sum())
        return correct / len(self._set.val_images)

    def _classifier(self) -> Callable[[Tensor], Tensor]:
        """Function from input [B, 3, H, W] to logits [B, C]; for a CLIP model with the class embeddings as of now."""
        if isinstance(self._model, LinearClassifier):
            return self._model
        return _zero_shot(self._model, encode_classes(self._model, self._tokens, len(self._set.class_names)))


def require_head_classes(model: nn.Module, sets: Sequence[TrainingSet]) -> None:
    """Raise :class:`TrainingError` unless a classifier's head fits the classes of all sets; a CLIP model fits any.

    Labels of all sets share the head's outputs, so that their classes must be the same, in one order.
    """
    if not isinstance(model, LinearClassifier):
        return
    for each in sets:
        if len(each.class_names) != model.head.out_features:
            raise TrainingError(
                f"{each.name}: has {len(each.class_names)} classes, but the classifier's head has "
                f"{model.head.out_features}; a linear head is trained on sets of exactly its classes"
            )
        if [*each.class_names] != [*sets[0].class_names]:
            raise TrainingError(
                f"{each.name}: its classes are {[*each.class_names]}, but those of {sets[0].name} are "
                f"{[*sets[0].class_names]}; a linear head needs one order of classes for all sets"
            )


@torch.no_grad()
def clamp_logit_scale(model: nn.Module) -> None:
    """Keep exp(logit_scale) at most 100, as CLIP's own training does; a classifier has none."""
    if not isinstance(model, LinearClassifier):
        _logit_scale(model).clamp_(max=LOGIT_SCALE_MAX)


def _zero_shot(model: nn.Module, embeddings_CD: Tensor) -> Callable[[Tensor], Tensor]:
    def classify(input_BCHW: Tensor) -> Tensor:
        features_BD = cast("Tensor", model.encode_image(input_BCHW, normalize=True))  # type: ignore[operator]
        return _logit_scale(model).exp() * features_BD @ embeddings_CD.T

    return classify


def _logit_scale(model: nn.Module) -> Tensor:
    return cast("Tensor", model.logit_scale)


def _crop_padding(training_set: TrainingSet, settings: TrainingSettings) -> int:
    side = min(training_set.images.shape[1:3])
    padding = side // 8 if settings.crop_padding is None else settings.crop_padding
    if padding >= side:
        raise TrainingError(
            f"training.crop_padding must be smaller than the {side}-pixel images of {training_set.name!r}, "
            f"got {padding}"
        )
    return padding
