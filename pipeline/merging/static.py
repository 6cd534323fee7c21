"""Static merging: from the state dicts of several models to the one of a single model, once for a whole run.

Every method computes tensor by tensor in float64 on the CPU and rounds to the tensors' own dtype (half precision by way
of float32, as torch converts). Only floating-point entries are merged; the others are copied from the first state dict,
or from the base. All state dicts of a call have one layout, keys, shapes and dtypes, which the caller has checked.

``linear``, ``task_arithmetic`` and ``ties`` consist of single IEEE operations, element by element, so their result is
the same on every machine.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.merging.segment import State

MIN_SINE = 1e-4
"""Below this sine of the angle between two tensors :func:`slerp` interpolates linearly. For nearly parallel tensors the
two then differ by 1e-9 of a weight, less than float32 can hold; for nearly opposite ones the arc is not determined."""


def linear(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Weighted sum Σ w_k·θ_k of K state dicts with K weights.

    Weights (1-α, α) are a model soup of two (Wortsman et al. 2022), 1/K each the mean. A state dict of weight zero is
    not read, so all weight on one gives that one, bit for bit.
    """
    assert len(weights) == len(states)
    _assert_same_layout(states)
    return {
        key: _weighted_sum([state[key] for state in states], weights) if first.is_floating_point() else first.clone()
        for key, first in states[0].items()
    }


def task_arithmetic(base: State, experts: Sequence[State], scale: float) -> dict[str, Tensor]:
    """Task arithmetic, θ_pt + scale·Σ(θ_k - θ_pt) over K experts (Ilharco et al. 2023).

    Scale 1 with one expert gives the expert and scale 0 the base, bit for bit.
    """
    # The same sum with θ_pt factored out: no difference is formed that rounding could spoil.
    return linear([base, *experts], [1.0 - scale * len(experts), *[scale] * len(experts)])


