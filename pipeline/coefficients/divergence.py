"""Entropy and Jensen-Shannon divergence of class distributions, in float64 and in nats.

Shapes: N samples, C classes. Everything starts from logits, never from probabilities: a probability that underflows to
zero still has a finite logarithm, which is why no epsilon is needed anywhere.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

LN2 = math.log(2.0)
# float32(ln 2) rounds up; the largest float32 that is not above ln 2 keeps a stored divergence within its bounds.
LN2_FLOAT32 = np.nextafter(np.float32(LN2), np.float32(0))


def log_softmax(logits_NC: ArrayLike) -> NDArray[np.float64]:
    """Log-probabilities [N, C] of logits [N, C], natural logarithm, computed in float64.

    The normaliser is log1p of the other classes' sum, not log of the whole: where one class is all but certain, its
    log-probability keeps its digits, and ratios of entropies or cross-entropies are not made of rounding.
    """
    logits = np.asarray(logits_NC, dtype=np.float64)
    top = logits.argmax(axis=-1, keepdims=True)
    shifted = logits - np.take_along_axis(logits, top, axis=-1)
    others = np.exp(shifted)
    np.put_along_axis(others, top, 0.0, axis=-1)
    result: NDArray[np.float64] = shifted - np.log1p(others.sum(axis=-1, keepdims=True))
    return result


def entropy(log_p_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shannon entropy [N] in nats, in [0, ln C], of log-probabilities [N, C]."""
    values = -(np.exp(log_p_NC) * log_p_NC).sum(axis=-1)
    return np.clip(values, 0.0, math.log(log_p_NC.shape[-1]))


def jensen_shannon(log_p_NC: NDArray[np.float64], log_q_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence [N] in nats, in [0, ln 2] (T³ Eq. 5 and 9).

    KL(p ‖ p̄) is written as Σ p·(ln 2 - softplus(log q - log p)): exact zero for identical inputs, and finite where
    p underflows, where the paper's p·log(p/(p̄+ε)) gives NaN.
    """
    kl_p = (np.exp(log_p_NC) * (LN2 - np.logaddexp(0.0, log_q_NC - log_p_NC))).sum(axis=-1)
    kl_q = (np.exp(log_q_NC) * (LN2 - np.logaddexp(0.0, log_p_NC - log_q_NC))).sum(axis=-1)
    return np.clip(0.5 * (kl_p + kl_q), 0.0, LN2)


def stored_divergence(js: NDArray[np.float64]) -> NDArray[np.float32]:
    """Divergence as float32 for storage, still within [0, ln 2]."""
    return np.minimum(js.astype(np.float32), LN2_FLOAT32)
