"""Class embeddings: prompts to a classification head, and that head as a smooth curve in λ.

A merged model has a merged text tower, so its head depends on λ. Evaluating the text tower for every batch would cost
B prompt-set forwards; instead the head is evaluated once at K Chebyshev-Lobatto nodes of [0, 1] (both ends included)
and interpolated for any other λ. The error is measured at held-out λ; where it exceeds the tolerance, more nodes are
used, and finally the text tower itself.

Shapes: C classes, T templates, D embedding width, K nodes.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.merging.segment import Segment
from pipeline.models.pair import Pair

NODE_COUNTS = (9, 17, 33)


@dataclass(frozen=True, slots=True)
class ClassHead:
    """Unit class embeddings [C, D], the factor on cosine similarities and the bias added to them."""

    embeddings_CD: Tensor
    logit_scale: float
    logit_bias: float

    def logits(self, features_ND: Tensor) -> Tensor:
        """Logits [N, C], float32, of unit image features [N, D]."""
        return self.logit_scale * (features_ND.float() @ self.embeddings_CD.to(features_ND.device).T) + self.logit_bias


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
    """The text side of both ends: heads at any λ, exactly, for one set of classes.

    With ``merged=False`` the generalist's text tower and logit_scale serve every λ. Computed in float32.
    """

    def __init__(self, pair: Pair, *, merged: bool, device: torch.device) -> None:
        module = deepcopy(pair.model)
        module.visual = nn.Identity()
        generalist, expert = _without_image_tower(pair.generalist), _without_image_tower(pair.expert)
        self._segment = Segment(module.to(device), generalist, expert if merged else generalist)
        self._device = device
        self.forward_calls = 0
        self.forward_prompts = 0

    @torch.inference_mode()
    def head(self, lam: float, tokens: Tensor, classes: int) -> ClassHead:
        """Head of θ(λ) for prompts [C·T, context]: one text forward."""
        model = self._segment.at(lam)
        self.forward_calls += 1
        self.forward_prompts += len(tokens)
        bias = getattr(model, "logit_bias", None)
        return ClassHead(
            embeddings_CD=encode_classes(model, tokens.to(self._device), classes),
            logit_scale=float(cast("Tensor", model.logit_scale).exp()),
            logit_bias=0.0 if bias is None else float(bias),
        )


@dataclass(frozen=True, slots=True)
class HeadCurve:
    """Heads at K nodes, and any λ between them by barycentric interpolation.

    ``lambdas`` is [K] ascending from 0 to 1, ``embeddings_KCD`` float32, ``scales`` and ``biases`` [K].
    ``error`` is the largest change of any logit that interpolation was seen to cause at held-out λ.
    """

    lambdas: NDArray[np.float64]
    embeddings_KCD: NDArray[np.float32]
    scales: NDArray[np.float64]
    biases: NDArray[np.float64]
    error: float = 0.0

    @classmethod
    def through(cls, tower: TextTower, lambdas: NDArray[np.float64], tokens: Tensor, classes: int) -> "HeadCurve":
        """Curve through the exact heads at ``lambdas``: one text forward each."""
        heads = [tower.head(float(lam), tokens, classes) for lam in lambdas]
        return cls(
            lambdas=lambdas,
            embeddings_KCD=np.stack([head.embeddings_CD.cpu().numpy() for head in heads]),
            scales=np.array([head.logit_scale for head in heads]),
            biases=np.array([head.logit_bias for head in heads]),
        )

    def at(self, lam: float) -> ClassHead:
        """Head at λ; at a node exactly the head that was computed there."""
        difference = lam - self.lambdas
        if not difference.all():
            node = int(np.flatnonzero(difference == 0)[0])
            return self._head(self.embeddings_KCD[node], self.scales[node], self.biases[node])
        weights = _barycentric_weights(len(self.lambdas)) / difference
        weights /= weights.sum()
        embeddings = np.tensordot(weights, self.embeddings_KCD.astype(np.float64), axes=1).astype(np.float32)
        return self._head(embeddings, float(np.exp(weights @ np.log(self.scales))), float(weights @ self.biases))

    @staticmethod
    def _head(embeddings: NDArray[np.float32], scale: float, bias: float) -> ClassHead:
        return ClassHead(torch.from_numpy(embeddings.copy()), float(scale), float(bias))


def fit_head_curve(tower: TextTower, tokens: Tensor, classes: int, *, tolerance: float) -> HeadCurve | None:
    """Curve whose logits stay within ``tolerance`` of the exact head's, with as few nodes as that takes.

    The error bound is rigorous at each held-out λ: image features have unit length, so no logit changes by more than
    scale·‖Δe‖. None when 33 nodes do not suffice; the caller then evaluates the text tower at every λ.
    """
    for count in NODE_COUNTS:
        curve = HeadCurve.through(tower, chebyshev_lobatto(count), tokens, classes)
        held_out = [(low + high) / 2 for low, high in pairwise(curve.lambdas)][:: max(1, count // 8)]
        error = max(_logit_error(curve.at(lam), tower.head(lam, tokens, classes)) for lam in held_out)
        if error <= tolerance:
            return replace(curve, error=error)
    return None


def chebyshev_lobatto(count: int) -> NDArray[np.float64]:
    """``count`` Chebyshev-Lobatto nodes on [0, 1], ascending, exactly 0 and 1 at the ends."""
    angles: NDArray[np.float64] = np.linspace(0.0, np.pi, count)
    nodes = np.square(np.sin(angles / 2))
    nodes[-1] = 1.0
    return nodes


def _barycentric_weights(count: int) -> NDArray[np.float64]:
    weights = np.where(np.arange(count) % 2, -1.0, 1.0)
    weights[[0, -1]] *= 0.5
    return weights


def _logit_error(approximate: ClassHead, exact: ClassHead) -> float:
    scaled = approximate.logit_scale * approximate.embeddings_CD - exact.logit_scale * exact.embeddings_CD.cpu()
    return float(scaled.norm(dim=-1).max()) + abs(approximate.logit_bias - exact.logit_bias)


def _without_image_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("visual.")}
