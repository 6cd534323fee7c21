"""Sets of row addresses at one bit each, to prove that a row appears exactly once and that methods cover the same rows.

A hundred million rows take 12.5 MB. Addresses may have holes (rejected images) and arrive in any order (batches grouped
by λ), so the bits lie in chunks that exist only where rows do.
"""

import numpy as np
from numpy.typing import NDArray

CHUNK_BITS = 16
CHUNK_ROWS = 1 << CHUNK_BITS


class RowSet:
    """A growing set of row addresses that notices repetitions.

    ``chunks`` holds, by row // 65536, the packed bits of 65,536 consecutive addresses (uint8 [8192]).
    """

    __slots__ = ("chunks",)

    def __init__(self) -> None:
        self.chunks: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return sum(int(np.bitwise_count(bits).sum()) for bits in self.chunks.values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowSet):
            return NotImplemented
        return self.missing(other)[0] == 0 and other.missing(self)[0] == 0

    __hash__ = None  # type: ignore[assignment]

    def add(self, rows: NDArray[np.int64]) -> int | None:
        """Add ``rows`` (int64 [n], any order); return the smallest one that is in the set twice now, or None."""
        repeated: list[int] = []
        chunk_of_row = rows >> CHUNK_BITS
        for chunk in np.unique(chunk_of_row):
            offsets = rows[chunk_of_row == chunk] & (CHUNK_ROWS - 1)
            count = np.bincount(offsets, minlength=CHUNK_ROWS)
            bits = np.packbits(count > 0)
            known = self.chunks.get(int(chunk), np.zeros_like(bits))
            twice = np.unpackbits(bits & known).astype(bool) | (count > 1)
            if twice.any():
                repeated.append(int(chunk) * CHUNK_ROWS + int(twice.argmax()))
            self.chunks[int(chunk)] = bits | known
        return min(repeated, default=None)

    def missing(self, reference: "RowSet") -> tuple[int, int | None]:
        """Count the rows of ``reference`` that are not in this set, and name the first of them (None: none)."""
        total, first = 0, None
        for chunk, wanted in sorted(reference.chunks.items()):
            lacking = wanted & ~self.chunks.get(chunk, np.zeros_like(wanted))
            count = int(np.bitwise_count(lacking).sum())
            if count and first is None:
                first = chunk * CHUNK_ROWS + int(np.unpackbits(lacking).argmax())
            total += count
        return total, first
