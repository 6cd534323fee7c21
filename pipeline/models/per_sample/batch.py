"""Interpolation by the weights of each sample: the arithmetic that all per-sample layers share.

θ(w) = Σ w_k·θ_k is nested as in :mod:`pipeline.merging.segment`: the point between the first two ends, then between
that and the third, and so on; each step moves by a fraction w_k / (w_1 + ... + w_k). All weight on one end therefore
gives exactly that end. Every operation treats rows apart, so a row's bits do not depend on its batch mates.

Shapes: N samples, K ends.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.merging.segment import SUM_TOLERANCE


class BatchWeights:
    """The weights of the batch that runs now; one object is shared by all layers of a tower.

    Attributes
    ----------
    size
        N, the number of samples.
    fractions
        K - 1 tensors [N], float32 on the device of the ends: how far each step moves each sample.
    host_fractions
        The same as numbers, [N][K - 1], for operations that take one sample at a time.
    """

    def __init__(self, ends: int) -> None:
        self._ends = ends
        self.size = 0
        self.fractions: tuple[Tensor, ...] = ()
        self.host_fractions: list[list[float]] = []

    def set(self, weights_NK: Tensor, device: torch.device) -> None:
        """Take the weights [N, K] of the next batch; ValueError unless each row is >= 0 and sums to 1."""
        weights = weights_NK.detach().to(device="cpu", dtype=torch.float64)
        if weights.ndim != 2 or weights.shape[1] != self._ends:
            msg = f"'weights' must be [N, {self._ends}], got {list(weights.shape)}"
            raise ValueError(msg)
        wrong = ~((weights >= 0).all(dim=1) & ((weights.sum(dim=1) - 1).abs() <= SUM_TOLERANCE))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            msg = f"'weights' must be >= 0 and sum to 1, got {weights[row].tolist()} in row {row}"
            raise ValueError(msg)
        totals = weights.cumsum(dim=1)[:, 1:]
        # Where no end so far has weight, it does not matter which of them the next step starts from.
        fractions = torch.where(totals > 0, weights[:, 1:] / totals, 0.0)
        self.size = len(weights)
        rounded = fractions.to(torch.float32)
        if device.type == "cuda":
            # From memory that is not pinned, the host would wait here for all tiles before.
            rounded = rounded.pin_memory()
        self.fractions = tuple(rounded.to(device, non_blocking=True).unbind(dim=1))
        self.host_fractions = fractions.tolist()

    def interpolate(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Interpolate K tensors [N, ...], or [1, ...] where all samples have the same, into one [N, ...].

        Computed in at least float32 and rounded to ``dtype`` once.
        """
        first, *others = (tensor.to(carried_dtype(tensor.dtype)) for tensor in tensors)
        partial = first
        for position, (other, fraction_N) in enumerate(zip(others, self.fractions, strict=True)):
            fraction = fraction_N.to(partial.dtype).view(-1, *[1] * (partial.ndim - 1))
            partial = partial.lerp_(other, fraction) if position else torch.lerp(partial, other, fraction)
        return partial.to(dtype)


def carried_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which sums of tensors of ``dtype`` are carried."""
    return torch.promote_types(dtype, torch.float32)


class SampleTensor:
    """A small tensor, such as a bias or an embedding, with each sample's own value.

    The ends' tensors are referred to, not copied, in float32 and float64; in lower precision a float32 copy is kept.
    """

    def __init__(self, ends: Sequence[Tensor], batch: BatchWeights) -> None:
        carried = ends if is_shared(ends) else [end.to(carried_dtype(end.dtype)) for end in ends]
        self._ends = [end.detach()[None] for end in carried]
        self._batch = batch
        self._shared = is_shared(ends)

    def rows(self, dtype: torch.dtype) -> Tensor:
        """Values [N, *shape] for the current batch, or [1, *shape] if all ends have the same."""
        return self._ends[0].to(dtype) if self._shared else self._batch.interpolate(self._ends, dtype)

    def aligned(self, like: Tensor, *, dim: int) -> Tensor:
        """Values of a vector [D], shaped to broadcast against ``like`` [N, ..., D at ``dim``, ...], in its dtype."""
        rows = self.rows(like.dtype)
        shape = [1] * like.ndim
        shape[0], shape[dim] = rows.shape
        return rows.view(shape)


def is_shared(ends: Sequence[Tensor]) -> bool:
    """Whether all ends have the same values, so that no interpolation is needed."""
    return all(end is ends[0] or torch.equal(end, ends[0]) for end in ends[1:])
