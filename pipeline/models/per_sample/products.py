"""Linear layers and convolutions with each sample's own weights.

Two exact ways, chosen by the device and the shapes alone (DESIGN rule 1):

- *Merged kernels*: each sample's kernel is interpolated and applied to that sample. On a CPU this costs little more
  than the plain layer where a kernel meets many positions, because interpolating a kernel takes one pass over it.
  The kernels of linear layers are interpolated in blocks that stay in cache.
- *Interpolated outputs*: each end's layer runs on the whole batch, and the outputs are interpolated, which is the
  same since the layer is linear in its parameters: Σ w_k·(x·W_kᵀ + b_k). It costs K plain layers. A GPU takes this way,
  as one launch per sample would cost it more than the products do.

The ends' parameters are used where they lie. Merged kernels need memory for one block, or for one convolution's kernel,
interpolated outputs for one more output.

In lower precision, merged kernels are rounded once, as a merge rounds them; interpolated outputs are rounded for each
end and once more.

Shapes: N samples, P positions, I input and O output width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.per_sample.batch import BatchWeights, SampleTensor, carried_dtype, is_shared

# Elements of a block of a linear kernel: 1 MiB of float32, so that the ends' blocks and the merged one share a cache.
BLOCK_ELEMENTS = 1 << 18
# Measured on one thread of an AMD EPYC: with fewer positions, or fewer multiplications per sample, two products of the
# whole batch take less time than merging. A convolution of one image is slower by itself than one of a batch.
LINEAR_POSITIONS, LINEAR_MULTIPLICATIONS = 24, 1 << 19
CONVOLUTION_POSITIONS, CONVOLUTION_MULTIPLICATIONS = 128, 1 << 22


class SampleLinear(nn.Module):
    """``nn.Linear`` with each sample's own weight [O, I] and bias [O]; inputs [N, ..., I]."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, batch: BatchWeights) -> None:
        super().__init__()
        self._kernel = _Kernel(weights, biases, batch)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, ..., O]."""
        kernel = self._kernel
        weight = kernel.weights[0]
        positions = math.prod(x.shape[1:-1])
        if kernel.shared or not _merging_pays(x, positions, weight.numel(), LINEAR_POSITIONS, LINEAR_MULTIPLICATIONS):
            return kernel.apply(x, functional.linear, channels=-1)
        x_NPI = x.reshape(len(x), positions, x.shape[-1])
        y_NPO = x.new_empty(len(x), positions, len(weight))
        _multiply_by_merged(x_NPI, kernel, y_NPO)
        return y_NPO.view(*x.shape[:-1], len(weight))


class SampleConv2d(nn.Module):
    """``nn.Conv2d`` with zero padding and each sample's own kernel and bias; inputs [N, C, H, W]."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor] | None,
        batch: BatchWeights,
        **geometry: Any,
    ) -> None:
        super().__init__()
        self._kernel = _Kernel(weights, biases, batch)
        self._geometry = geometry

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, O, H', W']."""
        kernel = self._kernel
        weight = kernel.weights[0]
        strides = self._geometry["stride"]
        positions = (x.shape[2] // strides[0]) * (x.shape[3] // strides[1])
        if kernel.shared or not _merging_pays(
            x, positions, weight.numel(), CONVOLUTION_POSITIONS, CONVOLUTION_MULTIPLICATIONS
        ):
            return kernel.apply(x, functional.conv2d, channels=1, **self._geometry)
        merged = torch.empty_like(weight)
        ends = [end.to(carried_dtype(end.dtype)) for end in kernel.weights]
        outputs = []
        for image, fractions, bias in zip(
            x.unsqueeze(1), kernel.batch.host_fractions, kernel.bias_rows(x), strict=True
        ):
            _merge(ends, fractions, merged)
            outputs.append(functional.conv2d(image, merged, bias, **self._geometry))
        return torch.cat(outputs)


class _Kernel:
    """Weights and biases of one layer in K ends."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, batch: BatchWeights) -> None:
        self.weights = [weight.detach() for weight in weights]
        self.shared = is_shared(self.weights)
        self.batch = batch
        self._biases = None if biases is None else [bias.detach() for bias in biases]
        self._bias = None if biases is None else SampleTensor(biases, batch)

    def apply(self, x: Tensor, operation: Callable[..., Tensor], *, channels: int, **options: Any) -> Tensor:
        """Output of the plain operation, once if all ends have the same weights, else of each end, interpolated."""
        if self.shared:
            y = operation(x, self.weights[0], **options)
            return y if self._bias is None else y.add_(self._bias.aligned(y, dim=channels))
        biases: Sequence[Tensor | None] = self._biases or [None] * len(self.weights)
        outputs = [operation(x, w, b, **options) for w, b in zip(self.weights, biases, strict=True)]
        return self.batch.interpolate(outputs, x.dtype)

    def bias_rows(self, like: Tensor) -> Sequence[Tensor | None]:
        """Bias [O] of each sample."""
        if self._bias is None:
            return [None] * self.batch.size
        return self._bias.rows(like.dtype).expand(self.batch.size, -1).unbind()


def _merging_pays(x: Tensor, positions: int, elements: int, least_positions: int, least_multiplications: int) -> bool:
    return x.device.type == "cpu" and positions >= least_positions and positions * elements >= least_multiplications


def _merge(ends: Sequence[Tensor], fractions: Sequence[float], merged: Tensor) -> None:
    """Interpolate K tensors for one sample into ``merged``; the sum is carried in the precision of ``ends``."""
    partial = merged if merged.dtype == ends[0].dtype else torch.empty_like(ends[0])
    torch.lerp(ends[0], ends[1], fractions[0], out=partial)
    for end, fraction in zip(ends[2:], fractions[1:], strict=True):
        partial.lerp_(end, fraction)
    if partial is not merged:
        merged.copy_(partial)


def _multiply_by_merged(x_NPI: Tensor, kernel: _Kernel, y_NPO: Tensor) -> None:
    """Each sample's positions times its own merged weight, block by block of outputs, plus its bias."""
    outputs, inputs = kernel.weights[0].shape
    rows = min(outputs, max(1, BLOCK_ELEMENTS // inputs))
    scratch = torch.empty_like(kernel.weights[0][:rows])
    biases = kernel.bias_rows(x_NPI)
    for start in range(0, outputs, rows):
        block = slice(start, min(start + rows, outputs))
        ends = [weight[block].to(carried_dtype(weight.dtype)) for weight in kernel.weights]
        merged = scratch[: block.stop - block.start]
        samples = zip(x_NPI, y_NPO[..., block].unbind(), kernel.batch.host_fractions, biases, strict=True)
        for x_PI, y_PO, fractions, bias in samples:
            _merge(ends, fractions, merged)
            if bias is None:
                torch.mm(x_PI, merged.T, out=y_PO)
            else:
                torch.addmm(bias[block], x_PI, merged.T, out=y_PO)
