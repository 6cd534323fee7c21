"""Pixels of an archive, read ahead of the device in bounded pieces, unreadable rows set apart."""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.archives.shards import ChunkCache
from pipeline.errors import ArchiveError, ArchiveUnavailableError

Rows = NDArray[np.int64]
# Only the first read of a part is waited for; all others happen while the images before them are scored.
READS_PER_PART = 8


@dataclass(frozen=True, slots=True)
class PixelBlock:
    """Pixels [n, H, W, 3] of ``rows``, in their order; ``unreadable`` gives the reason by position, its pixels zero."""

    rows: Rows
    pixels: NDArray[np.uint8]
    unreadable: dict[int, str]


def read_block(archive: Archive, rows: Rows, cache: ChunkCache | None = None) -> PixelBlock:
    """Read ``rows``; a damaged chunk costs the rows in it, never the block (DESIGN rule 7)."""
    try:
        return PixelBlock(rows, archive.read(rows, cache), {})
    except ArchiveUnavailableError:
        raise
    except ArchiveError:
        mask, reasons = archive.readable(rows)
        pixels = np.zeros((len(rows), archive.geometry.height, archive.geometry.width, 3), dtype=np.uint8)
        pixels[mask] = archive.read(rows[mask])
        return PixelBlock(rows, pixels, {i: str(reason) for i, reason in enumerate(reasons) if not mask[i]})


def read_ahead(archive: Archive, pieces: Iterable[Rows], cache: ChunkCache | None = None) -> Iterator[PixelBlock]:
    """Blocks of ``pieces`` in order, the next one being read in a thread while the caller uses the present one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: Future[PixelBlock] | None = None
        for rows in pieces:
            following = pool.submit(read_block, archive, rows, cache)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def rows_per_read(archive: Archive, read_bytes: int, multiple: int) -> int:
    """How many rows to read at a time: within ``read_bytes`` of pixels and a share of a part, at least ``multiple``.

    A multiple of it, and of whole chunks too where they fit, so that none is decoded for two reads.
    """
    image_bytes = archive.geometry.height * archive.geometry.width * 3
    whole_chunks = math.lcm(multiple, archive.pixels.chunk_rows)
    limit = min(read_bytes // image_bytes, max(archive.part_rows // READS_PER_PART, whole_chunks))
    step = whole_chunks if whole_chunks <= limit else multiple
    return max(1, limit // step) * step


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch, which is given by its position."""

    batch: int
    start: int
    stop: int


def shared_reads(sizes: Iterable[int], limit: int) -> list[list[Piece]]:
    """What is read at once, at most ``limit`` rows, of batches of ``sizes`` rows: neighbours, large ones in pieces."""
    reads: list[list[Piece]] = []
    filled = limit
    for batch, size in enumerate(sizes):
        for start in range(0, size, limit):
            stop = min(start + limit, size)
            if filled + stop - start > limit:
                reads.append([])
                filled = 0
            reads[-1].append(Piece(batch, start, stop))
            filled += stop - start
    return reads
