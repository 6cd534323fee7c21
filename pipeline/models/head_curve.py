"""A head as a smooth curve in λ: evaluated at a few nodes once, interpolated for every batch.

Evaluating the text tower for every batch would cost B prompt-set forwards; instead the head is evaluated once at
Chebyshev-Lobatto nodes of [0, 1] (both ends included) and interpolated for any other λ. The error is measured at
held-out λ; where it exceeds the tolerance, more nodes are used, and finally the text tower itself. A linear head is
linear in λ: its two ends are the whole curve.

Shapes: C classes, D feature width, K nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models.class_embeddings import ClassHead, HeadSource

NODE_COUNTS = (9, 17, 33)

WeightsAt = Callable[[float], Sequence[float]]
HeadAt = Callable[[float], ClassHead]


@dataclass(frozen=True, slots=True)
class HeadCurve:
    """Heads at K nodes, and any λ between them by barycentric interpolation.

    ``lambdas`` is [K] ascending from 0 to 1, ``embeddings_KCD`` float32, ``scales`` [K], ``biases`` [K, C]; ``cosine``
    is the heads'.
    ``error`` is the largest change of any logit that interpolation was seen to cause at held-out λ.
    """

    lambdas: NDArray[np.float64]
    embeddings_KCD: NDArray[np.float32]
    scales: NDArray[np.float64]
    biases: NDArray[np.float64]
    cosine: bool = True
    error: float = 0.0

    @classmethod
    def through(cls, source: HeadSource, lambdas: NDArray[np.float64], weights_at: WeightsAt) -> "HeadCurve":
        """Curve through the exact heads at ``lambdas``; ``weights_at`` gives the sources' weights at a λ."""
        return cls.through_heads(lambdas, lambda lam: source.head(weights_at(lam)))

    @classmethod
    def through_heads(cls, lambdas: NDArray[np.float64], head_at: HeadAt) -> "HeadCurve":
        """Curve through the heads that ``head_at`` gives at ``lambdas``."""
        heads = [head_at(float(lam)) for lam in lambdas]
        return cls(
            lambdas=lambdas,
            embeddings_KCD=np.stack([head.embeddings_CD.cpu().numpy() for head in heads]),
            scales=np.array([head.logit_scale for head in heads]),
            biases=np.stack([head.logit_bias.cpu().numpy() for head in heads]).astype(np.float64),
            cosine=heads[0].cosine,
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
        return self._head(embeddings, float(np.exp(weights @ np.log(self.scales))), weights @ self.biases)

    def _head(self, embeddings: NDArray[np.float32], scale: float, bias: NDArray[np.float64]) -> ClassHead:
        logit_bias = torch.from_numpy(bias.astype(np.float32))
        return ClassHead(torch.from_numpy(embeddings.copy()), float(scale), logit_bias, cosine=self.cosine)


def fit_head_curve(source: HeadSource, *, tolerance: float, weights_at: WeightsAt) -> HeadCurve | None:
    """Curve whose logits stay within ``tolerance`` of the exact head's, with as few nodes as that takes.

    ``weights_at`` maps λ to the sources' weights, linearly. A head is computed once for every λ. The error bound is
    rigorous at each held-out λ: image features have unit length, so no logit changes by more than scale·‖Δe‖. None when
    33 nodes do not suffice; the caller then evaluates the text tower at every λ.
    """

    @cache
    def head_at(lam: float) -> ClassHead:
        return source.head(weights_at(lam))

    if not source.cosine:
        return HeadCurve.through_heads(np.array([0.0, 1.0]), head_at)
    for count in NODE_COUNTS:
        curve = HeadCurve.through_heads(chebyshev_lobatto(count), head_at)
        # Half-way between nodes the error is largest. These λ are nodes of the next curve: no forward is for nothing.
        between = chebyshev_lobatto(2 * count - 1)[1::2]
        error = max(logit_error(curve.at(lam), head_at(lam)) for lam in between[:: count // 8].tolist())
        if error <= tolerance:
            return replace(curve, error=error)
    return None


def chebyshev_lobatto(count: int) -> NDArray[np.float64]:
    """``count`` Chebyshev-Lobatto nodes on [0, 1], ascending, exactly 0 and 1 at the ends."""
    angles: NDArray[np.float64] = np.linspace(0.0, np.pi, count)
    nodes = np.square(np.sin(angles / 2))
    nodes[-1] = 1.0
    return nodes


@cache
def _barycentric_weights(count: int) -> NDArray[np.float64]:
    weights = np.where(np.arange(count) % 2, -1.0, 1.0)
    weights[[0, -1]] *= 0.5
    weights.flags.writeable = False
    return weights


def logit_error(approximate: ClassHead, exact: ClassHead) -> float:
    """Largest change of any logit of any image that the difference of two heads can cause, features of unit length."""
    scaled = approximate.logit_scale * approximate.embeddings_CD - exact.logit_scale * exact.embeddings_CD.cpu()
    biased = (approximate.logit_bias - exact.logit_bias.cpu()).abs()
    return float((scaled.norm(dim=-1) + biased).max())
