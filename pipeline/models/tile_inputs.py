"""From uint8 pixels on the host to a tower's input on its device, and small tensors the same way."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Upload:
    """Copies to a device that do not wait for its work, nor the device's work for them where it does not need them.

    On CUDA a copy goes through pinned memory on a stream of its own, so that it runs while the tile before is computed.
    On the CPU the tensor is the caller's own memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device; work that is queued there from now on sees all of it."""
        if self._stream is None or tensor.device.type == "cuda":
            return tensor.to(self._device)
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            # torch keeps the pinned block from being used again until the copy is done.
            uploaded = tensor.pin_memory().to(self._device, non_blocking=True)
        compute.wait_stream(self._stream)
        # It belongs to the copying stream: without this it could be given away while the computing one still reads it.
        uploaded.record_stream(compute)
        return uploaded


class TileInputs:
    """Normalised inputs [size, 3, H, W] of a tower from pixels [n, H, W, 3], n <= size, padded with zero pixels."""

    def __init__(
        self,
        upload: Upload,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        dtype: torch.dtype,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._upload = upload
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self._dtype, self._layout = dtype, layout

    def __call__(self, pixels: NDArray[np.uint8], size: int) -> Tensor:
        """The pixels themselves are left as they are."""
        if len(pixels) < size:
            padding = np.zeros((size - len(pixels), *pixels.shape[1:]), dtype=np.uint8)
            pixels = np.concatenate([pixels, padding])
        uploaded = self._upload(torch.from_numpy(pixels))
        # The same operations in the same order as ToTensor and Normalize: equal to the bit in float32 on the CPU, while
        # CUDA divides by multiplying with the inverse.
        unit = uploaded.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return unit.sub_(self._mean).div_(self._std).to(self._dtype).contiguous(memory_format=self._layout)
