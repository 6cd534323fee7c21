"""Normalisation and scaling layers with each sample's own parameters.

Shapes: N samples, C channels, H×W pixels, D feature width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.per_sample.batch import SampleTensor, carried_dtype


class SampleLayerNorm(nn.Module):
    """Layer normalisation whose gain and bias [D] are each sample's own; inputs [N, ..., D].

    The normalisation itself is the same for all samples. Computed in at least float32 and rounded once, as the fused
    plain layer is.
    """

    def __init__(self, gain: SampleTensor, bias: SampleTensor | None, eps: float) -> None:
        super().__init__()
        self._gain = gain
        self._bias = bias
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised inputs, in their shape and dtype."""
        normal = functional.layer_norm(x.to(carried_dtype(x.dtype)), x.shape[-1:], eps=self._eps)
        gain = self._gain.aligned(normal, dim=-1)
        if self._bias is None:
            return (normal * gain).to(x.dtype)
        return torch.addcmul(self._bias.aligned(normal, dim=-1), normal, gain).to(x.dtype)


class SampleBatchNorm2d(nn.Module):
    """Batch normalisation in evaluation mode by each sample's own statistics, gain and bias; inputs [N, C, H, W].

    Mean and variance are interpolated before the square root is taken, as in a merged state dict. ``after`` are modules
    without parameters that the layer applies to its result, such as timm's activation.
    """

    def __init__(
        self,
        mean: SampleTensor,
        variance: SampleTensor,
        affine: tuple[SampleTensor, SampleTensor] | None,
        eps: float,
        after: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self._mean = mean
        self._variance = variance
        self._affine = affine
        self._eps = eps
        self.after = nn.Sequential(*after)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised inputs, in their shape and dtype."""
        dtype = carried_dtype(x.dtype)
        scale = torch.rsqrt(self._variance.rows(dtype) + self._eps)
        shift = -self._mean.rows(dtype) * scale
        if self._affine is not None:
            gain, bias = (tensor.rows(dtype) for tensor in self._affine)
            scale, shift = scale * gain, shift * gain + bias
        y = torch.addcmul(shift[..., None, None], x.to(dtype), scale[..., None, None]).to(x.dtype)
        normalised: Tensor = self.after(y)
        return normalised


class SampleScale(nn.Module):
    """LayerScale: inputs [N, ..., D] times each sample's own factors [D]."""

    def __init__(self, gamma: SampleTensor) -> None:
        super().__init__()
        self._gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """Scaled inputs, in their shape and dtype."""
        return x * self._gamma.aligned(x, dim=-1)
