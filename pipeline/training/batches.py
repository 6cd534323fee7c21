"""Which images make a batch, and how they are altered: functions of the seed, the epoch and the step alone.

Legend: B images of a batch, H height, W width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one set, by the set's position in the pool."""

    set_index: int
    rows: npt.NDArray[np.int64]


def generator_for(*keys: int) -> torch.Generator:
    """Make a CPU generator that depends on ``keys`` alone, e.g. (seed, epoch, step)."""
    return torch.Generator().manual_seed(seed_for(*keys))


def seed_for(*keys: int) -> int:
    """Fold ``keys`` into one seed; neighbouring keys give unrelated seeds."""
    digest = hashlib.sha256(":".join(map(str, keys)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def steps_per_epoch(sizes: Sequence[int], batch_size: int) -> int:
    """Count the batches of one epoch over sets of ``sizes`` images."""
    return sum(_batch_count(size, batch_size) for size in sizes)


def epoch_batches(sizes: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[Batch]:
    """Order one epoch: every image once, each batch from one set, the sets interleaved at random.

    A set is cut into batches of nearly equal size, none above ``batch_size``, so that no epoch ends on a ragged
    batch of one image.
    """
    generator = generator_for(seed, epoch)
    batches: list[Batch] = []
    for set_index, size in enumerate(sizes):
        rows = torch.randperm(size, generator=generator).numpy()
        batches += [Batch(set_index, part) for part in np.array_split(rows, _batch_count(size, batch_size))]
    return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]


def augment(images_BHWC: Tensor, *, padding: int, horizontal_flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop of the image reflected ``padding`` pixels past each edge, then a mirror image in half of the cases.

    One gather on the whole batch, in its own type and on its own device; ``padding`` must be smaller than the image.
    """
    count, height, width, _ = images_BHWC.shape
    assert padding < min(height, width)
    shifts_B2 = torch.randint(-padding, padding + 1, (count, 2), generator=generator)
    flipped_B = torch.rand(count, generator=generator) < 0.5
    rows_BH = _reflect(shifts_B2[:, :1] + torch.arange(height), height)
    columns_BW = _reflect(shifts_B2[:, 1:] + torch.arange(width), width)
    if horizontal_flip:
        columns_BW = torch.where(flipped_B[:, None], columns_BW.flip(1), columns_BW)
    device = images_BHWC.device
    batch_B11 = torch.arange(count, device=device)[:, None, None]
    return images_BHWC[batch_B11, rows_BH.to(device)[:, :, None], columns_BW.to(device)[:, None, :]]


def normalise(images_BHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Turn uint8 pixels into the model's float32 input [B, C, H, W]."""
    return ((images_BHWC.float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2).contiguous()


def _batch_count(size: int, batch_size: int) -> int:
    return -(-size // batch_size)


def _reflect(positions: Tensor, length: int) -> Tensor:
    return (length - 1) - ((length - 1) - positions.abs()).abs()
