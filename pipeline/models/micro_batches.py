"""What happens when memory runs out: the micro-batch, all images that a tower sees at once, is halved for good."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import OutOfMemoryError, one_line
from pipeline.memory import release_freed_memory

# Besides torch.OutOfMemoryError and MemoryError: torch's allocator on the CPU (its text differs by system), CUDA's own
# calls (pinned memory, cuBLAS's workspace), C++ libraries below torch, and oneDNN and cuDNN, which name no cause: torch
# drops those of the ways to convolve that had no room. If it was another one, not even one image will do, and the text
# is quoted then.
PHRASES = (
    "DefaultCPUAllocator",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "bad_alloc",
    "bad allocation",
    "could not create a primitive",
    "could not create a memory object",
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm",
)
REMEDY = "lower compute.workers, set precision: bf16, or run on a machine with more memory"


class MicroBatches:
    """Cuts tiles into micro-batches: whole tiles until memory runs out, from then on half as many images, and so on.

    One object serves all scorers of a process, so that what one of them found out is not found out again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._limit: int | None = None
        self._smallest: int | None = None

    def run[Result](self, images: int, tile: int, work: Callable[[int, int, int], Result], models: str) -> list[Result]:
        """Results of ``work(start, stop, size)`` for all images, in order: whole tiles, or micro-batches of each tile.

        ``size`` is what ``work`` is to pad images ``start`` to ``stop`` to. What did not fit is done again in smaller
        pieces. :class:`OutOfMemoryError`, naming ``models``, when a single image does not fit.
        """
        results = []
        for first in range(0, images, tile):
            start, end = first, min(first + tile, images)
            while start < end:
                size = min(tile, self._limit or tile)
                stop = min(start + size, end)
                try:
                    results.append(work(start, stop, size))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    reason = one_line(error)
                else:
                    if size < tile:
                        self._smallest = min(size, self._smallest or size)
                    start = stop
                    continue
                # Only here, after the handler, are the error and the tensors that its traceback holds gone.
                self._halve(size, reason, models)
        return results

    def take_smallest(self) -> int | None:
        """Size of the smallest micro-batch since the last call; None while all were whole tiles."""
        smallest, self._smallest = self._smallest, None
        return smallest

    def _halve(self, size: int, reason: str, models: str) -> None:
        if size == 1:
            raise OutOfMemoryError(
                f"{models}: not even one image at a time fits into the memory of {self._device.type} ({reason}); "
                f"{REMEDY}"
            )
        self._limit = size // 2
        gc.collect()
        # What an allocator keeps of the pieces that fitted is in the way of the smaller ones.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            release_freed_memory()


@contextmanager
def all_at_once(models: str, purpose: str, device: torch.device) -> Iterator[None]:
    """Turn memory that runs out where nothing can be halved into :class:`OutOfMemoryError`: whose, and what for."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{models}: the memory of {device.type} does not suffice to {purpose} ({one_line(error)}); {REMEDY}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the device's or the host's, ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)
