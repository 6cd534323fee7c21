"""Image features of uint8 pixels in tiles of fixed shape, by generalist, expert or θ(λ).

The shape of every forward follows from the data alone (DESIGN rule 1): tiles of ``tile`` images, the last one padded,
so that results do not depend on who computes them or beside what.

Shapes: N images, H×W pixels, D embedding width, C classes.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.merging.segment import Segment
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.pair import Pair

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IMAGE_TOWER = "visual."


class Scorer:
    """The image side of a pair on one device: merges weights, runs tiles, counts every forward.

    Attributes
    ----------
    forward_calls, forward_images
        Forward passes and images (padding not counted) so far, per model: generalist, expert, merged.
    segment
        The line between the two image towers; counts merges.
    """

    def __init__(self, pair: Pair, *, device: torch.device, precision: str) -> None:
        self._dtype = PRECISIONS[precision]
        tower = deepcopy(cast("nn.Module", pair.model.visual)).to(device=device, dtype=self._dtype)
        self.segment = Segment(tower, self._image_tower(pair.generalist), self._image_tower(pair.expert))
        self._device = device
        self._mean = torch.tensor(pair.preprocessing.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(pair.preprocessing.std, device=device).view(1, 3, 1, 1)
        self.forward_calls = {"generalist": 0, "expert": 0, "merged": 0}
        self.forward_images = {"generalist": 0, "expert": 0, "merged": 0}

    def pair_logits(
        self, pixels: NDArray[np.uint8], heads: tuple[ClassHead, ClassHead], *, tile: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [N, C] of generalist and expert for pixels [N, H, W, 3]; each tile is uploaded once for both."""
        first, second = [], []
        for start in range(0, len(pixels), tile):
            inputs, count = self._tile(pixels[start : start + tile], tile)
            first.append(self._score("generalist", self.segment.generalist, inputs, heads[0], count))
            second.append(self._score("expert", self.segment.expert, inputs, heads[1], count))
        return np.concatenate(first), np.concatenate(second)

    def merged_logits(
        self, pixels: NDArray[np.uint8], lam: float, head: ClassHead, *, tile: int
    ) -> NDArray[np.float32]:
        """Logits [N, C] of θ(λ) for one batch of pixels [N, H, W, 3]: at most one merge, then tiles."""
        tower = self.segment.at(lam)
        parts = []
        for start in range(0, len(pixels), tile):
            inputs, count = self._tile(pixels[start : start + tile], tile)
            parts.append(self._score("merged", tower, inputs, head, count))
        return np.concatenate(parts)

    @torch.inference_mode()
    def _score(self, model: str, tower: nn.Module, inputs: Tensor, head: ClassHead, count: int) -> NDArray[np.float32]:
        self.forward_calls[model] += 1
        self.forward_images[model] += count
        features_ND = functional.normalize(tower(inputs), dim=-1)
        logits: NDArray[np.float32] = head.logits(features_ND)[:count].cpu().numpy()
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
            key.removeprefix(IMAGE_TOWER): value.to(self._dtype) if value.is_floating_point() else value
            for key, value in state.items()
            if key.startswith(IMAGE_TOWER)
        }
