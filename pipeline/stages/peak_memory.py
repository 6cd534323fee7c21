"""The most memory that some work takes beyond what was held before it."""

import threading
from types import TracebackType
from typing import Self

import psutil
import torch

from pipeline.memory import release_freed_memory

SAMPLE_SECONDS = 0.005


class PeakMemory:
    """Context that measures ``bytes``: the device's own count on CUDA, else this process's resident memory, sampled."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._done = threading.Event()
        self._before = self._peak = 0
        self._thread: threading.Thread | None = None
        self.bytes = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        # What earlier work freed but malloc kept would be used again, and not be seen.
        release_freed_memory()
        self._before = self._peak = resident_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            torch.cuda.synchronize(self._device)
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._thread.join()
        self.bytes = self._peak - self._before

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, resident_bytes())


def resident_bytes() -> int:
    """Resident memory of this process."""
    resident: int = psutil.Process().memory_info().rss
    return resident