def slerp(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    """Spherical interpolation, tensor by tensor: [sin((1-α)Ω)·a + sin(αΩ)·b] / sin Ω (Shoemake 1985).

    Ω is the angle between the flattened tensors. Where it says nothing, the tensor is interpolated linearly instead,
    (1-α)·a + α·b: nearly parallel or opposite tensors (sin Ω below :data:`MIN_SINE`), hence single values, and tensors
    of which one is zero. Equal tensors give themselves, α = 0 and α = 1 the two state dicts. ValueError for α outside
    [0, 1].
    """
    _require_fraction("alpha", alpha)
    _assert_same_layout([first, second])
    return {
        key: value.clone()
        if not value.is_floating_point() or torch.equal(value, second[key])
        else _weighted_sum([value, second[key]], _slerp_weights(value, second[key], alpha))
        for key, value in first.items()
    }


def ties(base: State, experts: Sequence[State], *, density: float, scale: float) -> dict[str, Tensor]:
    """TIES merging: trim, elect signs, disjoint mean (Yadav et al. 2023); θ_pt + scale·that mean, over K experts.

    Trim: of each task vector θ_k - θ_pt, over all merged entries together, the ``density`` fraction largest in
    magnitude stays, the rest becomes 0. The count is rounded to the nearest whole number, at least 1 unless ``density``
    is 0. Magnitudes are compared in float32, and all that equal the smallest one kept stay too.
    Elect: each entry's sign is that of the sum of its trimmed values. A sum of zero takes the sign of the majority of
    all entries, and a balanced majority counts as negative, as in the authors' code.
    Mean: over the values other than 0 that have the elected sign; 0 where there are none.

    With one expert the election has no effect. ValueError for a density outside [0, 1]. Needs, beside inputs and
    result, one float32 copy of all entries and K float64 copies of the largest tensor.
    """
    _require_fraction("density", density)
    assert experts
    _assert_same_layout([base, *experts])
    keys = [key for key, value in base.items() if value.is_floating_point()]
    thresholds = [_trim_threshold(base, expert, keys, density) for expert in experts]
    balance = sum(_sum_of_signs(_trimmed(base, experts, key, thresholds)) for key in keys)
    majority = 1.0 if balance > 0 else -1.0
    merged = {key: value.clone() for key, value in base.items() if not value.is_floating_point()}
    for key in keys:
        change = _disjoint_mean(_trimmed(base, experts, key, thresholds), majority)
        merged[key] = (base[key].double() + change * scale).to(base[key].dtype)
    return {key: merged[key] for key in base}


def draw_mixup_lambda(distribution: Literal["beta", "uniform"], alpha: float, seed: int) -> float:
    """Weight of the expert drawn as mixup draws it (Zhang et al. 2018): λ ~ Beta(α, α), or uniform on [0, 1].

    ``alpha`` is not used for ``uniform``. The merge itself is :func:`linear` with weights (1-λ, λ). ValueError for
    an α that is not positive.
    """
    generator = np.random.default_rng(seed)
    if distribution == "uniform":
        return float(generator.uniform())
    if not alpha > 0:
        msg = f"'alpha' must be > 0, got {alpha}"
        raise ValueError(msg)
    return float(generator.beta(alpha, alpha))


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if not used:
        return torch.zeros_like(tensors[0])
    (first, weight), *others = used
    total = first.double() * weight
    for tensor, weight in others:
        # Two operations, not add_(alpha=weight): whether that one fuses depends on the instruction set.
        total += tensor.double() * weight
    return total.to(first.dtype)


def _slerp_weights(first: Tensor, second: Tensor, alpha: float) -> tuple[float, float]:
    a, b = (tensor.double().reshape(-1).numpy() for tensor in (first, second))
    # numpy sums pairwise in a fixed order, torch in one that depends on threads and instruction set.
    norms = math.sqrt(np.sum(a * a)) * math.sqrt(np.sum(b * b))
    if norms == 0:
        return 1.0 - alpha, alpha
    angle = math.acos(min(1.0, max(-1.0, float(np.sum(a * b)) / norms)))
    sine = math.sin(angle)
    if sine < MIN_SINE:
        return 1.0 - alpha, alpha
    return math.sin((1.0 - alpha) * angle) / sine, math.sin(alpha * angle) / sine


def _magnitude(base: Tensor, expert: Tensor) -> Tensor:
    return (expert.float() - base.float()).abs()


def _trim_threshold(base: State, expert: State, keys: Sequence[str], density: float) -> float:
    """Smallest magnitude of ``expert``'s task vector that trimming keeps."""
    magnitudes = np.empty(sum(base[key].numel() for key in keys), np.float32)
    start = 0
    for key in keys:
        end = start + base[key].numel()
        magnitudes[start:end] = _magnitude(base[key], expert[key]).reshape(-1).numpy()
        start = end
    if density == 0 or not magnitudes.size:
        return math.inf
    dropped = magnitudes.size - max(1, round(density * magnitudes.size))
    magnitudes.partition(dropped)
    return float(magnitudes[dropped])


def _trimmed(base: State, experts: Sequence[State], key: str, thresholds: Sequence[float]) -> list[Tensor]:
    """Trimmed task vectors of one entry, one float64 tensor for each expert."""
    return [
        (expert[key].double() - base[key].double()).masked_fill_(_magnitude(base[key], expert[key]) < threshold, 0.0)
        for expert, threshold in zip(experts, thresholds, strict=True)
    ]


def _sum_of_signs(trimmed: Sequence[Tensor]) -> int:
    return int(sum(trimmed[1:], start=trimmed[0]).sign().sum())


def _disjoint_mean(trimmed: Sequence[Tensor], majority: float) -> Tensor:
    elected = sum(trimmed[1:], start=trimmed[0]).sign()
    elected.masked_fill_(elected == 0, majority)
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for values in trimmed:
        agrees = values * elected > 0
        total += values * agrees
        count += agrees
    return total / count.clamp_(min=1)


def _require_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        msg = f"'{name}' must lie in [0, 1], got {value}"
        raise ValueError(msg)


def _assert_same_layout(states: Sequence[State]) -> None:
    first = states[0]
    for state in states[1:]:
        assert state.keys() == first.keys()
        assert all(state[key].shape == value.shape for key, value in first.items())
        assert all(state[key].dtype == value.dtype for key, value in first.items())
