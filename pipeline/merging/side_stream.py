"""A CUDA stream for merges, ordered with the forwards that use what is merged; on the CPU, nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """Lets merges into numbered buffers run beside the forwards of the current stream.

    A merge waits for the forwards that were queued before its buffer was released, forwards wait for the merge of the
    buffer that they are given, and neither waits for anything else.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._merged: dict[int, torch.cuda.Event] = {}
        self._released: dict[int, torch.cuda.Event] = {}
        if self._stream is not None:
            # What was queued so far made the ends.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def merging(self, buffer: int) -> Iterator[None]:
        """What is queued inside goes to the side stream, once ``buffer`` is no longer used."""
        if self._stream is None:
            yield
            return
        if buffer in self._released:
            self._stream.wait_event(self._released[buffer])
        with torch.cuda.stream(self._stream):
            yield
            self._merged[buffer] = self._stream.record_event()

    def hand_out(self, buffer: int) -> None:
        """Have what is queued from now on wait for the last merge into ``buffer``."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._merged[buffer])

    def release(self, buffer: int) -> None:
        """Declare that what was queued so far is all that uses ``buffer``."""
        if self._stream is not None:
            self._released[buffer] = torch.cuda.current_stream(self._device).record_event()
