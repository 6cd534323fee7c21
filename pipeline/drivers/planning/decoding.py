"""How many images are decoded to read others: whole chunks, and none that a worker still holds."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.archives.archive import Archive


@dataclass(slots=True)
class WindowReader:
    """Counts what is decoded of a window, as :mod:`pipeline.archives.shards` does with ``room`` bytes of cache."""

    archive: Archive
    room: int = 0
    _held: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def decode(self, rows: NDArray[np.int64]) -> int:
        """Images that are decoded to read ``rows`` at once; chunks not wanted whole are kept while there is room."""
        chunk_rows, geometry = self.archive.pixels.chunk_rows, self.archive.geometry
        chunks, wanted = np.unique(rows // chunk_rows, return_counts=True)
        fresh = ~np.isin(chunks, self._held)
        limit = self.room // (chunk_rows * geometry.height * geometry.width * 3)
        kept = chunks[fresh & (wanted < chunk_rows)][: max(limit - len(self._held), 0)]
        self._held = np.append(self._held, kept)
        return int(fresh.sum()) * chunk_rows
