"""Classification heads of the sources: prompts to class embeddings, or the linear layer of a classifier.

A merged model has a merged head, so the head depends on the weights of the merge. :class:`TextTower` gives it by one
text forward, :class:`LinearHeads` by interpolation; both are a :class:`HeadSource`.

Shapes: C classes, T templates, D feature width, K sources.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.coefficients.evidence import GENERALIST
from pipeline.errors import ManifestError
from pipeline.merging.distances import IMAGE_SIDE
from pipeline.merging.segment import SUM_TOLERANCE, Segment
from pipeline.models.micro_batches import all_at_once
from pipeline.models.sources import SourceModels


@dataclass(frozen=True, slots=True)
class ClassHead:
    """What turns image features into logits; all float32.

    With ``cosine``, CLIP's: unit class embeddings [C, D], the factor on cosine similarities, and the bias [C] added to
    them. Without, a linear layer: its weight [C, D] and bias [C], and a factor of 1.
    """

    embeddings_CD: Tensor
    logit_scale: float
    logit_bias: Tensor
    cosine: bool = True

    def logits(self, features_ND: Tensor) -> Tensor:
        """Logits [N, C], float32, of image features [N, D] as the image tower gives them, in its precision."""
        features_ND = _unit(features_ND.float()) if self.cosine else features_ND.float()
        device = features_ND.device
        return self.logit_scale * (features_ND @ self.embeddings_CD.to(device).T) + self.logit_bias.to(device)


def logits_by_own_heads(features_ND: Tensor, heads: Sequence[ClassHead], upload: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits [N, C], float32, of N images, each by its own head, in one product; equal to head by head to rounding.

    ``upload`` brings what the heads hold to the features' device; all heads are of one kind.
    """
    features_ND = _unit(features_ND.float()) if heads[0].cosine else features_ND.float()
    embeddings_NCD = _stacked([head.embeddings_CD for head in heads], upload)
    scales_N1 = upload(torch.tensor([head.logit_scale for head in heads], dtype=torch.float32)[:, None])
    biases_NC = _stacked([head.logit_bias for head in heads], upload)
    return scales_N1 * (embeddings_NCD @ features_ND[:, :, None]).squeeze(2) + biases_NC


def _unit(features_ND: Tensor) -> Tensor:
    """Features of length one. In float32: a length rounded to bfloat16 would scale all cosines of an image."""
    return functional.normalize(features_ND, dim=-1)


def _stacked(tensors: Sequence[Tensor], upload: Callable[[Tensor], Tensor]) -> Tensor:
    """One upload where all tensors lie together; heads of a text tower lie on its device, those of a curve do not."""
    if len({tensor.device for tensor in tensors}) == 1:
        return upload(torch.stack([*tensors]))
    return torch.stack([upload(tensor) for tensor in tensors])


def blend_heads(heads: Sequence[ClassHead], weights: Sequence[float]) -> ClassHead:
    """Head of K-source merging where heads are a component of their own: Σ w_k·embedding_k, computed in float64.

    Class embeddings are scaled to unit length again, factors are averaged by their logarithms and biases as they are.
    All weight on one head gives exactly that head. ``weights`` [K] are not negative and sum to 1, else ValueError.
    """
    wanted = [float(weight) for weight in weights]
    if len(wanted) != len(heads) or not all(w >= 0 for w in wanted) or abs(sum(wanted) - 1) > SUM_TOLERANCE:
        msg = f"'weights' must be {len(heads)} numbers >= 0 that sum to 1, got {wanted}"
        raise ValueError(msg)
    used = [(head, weight) for head, weight in zip(heads, wanted, strict=True) if weight > 0]
    first = used[0][0]
    if len(used) == 1:
        return first
    assert all(head.cosine == first.cosine for head in heads), "heads of one architecture"
    embeddings_CD = torch.stack([weight * head.embeddings_CD.double() for head, weight in used]).sum(dim=0)
    if first.cosine:
        embeddings_CD = functional.normalize(embeddings_CD, dim=-1)
    return ClassHead(
        embeddings_CD=embeddings_CD.float(),
        logit_scale=math.exp(math.fsum(weight * math.log(head.logit_scale) for head, weight in used)),
        logit_bias=torch.stack([weight * head.logit_bias.double() for head, weight in used]).sum(dim=0).float(),
        cosine=first.cosine,
    )


