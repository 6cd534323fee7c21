"""How long work takes on several workers, and what it waits for: arithmetic on counts and prices alone."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Bottleneck = Literal["reading", "device", "writing", "nothing"]


@dataclass(frozen=True, slots=True)
class Seconds:
    """What an item takes on its worker: reading in a thread ahead of the device, block by block, then writing."""

    read: float = 0.0
    device: float = 0.0
    write: float = 0.0
    blocks: int = 1

    @property
    def elapsed(self) -> float:
        """Wall time: the device waits for the first block, and nothing is read while it has the last one."""
        blocks = max(self.blocks, 1)
        overlapped = (blocks - 1) * max(self.read, self.device) / blocks
        return (self.read + self.device) / blocks + overlapped + self.write


def add_up(items: Iterable[Seconds]) -> Seconds:
    """Sum of the seconds of some items, by what they are spent on."""
    listed = list(items)
    return Seconds(
        read=sum(item.read for item in listed),
        device=sum(item.device for item in listed),
        write=sum(item.write for item in listed),
        blocks=sum(item.blocks for item in listed),
    )


def bottleneck(seconds: Seconds) -> Bottleneck:
    """What faster parts of would shorten the work most: reading and device overlap, writing adds to both."""
    if not (seconds.read or seconds.device or seconds.write):
        return "nothing"
    if seconds.write > max(seconds.read, seconds.device):
        return "writing"
    return "reading" if seconds.read > seconds.device else "device"


def makespan(elapsed: Sequence[float], workers: int) -> float:
    """Wall time of items that ``workers`` take in order, each the next one as soon as it is free."""
    free = [0.0] * min(workers, max(len(elapsed), 1))
    for seconds in elapsed:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)
