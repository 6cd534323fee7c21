"""Rules: functions from evidence to the coefficient λ of each sample.

λ is the weight of the expert: 0 is the generalist, 1 the expert. Everything is computed and decided in float64 and
returned as float32. Suffixes pt and ft are the papers' names for generalist and expert.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.divergence import LN2, log_softmax
from pipeline.coefficients.evidence import Evidence

# Below it, tanh(x) is x to the last bit of float64.
LINEAR = 1e-8


class Branch(IntEnum):
    """Which case of T³ Eq. 11 a sample fell into."""

    NONE = 0
    EXPERT_CONFIDENT = 1
    GENERALIST_CONFIDENT = 2

    @property
    def label(self) -> str:
        """Name as written to Parquet: ``none``, ``expert-confident``, ``generalist-confident``."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class T3Settings:
    """Settings of rule ``t3``: γ, δ, τ and the bounds of λ (T³ Eq. 10 and 11), with the paper's values as defaults.

    The paper's Eq. 10 has no γ (so 1); the authors' README says 0.5. ``mapping`` is Eq. 10's sigmoid, or ``rescaled``,
    an option of ours: the sigmoid stretched so that the divergence's range [0, ln 2] covers [λ_min, λ_max].
    """

    gamma: float = 1.0
    delta: float = 0.5
    tau_generalist: float = 0.05
    tau_expert: float = 0.05
    lambda_min: float = 0.0
    lambda_max: float = 1.0
    mapping: Literal["sigmoid", "rescaled"] = "sigmoid"


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Coefficients of N samples: before (Eq. 10) and after (Eq. 11) the confidence adjustment, and the branch taken.

    Rules without such an adjustment give λ twice and the branch ``none``.
    """

    lambda_raw: NDArray[np.float32]
    lam: NDArray[np.float32]
    branch: NDArray[np.int8]


def t3(evidence: Evidence, settings: T3Settings) -> Coefficients:
    """T³'s coefficient: λ = λ_min + (λ_max - λ_min)·σ(γ·JS), then ±δ where one model is confident (Eq. 10, 11).

    The expert's confidence is tested first. Since JS ≤ ln 2, σ(JS) lies in [0.5, 0.667] at γ = 1: λ never comes near
    λ_min without the adjustment, whatever the paper's text says; ``mapping: rescaled`` makes it so. ValueError when
    generalist and expert are not both among the sources.
    """
    if evidence.js is None:
        raise ValueError(f"t3 needs a generalist and an expert: the sources are {', '.join(evidence.logits)}")
    raw = settings.lambda_min + (settings.lambda_max - settings.lambda_min) * _mapped(evidence.js, settings)
    expert_confident = evidence.entropy_expert < settings.tau_expert
    generalist_confident = ~expert_confident & (evidence.entropy_generalist < settings.tau_generalist)
    adjusted = np.select(
        [expert_confident, generalist_confident],
        [np.minimum(raw + settings.delta, 1.0), np.maximum(raw - settings.delta, 0.0)],
        default=raw,
    )
    branch = np.select(
        [expert_confident, generalist_confident],
        [Branch.EXPERT_CONFIDENT, Branch.GENERALIST_CONFIDENT],
        default=Branch.NONE,
    )
    return Coefficients(
        lambda_raw=raw.astype(np.float32),
        lam=adjusted.astype(np.float32),
        branch=branch.astype(np.int8),
    )


def entropy_ratio(evidence: Evidence) -> Coefficients:
    """λ = H_ft / (H_pt + H_ft), T³ Eq. 3 as printed; 0.5 where both entropies are 0.

    As the expert's weight this favours the *less* certain model.
    """
    return _without_branches(_share(evidence.entropy_expert, evidence.entropy_generalist))


def dawin(evidence: Evidence) -> Coefficients:
    """λ = exp(-H_ft) / (exp(-H_pt) + exp(-H_ft)), as in DaWin's own code: favours the more certain model.

    Entropies are at most ln C, so λ lies within [1/(C + 1), C/(C + 1)].
    """
    return _without_branches(1.0 / (1.0 + np.exp(evidence.entropy_expert - evidence.entropy_generalist)))


def confidence_ratio(evidence: Evidence) -> Coefficients:
    """λ = max p_ft / (max p_pt + max p_ft): favours the model whose largest probability is larger."""
    expert, generalist = (
        np.exp(log_softmax(logits).max(axis=1)) for logits in (evidence.logits_expert, evidence.logits_generalist)
    )
    return _without_branches(_share(expert, generalist))


def x_entropy_ratio(evidence: Evidence) -> Coefficients:
    """λ = ℓ_ft / (ℓ_pt + ℓ_ft), ℓ the cross-entropy against the true label (T³ Eq. 4); 0.5 where both are 0.

    Analysis only. As the expert's weight this favours the model that gives the true class the *lower* probability.
    ValueError when labels are absent or a sample has none.
    """
    labels = evidence.labels
    if labels is None or (labels < 0).any():
        missing = "no sample has a label" if labels is None else f"{(labels < 0).sum()} of {len(labels)} have no label"
        raise ValueError(f"x-entropy-ratio needs the label of every sample: {missing}")
    expert, generalist = (
        -np.take_along_axis(log_softmax(logits), labels[:, None], axis=1)[:, 0]
        for logits in (evidence.logits_expert, evidence.logits_generalist)
    )
    return _without_branches(_share(expert, generalist))


RULES: Mapping[str, Callable[[Evidence], Coefficients]] = {
    "entropy-ratio": entropy_ratio,
    "dawin": dawin,
    "confidence-ratio": confidence_ratio,
    "x-entropy-ratio": x_entropy_ratio,
}


def from_user(lambdas: object, count: int, name: str) -> Coefficients:
    """Coefficients from what a user's own rule ``name`` returned for ``count`` samples.

    ValueError, one line, when it is not an array of ``count`` real numbers, all in [0, 1].
    """
    try:
        values = np.asarray(lambdas).astype(np.float64, casting="same_kind")
    # What a foreign array type raises when it cannot become numpy's is its own affair (torch: RuntimeError).
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"rule {name}: must return an array of numbers, got {_kind(lambdas)} ({reason})") from error
    if values.shape != (count,):
        wanted = f"one λ for each of the {count} samples, shape ({count},)"
        raise ValueError(f"rule {name}: must return {wanted}, got {_kind(lambdas)} of shape {values.shape}")
    outside = np.flatnonzero(~((values >= 0.0) & (values <= 1.0)))
    if len(outside):
        first = f"λ[{outside[0]}] = {values[outside[0]]}"
        remedy = "return the expert's weight, neither NaN nor infinite; clip it where needed"
        raise ValueError(f"rule {name}: λ must lie in [0, 1], got {first} (and {len(outside) - 1} more): {remedy}")
    return _without_branches(values)


def _mapped(js: NDArray[np.float64], settings: T3Settings) -> NDArray[np.float64]:
    if settings.mapping == "sigmoid":
        sigmoid: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-settings.gamma * js))
        return sigmoid
    # 2σ(x) - 1 = tanh(x/2), which keeps its digits where x is small. Where it is a line, the quotient is taken without
    # γ, whose product with js may be too small to have any digits.
    if 0.5 * settings.gamma * LN2 < LINEAR:
        return js / LN2
    rescaled: NDArray[np.float64] = np.tanh(0.5 * settings.gamma * js) / np.tanh(0.5 * settings.gamma * LN2)
    return rescaled


def _share(part: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    total = part + other
    return np.divide(part, total, out=np.full_like(total, 0.5), where=total > 0)


def _without_branches(lam: NDArray[np.float64]) -> Coefficients:
    # Adding zero turns -0.0 into 0.0: equal λ must be equal bytes.
    stored = (lam + 0.0).astype(np.float32)
    return Coefficients(lambda_raw=stored, lam=stored, branch=np.full(len(stored), Branch.NONE, np.int8))


def _kind(value: object) -> str:
    return type(value).__name__
