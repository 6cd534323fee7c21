"""The line between two models in weight space, at memory speed.

Both ends lie in flat contiguous buffers, and the parameters of the merged module are views of a third one, so a merge
is a single fused interpolation per dtype instead of one small operation per tensor. Tensors that are equal in both
ends are stored once and never touched.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Views start at multiples of this many elements: a kernel may choose its path by the alignment of its input, and a
# merged tensor must take the same path as the same tensor in a module of its own.
ALIGNMENT = 64


@dataclass(slots=True)
class _FlatPair:
    """Both ends of the differing tensors of one dtype, and the buffer they are merged into."""

    generalist: Tensor
    expert: Tensor
    merged: Tensor


class Segment[Module: nn.Module]:
    """Three modules of one architecture: ``generalist``, ``expert`` and a merged one, θ(λ) = (1-λ)·θ_pt + λ·θ_ft.

    Parameters
    ----------
    module
        Architecture whose persistent state is interpolated; its own values are not used.
    generalist, expert
        State dicts with exactly the module's persistent keys, shapes and dtypes. Only floating-point entries are
        interpolated; integer buffers are the generalist's (DESIGN rule 6). Buffers that are not persistent, such as
        an attention mask of -inf, stay what the architecture made them.

    Attributes
    ----------
    merges
        How often :meth:`at` interpolated weights.
    """

    def __init__(self, module: Module, generalist: Mapping[str, Tensor], expert: Mapping[str, Tensor]) -> None:
        keys = list(module.state_dict())
        if set(keys) != set(generalist) or set(keys) != set(expert):
            raise ValueError("state dicts must have exactly the module's keys")
        for key in keys:
            if generalist[key].shape != expert[key].shape or generalist[key].dtype != expert[key].dtype:
                msg = f"{key!r} must have one shape and dtype in both state dicts"
                raise ValueError(msg)
        differing = [key for key in keys if generalist[key].is_floating_point() and _differ(generalist, expert, key)]
        device = next(iter(module.state_dict().values())).device
        self._flats = [
            _flatten(dtype, [key for key in differing if generalist[key].dtype == dtype], generalist, expert, device)
            for dtype in sorted({generalist[key].dtype for key in differing}, key=str)
        ]
        shared = {key: generalist[key].to(device) for key in keys if key not in set(differing)}
        self.generalist = self._module_over(module, shared, "generalist", generalist)
        self.expert = self._module_over(module, shared, "expert", generalist)
        self._merged = self._module_over(module, shared, "merged", generalist)
        self._lambda: float | None = None
        self.merges = 0

    def at(self, lam: float) -> Module:
        """Module with weights θ(λ), valid until the next call.

        λ = 0 and λ = 1 give the two ends themselves, and an unchanged λ the weights already merged; none of these
        interpolates. In float32 each weight equals (1-λ)·θ_pt + λ·θ_ft to rounding; in lower precision the
        interpolation is computed in float32 and rounded once (``torch.lerp``).
        """
        if not 0.0 <= lam <= 1.0:
            msg = f"'lam' must lie in [0, 1], got {lam}"
            raise ValueError(msg)
        if lam in {0.0, 1.0} or not self._flats:
            return self.expert if lam == 1.0 else self.generalist
        if lam == self._lambda:
            return self._merged
        for flat, _ in self._flats:
            torch.lerp(flat.generalist, flat.expert, lam, out=flat.merged)
        self._lambda = lam
        self.merges += 1
        return self._merged

    @property
    def bytes_per_merge(self) -> int:
        """Bytes read and written by one merge: two reads and one write of every differing tensor."""
        return sum(3 * flat.merged.numel() * flat.merged.element_size() for flat, _ in self._flats)

    def _module_over(
        self, module: Module, shared: Mapping[str, Tensor], end: str, like: Mapping[str, Tensor]
    ) -> Module:
        tensors = dict(shared)
        for flat, offsets in self._flats:
            buffer: Tensor = getattr(flat, end)
            for key, offset in offsets.items():
                tensors[key] = buffer[offset : offset + like[key].numel()].view(like[key].shape)
        bound = deepcopy(module).eval().requires_grad_(requires_grad=False)
        for name, parameter in bound.named_parameters(remove_duplicate=False):
            parameter.data = tensors[name]
        for name, buffer in bound.named_buffers(remove_duplicate=False):
            if name in tensors:
                buffer.data = tensors[name]
        return bound


def _differ(generalist: Mapping[str, Tensor], expert: Mapping[str, Tensor], key: str) -> bool:
    return not torch.equal(generalist[key], expert[key])


def _flatten(
    dtype: torch.dtype,
    keys: list[str],
    generalist: Mapping[str, Tensor],
    expert: Mapping[str, Tensor],
    device: torch.device,
) -> tuple[_FlatPair, dict[str, int]]:
    offsets: dict[str, int] = {}
    length = 0
    for key in keys:
        offsets[key] = length
        length += -(-generalist[key].numel() // ALIGNMENT) * ALIGNMENT
    pair = _FlatPair(*(torch.zeros(length, dtype=dtype, device=device) for _ in range(3)))
    for key, offset in offsets.items():
        end = offset + generalist[key].numel()
        pair.generalist[offset:end] = generalist[key].reshape(-1)
        pair.expert[offset:end] = expert[key].reshape(-1)
    return pair, offsets
