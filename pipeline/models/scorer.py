"""Logits of uint8 pixels in tiles of fixed shape, by each source model or by θ(w).

The shape of every forward follows from the data alone (DESIGN rule 1): tiles of ``tile`` images, the last one padded,
so that results do not depend on who computes them or beside what.

Shapes: N images, H×W pixels, D feature width, C classes, K sources.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.merging.distances import IMAGE_SIDE
from pipeline.merging.segment import Segment
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.per_sample import PerSampleTower
from pipeline.models.sources import SourceModels

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MERGED = "merged"
PER_SAMPLE = "per-sample"


class Scorer:
    """The image side of K source models on one device: merges weights, runs tiles, counts every forward.

    Attributes
    ----------
    forward_calls, forward_images
        Forward passes and images (padding not counted) so far, by source name, ``merged`` and ``per-sample``.
    segment
        The simplex between the image towers, in the order of the sources' names; counts merges.
    """

    def __init__(self, models: SourceModels, *, device: torch.device, precision: str) -> None:
        self._dtype = PRECISIONS[precision]
        tower = deepcopy(cast("nn.Module", models.model.visual)).to(device=device, dtype=self._dtype)
        self.segment = Segment(tower, [self._image_tower(state) for state in models.states.values()])
        self._device = device
        self._mean = torch.tensor(models.preprocessing.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(models.preprocessing.std, device=device).view(1, 3, 1, 1)
        self._names = models.names
        self._per_sample: tuple[tuple[str, str], PerSampleTower] | None = None
        self.forward_calls = dict.fromkeys([*models.names, MERGED], 0)
        self.forward_images = dict.fromkeys([*models.names, MERGED], 0)

    def source_logits(
        self, pixels: NDArray[np.uint8], heads: Sequence[ClassHead], *, tile: int
    ) -> list[NDArray[np.float32]]:
        """Logits [N, C] of each source for pixels [N, H, W, 3], with its own head; each tile is uploaded once."""
        sources = [*zip(self._names, self.segment.ends, heads, strict=True)]
        tiles = []
        for start in range(0, len(pixels), tile):
            inputs, count = self._tile(pixels[start : start + tile], tile)
            tiles.append([self._score(name, tower, inputs, head, count) for name, tower, head in sources])
        return [np.concatenate(parts) for parts in zip(*tiles, strict=True)]

    def merged_logits(
        self, pixels: NDArray[np.uint8], weights: Sequence[float], head: ClassHead, *, tile: int
    ) -> NDArray[np.float32]:
        """Logits [N, C] of θ(w) for one batch of pixels [N, H, W, 3]: at most one merge, then tiles."""
        tower = self.segment.at(weights)
        parts = []
        for start in range(0, len(pixels), tile):
            inputs, count = self._tile(pixels[start : start + tile], tile)
            parts.append(self._score(MERGED, tower, inputs, head, count))
        return np.concatenate(parts)

    def per_sample_logits(
        self,
        pixels: NDArray[np.uint8],
        lambdas: Sequence[float],
        heads: Sequence[ClassHead],
        *,
        ends: tuple[str, str],
        tile: int,
    ) -> NDArray[np.float32]:
        """Logits [N, C] of pixels [N, H, W, 3], each image by its own λ [N] between two sources, and its own head.

        Equal to one merge for each image to rounding, but in full tiles, without any merge. A tile counts as two
        forward calls, one for each end whose weights it multiplies with. Raises
        :class:`~pipeline.models.per_sample.UnsupportedLayerError` for a tower whose exact form is not known.
        """
        tower = self.per_sample_tower(ends)
        parts = []
        for start in range(0, len(pixels), tile):
            inputs, count = self._tile(pixels[start : start + tile], tile)
            own = torch.zeros(tile, dtype=torch.float64)
            own[:count] = torch.tensor(lambdas[start : start + count], dtype=torch.float64)
            features = tower(inputs, torch.stack([1.0 - own, own], dim=1))
            self.forward_calls[PER_SAMPLE] = self.forward_calls.get(PER_SAMPLE, 0) + len(ends)
            self.forward_images[PER_SAMPLE] = self.forward_images.get(PER_SAMPLE, 0) + len(ends) * count
            own_heads = heads[start : start + count]
            parts += [head.logits(features[i : i + 1]).cpu().numpy() for i, head in enumerate(own_heads)]
        return np.concatenate(parts)

    def per_sample_tower(self, ends: tuple[str, str]) -> PerSampleTower:
        """The exact per-sample form of two sources' image towers, made on first use; see :meth:`per_sample_logits`."""
        if self._per_sample is None or self._per_sample[0] != ends:
            towers = [self.segment.ends[self._names.index(name)] for name in ends]
            self._per_sample = (ends, PerSampleTower(towers))
        return self._per_sample[1]

    @torch.inference_mode()
    def _score(self, model: str, tower: nn.Module, inputs: Tensor, head: ClassHead, count: int) -> NDArray[np.float32]:
        self.forward_calls[model] += 1
        self.forward_images[model] += count
        logits: NDArray[np.float32] = head.logits(tower(inputs))[:count].cpu().numpy()
        return logits

    @torch.inference_mode()
    def _tile(self, pixels: NDArray[np.uint8], tile: int) -> tuple[Tensor, int]:
        """Normalised input [tile, 3, H, W], padded with zero pixels, and the number of real images in it."""
        count = len(pixels)
        if count < tile:
            padding = np.zeros((tile - count, *pixels.shape[1:]), dtype=np.uint8)
            pixels = np.concatenate([pixels, padding])
        uploaded = torch.from_numpy(pixels).to(self._device)
        # The same operations in the same order as ToTensor and Normalize, so that float32 inputs are equal to the bit.
        unit = uploaded.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return unit.sub_(self._mean).div_(self._std).to(self._dtype), count

    def _image_tower(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key.removeprefix(IMAGE_SIDE): value.to(self._dtype) if value.is_floating_point() else value
            for key, value in state.items()
            if key.startswith(IMAGE_SIDE)
        }
