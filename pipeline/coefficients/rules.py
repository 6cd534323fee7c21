"""Rules: functions from evidence to the coefficient λ of each sample.

λ is the weight of the expert: 0 is the generalist, 1 the expert.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pipeline.coefficients.divergence import Evidence


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

    The paper's Eq. 10 has no γ (so 1); the authors' README says 0.5.
    """

    gamma: float = 1.0
    delta: float = 0.5
    tau_generalist: float = 0.05
    tau_expert: float = 0.05
    lambda_min: float = 0.0
    lambda_max: float = 1.0


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Coefficients of N samples: before (Eq. 10) and after (Eq. 11) the confidence adjustment, and the branch taken."""

    lambda_raw: NDArray[np.float32]
    lam: NDArray[np.float32]
    branch: NDArray[np.int8]


def t3(evidence: Evidence, settings: T3Settings) -> Coefficients:
    """T³'s coefficient: λ = λ_min + (λ_max - λ_min)·σ(γ·JS), then ±δ where one model is confident (Eq. 10, 11).

    The expert's confidence is tested first. Computed and decided in float64, returned as float32 in [0, 1]. Since
    JS ≤ ln 2, σ(JS) lies in [0.5, 0.667] at γ = 1: λ never comes near λ_min without the adjustment, whatever the
    paper's text says.
    """
    sigmoid = 1.0 / (1.0 + np.exp(-settings.gamma * evidence.js))
    raw = settings.lambda_min + (settings.lambda_max - settings.lambda_min) * sigmoid
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
