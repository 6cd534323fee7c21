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

from pipeline.merging.side_stream import SideStream

# Views start at multiples of this many elements: a kernel may choose its path by the alignment of its input, and a
# merged tensor must take the same path as the same tensor in a module of its own.
ALIGNMENT = 64
# Where torch's own allocations begin; a checkpoint that is mapped into memory begins anywhere.
ALIGNMENT_BYTES = 64
# With more than two ends the partial sum is carried in blocks that stay in cache, so that each end is still read once
# and the result written once. A GPU has a larger cache and pays for every launch.
BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}
SUM_TOLERANCE = 1e-6

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Flat:
    """The differing tensors of one dtype: one buffer for each end, and where in it each tensor lies."""

    ends: list[Tensor]
    offsets: dict[str, int]


@dataclass(slots=True)
class _Merged[Module: nn.Module]:
    """A module that ends are merged into: its buffers, one for each dtype, and the weights that they hold."""

    buffers: list[Tensor]
    module: Module
    weights: tuple[float, ...] | None = None


class Segment[Module: nn.Module]:
    """K modules of one architecture and a merged one, θ(w) = Σ w_k·θ_k with w_k ≥ 0 and Σ w_k = 1.

    With two ends, generalist and expert, and w = (1-λ, λ), this is T³'s θ(λ) = (1-λ)·θ_pt + λ·θ_ft.

    float32 and float64 are interpolated in their own precision. In bfloat16 and float16 every merged weight is rounded
    exactly once, from float32, on the CPU and on CUDA alike: between two ends of weight > 0, ``torch.lerp`` takes the
    ends' rounded weights, computes a + λ·(b - a) if λ < 1/2, else b - (1-λ)·(b - a), in float32, and rounds the result;
    between more, the partial sums are float32 too, and only the last one is rounded. What the ends lost when they were
    rounded to that precision themselves stays lost: the result is θ(w) of the rounded ends, to half a step.

    Parameters
    ----------
    module
        Architecture whose persistent state is interpolated; its own values are not used.
    states
        State dicts of the K ends (K ≥ 1) with exactly the module's persistent keys, shapes and dtypes. Only
        floating-point entries are interpolated; integer buffers are the first end's (DESIGN rule 6). Buffers that are
        not persistent, such as an attention mask of -inf, stay what the architecture made them.
    ahead
        Keep a second merged module, so that :meth:`prepare` can merge while the first one is in use: on CUDA at the
        same time, on a stream of its own. Costs the memory of one more module.
    channels_last
        Lay tensors of four dimensions out with their second dimension last, as convolutions may prefer.

    Attributes
    ----------
    ends
        The K modules themselves, in the order of ``states``.
    merges
        How often weights were interpolated, by :meth:`at` or :meth:`prepare`.
    """

    def __init__(
        self, module: Module, states: Sequence[State], *, ahead: bool = False, channels_last: bool = False
    ) -> None:
        first = states[0]
        keys = list(module.state_dict())
        _require_same_layout(keys, states)
        differing = [key for key in keys if first[key].is_floating_point() and _differ(states, key)]
        device = next(iter(module.state_dict().values())).device
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._flats = [
            _flatten([key for key in differing if first[key].dtype == dtype], states, device, layout)
            for dtype in sorted({first[key].dtype for key in differing}, key=str)
        ]
        self._count = len(states)
        shared = {key: _laid_out(first[key].to(device), layout) for key in keys if key not in set(differing)}

        self._shared = sum(tensor.nbytes for tensor in shared.values())

        def module_over(buffers: list[Tensor]) -> Module:
            offsets = [flat.offsets for flat in self._flats]
            return _module_over(module, shared, [*zip(buffers, offsets, strict=True)], first, layout)

        self.ends = tuple(module_over([flat.ends[end] for flat in self._flats]) for end in range(self._count))
        self._merged = []
        for _ in range(2 if ahead else 1):
            buffers = [torch.zeros_like(flat.ends[0]) for flat in self._flats]
            self._merged.append(_Merged(buffers, module_over(buffers)))
        self._stream = SideStream(device if ahead else torch.device("cpu"))
        self._in_use: int | None = None
        self.merges = 0

    def at(self, weights: Sequence[float]) -> Module:
        """Module with weights θ(w), valid until the next call; ``weights`` [K] are not negative and sum to 1.

        All weight on one end gives that end itself, and weights that are merged already cost nothing; neither
        interpolates. Ends of weight zero are not read. ValueError for weights that are no such combination.
        """
        wanted = self._checked(weights)
        if (end := self._lone_end(wanted)) is not None:
            self._hand_out(None)
            return self.ends[end]
        buffer = self._holding(wanted)
        if buffer is None:
            buffer = self._merge(wanted)
        self._hand_out(buffer)
        return self._merged[buffer].module

    def prepare(self, weights: Sequence[float]) -> None:
        """Begin to merge what :meth:`at` will be asked for next, beside the module that is in use.

        Only where the segment was made with ``ahead``. ValueError as for :meth:`at`.
        """
        assert len(self._merged) > 1, "made with ahead"
        wanted = self._checked(weights)
        if self._lone_end(wanted) is None and self._holding(wanted) is None:
            self._merge(wanted)

    def forget(self) -> None:
        """Merge again what is asked for next, also where it is merged already: for measurements."""
        for merged in self._merged:
            merged.weights = None

    def bytes_per_merge(self, ends: int | None = None) -> int:
        """Bytes that one merge of ``ends`` (by default all) reads and writes: each end once, the result once."""
        passes = (self._count if ends is None else ends) + 1
        return sum(passes * flat.ends[0].numel() * flat.ends[0].element_size() for flat in self._flats)

    def bytes_held(self) -> int:
        """Bytes of all ends and merged weights, tensors that all ends share left out."""
        return (self._count + len(self._merged)) * self.bytes_per_merge(ends=0)

    def bytes_shared(self) -> int:
        """Bytes of the tensors that are equal in all ends."""
        return self._shared

    def _checked(self, weights: Sequence[float]) -> tuple[float, ...]:
        wanted = tuple(float(weight) for weight in weights)
        if len(wanted) != self._count or not all(w >= 0 for w in wanted) or abs(sum(wanted) - 1) > SUM_TOLERANCE:
            msg = f"'weights' must be {self._count} numbers >= 0 that sum to 1, got {wanted}"
            raise ValueError(msg)
        return wanted

    def _lone_end(self, wanted: tuple[float, ...]) -> int | None:
        """The end that needs no merge: the only one of weight > 0, or any where all are equal."""
        used = [end for end, weight in enumerate(wanted) if weight > 0]
        return used[0] if len(used) == 1 or not self._flats else None

    def _holding(self, wanted: tuple[float, ...]) -> int | None:
        return next((buffer for buffer, merged in enumerate(self._merged) if merged.weights == wanted), None)

    def _merge(self, wanted: tuple[float, ...]) -> int:
        """Merge into the buffer that is not in use, or into the only one."""
        buffer = 1 if len(self._merged) > 1 and self._in_use == 0 else 0
        merged, used = self._merged[buffer], [end for end, weight in enumerate(wanted) if weight > 0]
        # Until all of it is merged: what stops half-way must not pass for the weights that were here before.
        merged.weights = None
        with self._stream.merging(buffer):
            for flat, target in zip(self._flats, merged.buffers, strict=True):
                _interpolate([flat.ends[end] for end in used], [wanted[end] for end in used], target)
        merged.weights = wanted
        self.merges += 1
        return buffer

    def _hand_out(self, buffer: int | None) -> None:
        """Take ``buffer`` into use instead of the one before; None is an end, which needs no order."""
        if buffer == self._in_use:
            return
        if self._in_use is not None:
            self._stream.release(self._in_use)
        if buffer is not None:
            self._stream.hand_out(buffer)
        self._in_use = buffer


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


