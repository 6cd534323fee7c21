"""Weights of K source models per batch, from how certain each is of the batch.

After *The Mean is the Mirage* (arXiv 2602.21372): each source's mean predictive entropy on an unlabelled batch gives
the coefficients of the batch's merged model, separately for encoder and classification head. The paper's equations are
not public here, so w_k ∝ exp(-H̄_k/T) is our reading of it.

Shapes: N samples, B batches, K sources in the manifest's order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.grouping import Positions, Rows, arrival_batches

Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """B batches over N rows, in columns, each with the weights of K sources.

    Batch b holds ``rows[offsets[b]:offsets[b + 1]]`` and is merged with ``weights_encoder[b]`` and
    ``weights_head[b]``, each at least 0 and summing to 1. Shapes: rows [N], offsets [B + 1], the weights [B, K].
    """

    rows: Rows
    offsets: Positions
    weights_encoder: Weights
    weights_head: Weights

    def __len__(self) -> int:
        return len(self.weights_encoder)

    @property
    def sizes(self) -> Positions:
        """Number of rows of each batch, [B]."""
        return np.diff(self.offsets)


def entropy_weights(entropies_BK: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Weights [B, K], w_k ∝ exp(-H̄_k/T), of mean entropies [B, K] in nats: the more certain source weighs more.

    T → ∞ gives every source the same weight, T → 0 all of it to the most certain one. ValueError unless T > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    excess = entropies_BK - entropies_BK.min(axis=1, keepdims=True)
    # A tiny T drives a quotient to infinity, whose weight is 0, as it should be.
    with np.errstate(over="ignore"):
        unnormalised = np.exp(-excess / temperature)
    weights: NDArray[np.float64] = unnormalised / unnormalised.sum(axis=1, keepdims=True)
    return weights


def entropy_adaptive(
    rows: Rows,
    entropies_NK: NDArray[np.float64],
    *,
    batch_size: int,
    first_address: int,
    temperature_encoder: float,
    temperature_head: float | None,
    order: Positions | None = None,
) -> WeightsPlan:
    """Batches as ``grouping.arrival`` cuts them, each with weights from its sources' mean entropies (our reading).

    H̄_k is the float64 mean over the batch. Without a ``temperature_head`` the head has the encoder's weights
    (coupled). ValueError unless temperatures are > 0.
    """
    positions, starts = arrival_batches(rows, batch_size=batch_size, first_address=first_address, order=order)
    offsets = np.append(starts, len(rows)).astype(np.int64)
    means = _batch_means(entropies_NK[positions].astype(np.float64), offsets)
    encoder = entropy_weights(means, temperature_encoder).astype(np.float32)
    head = encoder if temperature_head is None else entropy_weights(means, temperature_head).astype(np.float32)
    return WeightsPlan(rows=rows[positions], offsets=offsets, weights_encoder=encoder, weights_head=head)


def _batch_means(values_NK: NDArray[np.float64], offsets: Positions) -> NDArray[np.float64]:
    if len(offsets) == 1:
        return values_NK[:0]
    sums: NDArray[np.float64] = np.add.reduceat(values_NK, offsets[:-1], axis=0)
    return sums / np.diff(offsets)[:, None]
