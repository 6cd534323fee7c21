"""Logits of uint8 pixels in tiles of fixed shape, by each source model or by θ(w).

The shape of every forward follows from the data alone (DESIGN rule 1): tiles of ``tile`` images, the last one padded,
so that results do not depend on who computes them or beside what. Only where memory runs out are tiles cut, see
:mod:`pipeline.models.micro_batches`. Logits stay on the device until all tiles of a call are queued there.

Shapes: N images, H×W pixels, D feature width, C classes, K sources.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.merging.distances import IMAGE_SIDE
from pipeline.merging.segment import Segment
from pipeline.models.class_embeddings import ClassHead, logits_by_own_heads
from pipeline.models.compiled import CompiledTowers
from pipeline.models.micro_batches import MicroBatches, all_at_once
from pipeline.models.numeric_kind import require_full_precision
from pipeline.models.per_sample import PerSampleTower
from pipeline.models.sources import SourceModels
from pipeline.models.tile_inputs import TileInputs, Upload

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MERGED = "merged"
PER_SAMPLE = "per-sample"


class Scorer:
    """The image side of K source models on one device: merges weights, runs tiles, counts every forward.

    Parameters
    ----------
    models
        The sources, whose order is that of all weights.
    device, precision
        Of the image towers; heads are applied in float32.
    memory_format
        ``contiguous`` or ``channels_last``: how images and the kernels of convolutions lie.
    compiled
        Whether the sources' and merged towers are compiled. The exact per-sample form is not: it reads each image's λ
        on the host, and would be compiled anew for every λ.
    micro_batches
        Another scorer's of the same process, by default its own.
    merge_ahead
        Whether the next batch's weights are merged beside the forwards of the present one. By default on CUDA, where it
        takes no time; on a CPU it would only take memory.

    Attributes
    ----------
    merge_ahead
        As given, or as follows from the device.
    forward_calls, forward_images
        Forward passes and images (padding not counted) so far, by source name, ``merged`` and ``per-sample``. A pass
        that memory did not suffice for is not counted; one that has to be repeated because of another is.
    segment
        The simplex between the image towers, in the order of the sources' names; counts merges.
    micro_batches
        How tiles are cut since memory ran out.
    """

    def __init__(
        self,
        models: SourceModels,
        *,
        device: torch.device,
        precision: str,
        memory_format: str = "contiguous",
        compiled: bool = False,
        micro_batches: MicroBatches | None = None,
        merge_ahead: bool | None = None,
    ) -> None:
        require_full_precision()
        self._precision, self._dtype = precision, PRECISIONS[precision]
        self.merge_ahead = device.type == "cuda" if merge_ahead is None else merge_ahead
        self._memory_format = memory_format
        with all_at_once(", ".join(models.names), "hold the image towers", device):
            self.segment = Segment(
                deepcopy(cast("nn.Module", models.model.visual)).to(device=device, dtype=self._dtype),
                [self._image_tower(state) for state in models.states.values()],
                ahead=self.merge_ahead,
                channels_last=memory_format == "channels_last",
            )
        self._compiled = CompiledTowers() if compiled else None
        self._device = device
        self._upload = Upload(device)
        preprocessing = models.preprocessing
        self._inputs = TileInputs(
            self._upload,
            preprocessing.mean,
            preprocessing.std,
            device=device,
            dtype=self._dtype,
            layout=MEMORY_FORMATS[memory_format],
        )
        self._names = models.names
        self._per_sample: tuple[tuple[str, str], PerSampleTower] | None = None
        self.micro_batches = micro_batches or MicroBatches(device)
        self.forward_calls = dict.fromkeys([*models.names, MERGED], 0)
        self.forward_images = dict.fromkeys([*models.names, MERGED], 0)

    def alike(self, models: SourceModels) -> "Scorer":
        """Scorer of other models with this one's settings, and its micro-batches."""
        return Scorer(
            models,
            device=self._device,
            precision=self._precision,
            memory_format=self._memory_format,
            compiled=self._compiled is not None,
            micro_batches=self.micro_batches,
            merge_ahead=self.merge_ahead,
        )

    def source_logits(
        self, pixels: NDArray[np.uint8], heads: Sequence[ClassHead], *, tile: int
    ) -> list[NDArray[np.float32]]:
        """Logits [N, C] of each source for pixels [N, H, W, 3], with its own head; each tile is uploaded once."""
        sources = [*zip(self._names, self.segment.ends, map(self._on_device, heads), strict=True)]

        def score(inputs: Tensor, start: int, stop: int) -> Tensor:
            scored = [self._score(name, tower, inputs, head, stop - start) for name, tower, head in sources]
            return torch.stack(scored, dim=1)

        together = on_host(self._in_tiles(pixels, tile, score, ", ".join(self._names)))
        return [together[:, source] for source in range(len(sources))]

    def merged_logits(
        self,
        pixels: NDArray[np.uint8],
        weights: Sequence[float],
        head: ClassHead,
        *,
        tile: int,
        following: Sequence[float] | None = None,
    ) -> NDArray[np.float32]:
        """What :meth:`merged` gives, once it is computed and on the host."""
        return on_host(self.merged(pixels, weights, head, tile=tile, following=following))

    def merged(
        self,
        pixels: NDArray[np.uint8],
        weights: Sequence[float],
        head: ClassHead,
        *,
        tile: int,
        following: Sequence[float] | None = None,
    ) -> Tensor:
        """Logits [N, C] of θ(w) for one batch of pixels [N, H, W, 3]: at most one merge, then tiles.

        They stay on the device, where on CUDA they may only be queued: who scores several batches need not wait for
        each. ``following`` are the weights of the batch that comes next, where known; they may be merged ahead.
        """
        with all_at_once(MERGED, "merge", self._device):
            tower, own_head = self.segment.at(weights), self._on_device(head)
            if self.merge_ahead and following is not None:
                self.segment.prepare(following)

        def score(inputs: Tensor, start: int, stop: int) -> Tensor:
            return self._score(MERGED, tower, inputs, own_head, stop - start)

        return self._in_tiles(pixels, tile, score, MERGED)

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

        def score(inputs: Tensor, start: int, stop: int) -> Tensor:
            own = torch.zeros(len(inputs), dtype=torch.float64)
            own[: stop - start] = torch.tensor(lambdas[start:stop], dtype=torch.float64)
            features = tower(inputs, torch.stack([1.0 - own, own], dim=1))
            self._count(PER_SAMPLE, calls=len(ends), images=len(ends) * (stop - start))
            return self._logits_by_own_heads(features[: stop - start], heads[start:stop])

        return on_host(self._in_tiles(pixels, tile, score, PER_SAMPLE))

    def per_sample_tower(self, ends: tuple[str, str]) -> PerSampleTower:
        """The exact per-sample form of two sources' image towers, made on first use; see :meth:`per_sample_logits`."""
        if self._per_sample is None or self._per_sample[0] != ends:
            towers = [self.segment.ends[self._names.index(name)] for name in ends]
            with all_at_once(PER_SAMPLE, "make the exact form", self._device):
                self._per_sample = (ends, PerSampleTower(towers))
        return self._per_sample[1]

    @torch.inference_mode()
    def _in_tiles(
        self, pixels: NDArray[np.uint8], tile: int, score: Callable[[Tensor, int, int], Tensor], models: str
    ) -> Tensor:
        """What ``score(inputs, start, stop)`` gives for all tiles, in one piece."""

        def work(start: int, stop: int, size: int) -> Tensor:
            return score(self._inputs(pixels[start:stop], size), start, stop)

        return torch.cat(self.micro_batches.run(len(pixels), tile, work, models))

    def _score(self, model: str, tower: nn.Module, inputs: Tensor, head: ClassHead, count: int) -> Tensor:
        features = tower(inputs) if self._compiled is None else self._compiled(tower, inputs)
        logits = head.logits(features)[:count]
        self._count(model, calls=1, images=count)
        return logits

    def _logits_by_own_heads(self, features_ND: Tensor, heads: Sequence[ClassHead]) -> Tensor:
        if self._device.type == "cpu":
            return torch.cat([head.logits(features_ND[i : i + 1]) for i, head in enumerate(heads)])
        return logits_by_own_heads(features_ND, heads, self._upload)

    def _count(self, model: str, *, calls: int, images: int) -> None:
        self.forward_calls[model] = self.forward_calls.get(model, 0) + calls
        self.forward_images[model] = self.forward_images.get(model, 0) + images

    def _on_device(self, head: ClassHead) -> ClassHead:
        if self._device.type == "cpu":
            return head
        return replace(head, embeddings_CD=self._upload(head.embeddings_CD), logit_bias=self._upload(head.logit_bias))

    def _image_tower(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key.removeprefix(IMAGE_SIDE): value.to(self._dtype) if value.is_floating_point() else value
            for key, value in state.items()
            if key.startswith(IMAGE_SIDE)
        }


def on_host(logits: Tensor) -> NDArray[np.float32]:
    """Logits as an array; waits for the device."""
    array: NDArray[np.float32] = logits.cpu().numpy()
    return array