def _flatten(keys: list[str], states: Sequence[State], device: torch.device, layout: torch.memory_format) -> _Flat:
    offsets: dict[str, int] = {}
    length = 0
    for key in keys:
        offsets[key] = length
        length += -(-states[0][key].numel() // ALIGNMENT) * ALIGNMENT
    ends = [torch.zeros(length, dtype=states[0][keys[0]].dtype, device=device) for _ in states]
    for state, buffer in zip(states, ends, strict=True):
        for key, offset in offsets.items():
            _view(buffer, offset, state[key], layout).copy_(state[key])
    return _Flat(ends, offsets)


def _view(buffer: Tensor, offset: int, like: Tensor, layout: torch.memory_format) -> Tensor:
    """The place of one tensor in a flat buffer, in its shape."""
    flat = buffer[offset : offset + like.numel()]
    if layout is torch.channels_last and like.ndim == 4:
        outer, channels, height, width = like.shape
        return flat.view(outer, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(like.shape)


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    tensor = tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor
    return tensor if tensor.data_ptr() % ALIGNMENT_BYTES == 0 else tensor.clone()


def _module_over[Module: nn.Module](
    module: Module,
    shared: State,
    flats: Sequence[tuple[Tensor, Mapping[str, int]]],
    like: State,
    layout: torch.memory_format,
) -> Module:
    """Copy of ``module`` whose tensors are views of the flat buffers, or the ``shared`` ones."""
    tensors = dict(shared)
    for buffer, offsets in flats:
        for key, offset in offsets.items():
            tensors[key] = _view(buffer, offset, like[key], layout)
    bound = deepcopy(module).eval().requires_grad_(requires_grad=False)
    for name, parameter in bound.named_parameters(remove_duplicate=False):
        parameter.data = tensors[name]
    for name, persistent in bound.named_buffers(remove_duplicate=False):
        if name in tensors:
            persistent.data = tensors[name]
    return bound