class HeadSource(Protocol):
    """Heads of θ(w), w over K sources, for one set of classes; counts what they cost in text forwards."""

    cosine: ClassVar[bool]
    forward_calls: int
    forward_prompts: int

    def head(self, weights: Sequence[float]) -> ClassHead:
        """Head of θ(w); ``weights`` [K] in the order of the sources, not negative, summing to 1."""
        ...

    def bytes_held(self) -> int:
        """Bytes of the weights that it holds."""
        ...


def encode_classes(model: nn.Module, tokens: Tensor, classes: int) -> Tensor:
    """Class embeddings [C, D]: each prompt's unit embedding, averaged over templates, scaled to unit length.

    ``tokens`` is [C·T, context], the T prompts of a class together (CLIP's prompt ensembling).
    """
    prompts_D = cast("Tensor", model.encode_text(tokens, normalize=True))  # type: ignore[operator]
    mean_CD = prompts_D.view(classes, -1, prompts_D.shape[-1]).mean(dim=1)
    return functional.normalize(mean_CD, dim=-1)


def fill_templates(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts, the templates of a class together; ``{}`` stands for the class name."""
    return [template.replace("{}", name) for name in class_names for template in templates]


class TextTower:
    """The text side of all sources, exactly, for C classes of T prompts each: ``tokens`` [C·T, context].

    With ``merged=False`` the generalist's text tower and logit_scale serve all weights; :class:`ManifestError` when no
    source is named so. Computed in float32.
    """

    cosine: ClassVar[bool] = True

    def __init__(
        self, models: SourceModels, tokens: Tensor, classes: int, *, merged: bool, device: torch.device
    ) -> None:
        if not merged and GENERALIST not in models.names:
            raise ManifestError(
                f"prompts.text_tower is generalist, but no source is named so ({', '.join(models.names)}); "
                "set it to merged, or name one of them generalist"
            )
        module = deepcopy(models.model)
        module.visual = nn.Identity()
        states = [_without_image_tower(models.states[name]) for name in (models.names if merged else (GENERALIST,))]
        self._segment = Segment(module.to(device), states)
        self._merged = merged
        self._tokens, self._classes, self._device = tokens.to(device), classes, device
        self.forward_calls = 0
        self.forward_prompts = 0

    @torch.inference_mode()
    def head(self, weights: Sequence[float]) -> ClassHead:
        """Head of θ(w): one text forward."""
        model = self._segment.at(weights if self._merged else (1.0,))
        self.forward_calls += 1
        self.forward_prompts += len(self._tokens)
        bias = getattr(model, "logit_bias", None)
        with all_at_once("text tower", f"encode {len(self._tokens):,} prompts at once", self._device):
            embeddings_CD = encode_classes(model, self._tokens, self._classes)
        return ClassHead(
            embeddings_CD=embeddings_CD,
            logit_scale=float(cast("Tensor", model.logit_scale).exp()),
            logit_bias=torch.full((self._classes,), 0.0 if bias is None else float(bias), device=self._device),
        )

    def bytes_held(self) -> int:
        """Bytes of the text towers, the merged one among them."""
        return self._segment.bytes_held() + self._segment.bytes_shared()


class LinearHeads:
    """The linear heads of all sources of a classifier: θ(w)'s head by interpolation, without any forward."""

    cosine: ClassVar[bool] = False

    def __init__(self, models: SourceModels) -> None:
        self._heads = [_linear_head(state) for state in models.states.values()]
        self.forward_calls = 0
        self.forward_prompts = 0

    def head(self, weights: Sequence[float]) -> ClassHead:
        """Head of θ(w), on the CPU."""
        return blend_heads(self._heads, weights)

    def bytes_held(self) -> int:
        """Bytes of all sources' heads."""
        return sum(head.embeddings_CD.nbytes + head.logit_bias.nbytes for head in self._heads)


def _linear_head(state: Mapping[str, Tensor]) -> ClassHead:
    weight_CD = state["head.weight"]
    return ClassHead(weight_CD, 1.0, state.get("head.bias", torch.zeros(len(weight_CD))), cosine=False)


def _without_image_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(IMAGE_SIDE)}
