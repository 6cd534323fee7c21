"""How far a piece of work makes memory grow."""

import threading
import time
from collections.abc import Callable

import psutil
import torch

from pipeline.stages.memory import release_freed_memory

SAMPLE_SECONDS = 0.002


def peak_growth(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that memory grew by at the peak of ``work``: torch's own count on CUDA, else the process's resident set.

    The resident set is sampled every few milliseconds, so that shorter peaks are missed.
    """
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return max(0, torch.cuda.max_memory_allocated() - allocated)
    # What earlier work freed but malloc kept would be used again, and not be seen.
    release_freed_memory()
    process = psutil.Process()
    before: int = process.memory_info().rss
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(0, peak - before)
