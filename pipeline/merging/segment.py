"""The line between two models in weight space, or the simplex between K of them, at memory speed.

All ends lie in flat contiguous buffers, and the parameters of the merged module are views of one more, so a merge is
one pass over memory per dtype instead of one small operation per tensor. Tensors that are equal in all ends are
stored once and never touched.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Views start at multiples of this many elements: a kernel may choose its path by the alignment of its input, and a
# merged tensor must take the same path as the same tensor in a module of its own.
ALIGNMENT = 64
# With more than two ends the partial sum is carried in blocks that stay in cache, so that each end is still read once
# and the result written once. A GPU has a larger cache and pays for every launch.
BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}
SUM_TOLERANCE = 1e-6

State = Mapping[str, Tensor]


@dataclass(slots=True)
class _Flat:
    """The differing tensors of one dtype: one buffer for each end, one they are merged into, and where each lies."""

    ends: list[Tensor]
    merged: Tensor
    offsets: dict[str, int]


class Segment[Module: nn.Module]:
    """K modules of one architecture and a merged one, θ(w) = Σ w_k·θ_k with w_k ≥ 0 and Σ w_k = 1.

    With two ends, generalist and expert, and w = (1-λ, λ), this is T³'s θ(λ) = (1-λ)·θ_pt + λ·θ_ft.

    Parameters
    ----------
    module
        Architecture whose persistent state is interpolated; its own values are not used.
    states
        State dicts of the K ends (K ≥ 1) with exactly the module's persistent keys, shapes and dtypes. Only
        floating-point entries are interpolated; integer buffers are the first end's (DESIGN rule 6). Buffers that are
        not persistent, such as an attention mask of -inf, stay what the architecture made them.

    Attributes
    ----------
    ends
        The K modules themselves, in the order of ``states``.
    merges
        How often :meth:`at` interpolated weights.
    """

    def __init__(self, module: Module, states: Sequence[State]) -> None:
        first = states[0]
        keys = list(module.state_dict())
        _require_same_layout(keys, states)
        differing = [key for key in keys if first[key].is_floating_point() and _differ(states, key)]
        device = next(iter(module.state_dict().values())).device
        self._flats = [
            _flatten(dtype, [key for key in differing if first[key].dtype == dtype], states, device)
            for dtype in sorted({first[key].dtype for key in differing}, key=str)
        ]
        self._count = len(states)
        shared = {key: first[key].to(device) for key in keys if key not in set(differing)}
        self.ends = tuple(
            _module_over(module, shared, [(flat.ends[end], flat.offsets) for flat in self._flats], first)
            for end in range(self._count)
        )
        self._merged = _module_over(module, shared, [(flat.merged, flat.offsets) for flat in self._flats], first)
        self._weights: tuple[float, ...] | None = None
        self.merges = 0

    def at(self, weights: Sequence[float]) -> Module:
        """Module with weights θ(w), valid until the next call; ``weights`` [K] are not negative and sum to 1.

        All weight on one end gives that end itself, and unchanged weights what is merged already; neither interpolates.
        Ends of weight zero are not read. In float32 and float64 each weight equals the formula's to rounding; in lower
        precision the sum is carried in float32 and rounded once. ValueError for weights that are no such combination.
        """
        wanted = tuple(float(weight) for weight in weights)
        if len(wanted) != self._count or not all(w >= 0 for w in wanted) or abs(sum(wanted) - 1) > SUM_TOLERANCE:
            msg = f"'weights' must be {self._count} numbers >= 0 that sum to 1, got {wanted}"
            raise ValueError(msg)
        used = [end for end, weight in enumerate(wanted) if weight > 0]
        if len(used) == 1 or not self._flats:
            return self.ends[used[0]]
        if wanted == self._weights:
            return self._merged
        for flat in self._flats:
            _interpolate([flat.ends[end] for end in used], [wanted[end] for end in used], flat.merged)
        self._weights = wanted
        self.merges += 1
        return self._merged

    def bytes_per_merge(self, ends: int | None = None) -> int:
        """Bytes that one merge of ``ends`` (by default all) reads and writes: each end once, the result once."""
        passes = (self._count if ends is None else ends) + 1
        return sum(passes * flat.merged.numel() * flat.merged.element_size() for flat in self._flats)


def _interpolate(ends: list[Tensor], weights: list[float], merged: Tensor) -> None:
    """Nested interpolation, θ_12 between the first two, θ_123 between that and the third: Σ w_k·θ_k when Σ w_k = 1.

    Two ends are one ``torch.lerp`` over everything, which is also what every further end adds, block by block.
    """
    fractions = [later / total for later, total in zip(weights[1:], _running_sums(weights), strict=True)]
    if len(ends) == 2:
        torch.lerp(ends[0], ends[1], fractions[0], out=merged)
        return
    size = BLOCK_ELEMENTS.get(merged.device.type, BLOCK_ELEMENTS["cuda"])
    carried = torch.promote_types(merged.dtype, torch.float32)
    for start in range(0, merged.numel(), size):
        first, second, *further, target = (flat[start : start + size] for flat in (*ends, merged))
        # to() is the tensor itself where it has the dtype already.
        partial = target if target.dtype == carried else torch.empty_like(target, dtype=carried)
        torch.lerp(first.to(carried), second.to(carried), fractions[0], out=partial)
        for end, fraction in zip(further, fractions[1:], strict=True):
            partial.lerp_(end.to(carried), fraction)
        if partial is not target:
            target.copy_(partial)


def _running_sums(weights: list[float]) -> list[float]:
    """Sums of the first 2, 3, ... K weights."""
    sums = [weights[0]]
    for weight in weights[1:]:
        sums.append(sums[-1] + weight)
    return sums[1:]


def _require_same_layout(keys: list[str], states: Sequence[State]) -> None:
    first = states[0]
    for state in states:
        if set(keys) != set(state):
            raise ValueError("state dicts must have exactly the module's keys")
        for key in keys:
            if state[key].shape != first[key].shape or state[key].dtype != first[key].dtype:
                msg = f"{key!r} must have one shape and dtype in all state dicts"
                raise ValueError(msg)


def _differ(states: Sequence[State], key: str) -> bool:
    return any(not torch.equal(states[0][key], state[key]) for state in states[1:])


def _flatten(dtype: torch.dtype, keys: list[str], states: Sequence[State], device: torch.device) -> _Flat:
    offsets: dict[str, int] = {}
    length = 0
    for key in keys:
        offsets[key] = length
        length += -(-states[0][key].numel() // ALIGNMENT) * ALIGNMENT
    buffers = [torch.zeros(length, dtype=dtype, device=device) for _ in range(len(states) + 1)]
    for state, buffer in zip(states, buffers[:-1], strict=True):
        for key, offset in offsets.items():
            buffer[offset : offset + state[key].numel()] = state[key].reshape(-1)
    return _Flat(buffers[:-1], buffers[-1], offsets)


def _module_over[Module: nn.Module](
    module: Module, shared: State, flats: Sequence[tuple[Tensor, Mapping[str, int]]], like: State
) -> Module:
    """Copy of ``module`` whose tensors are views of the flat buffers, or the ``shared`` ones."""
    tensors = dict(shared)
    for buffer, offsets in flats:
        for key, offset in offsets.items():
            tensors[key] = buffer[offset : offset + like[key].numel()].view(like[key].shape)
    bound = deepcopy(module).eval().requires_grad_(requires_grad=False)
    for name, parameter in bound.named_parameters(remove_duplicate=False):
        parameter.data = tensors[name]
    for name, persistent in bound.named_buffers(remove_duplicate=False):
        if name in tensors:
            persistent.data = tensors[name]
    return bound
