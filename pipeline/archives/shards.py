"""Chunks of a sharded Zarr array decoded straight into the place where their images are wanted.

zarr decodes a chunk into a buffer of its own, copies that into one for its shard and that into the result; with one
image in a chunk this costs half as much again as decoding does (``pipeline bench reads``). The layout is Zarr v3's
``sharding_indexed``: a shard ends with its index, offset and length of each chunk as little-endian uint64, and the
index's CRC-32C. Every chunk is one zstd frame with a checksum.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

ENTRY_BYTES = 16
CRC_BYTES = 4
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Bytes of a frame's content size by the two upper bits of its descriptor; no size at all is not what numcodecs writes.
CONTENT_SIZE_BYTES = (1, 2, 4, 8)

type Pixels = NDArray[np.uint8]
type Rows = NDArray[np.int64]

ZSTD = Zstd(checksum=True)


@dataclass(slots=True)
class ChunkCache:
    """Decoded chunks by number, of which only a part was wanted, until ``limit`` bytes are held: the first ones stay.

    Rows sorted by λ touch every chunk of a window in every slice. In rounds like that a cache that gave up the oldest
    would give up each chunk just before it is wanted again. ``decoded`` counts the chunks that were decoded.
    """

    limit: int
    held: int = 0
    decoded: int = 0
    chunks: dict[int, Pixels] = field(default_factory=dict)

    def keep(self, number: int, chunk: Pixels) -> None:
        """Hold a chunk if there is room for it."""
        if self.held + chunk.nbytes <= self.limit:
            self.chunks[number] = chunk
            self.held += chunk.nbytes


@dataclass(frozen=True, slots=True)
class ShardReader:
    """Shards of the array at ``path``: uint8 images of ``image_shape``."""

    path: Path
    image_shape: tuple[int, int, int]
    chunk_rows: int
    shard_rows: int

    def read(self, rows: Rows, cache: ChunkCache) -> Pixels:
        """Images [n, H, W, 3] of ``rows`` in their order, each chunk decoded at most once.

        ValueError or RuntimeError for a shard that is lost, cut short or changed; OSError of the file system as it is.
        """
        out = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
        order = np.argsort(rows, kind="stable")
        cuts = np.flatnonzero(np.diff(rows[order] // self.chunk_rows)) + 1
        by_shard: dict[int, list[Rows]] = {}
        for positions in np.split(order, cuts) if len(rows) else []:
            number = int(rows[positions[0]]) // self.chunk_rows
            if number in cache.chunks:
                out[positions] = cache.chunks[number][rows[positions] % self.chunk_rows]
            else:
                by_shard.setdefault(number * self.chunk_rows // self.shard_rows, []).append(positions)
        for shard, wanted in by_shard.items():
            self._read_shard(shard, rows, wanted, out, cache)
        return out

    def _read_shard(self, shard: int, rows: Rows, wanted: Sequence[Rows], out: Pixels, cache: ChunkCache) -> None:
        """Decode the chunks of one shard whose images go to the positions ``wanted`` of ``out``."""
        chunks = self.shard_rows // self.chunk_rows
        chunk_shape = (self.chunk_rows, *self.image_shape)
        chunk_bytes = math.prod(chunk_shape)
        try:
            descriptor = os.open(self.path / "c" / str(shard) / "0" / "0" / "0", os.O_RDONLY)
        except FileNotFoundError as error:
            msg = f"shard {shard} is not there"
            raise ValueError(msg) from error
        try:
            index = _read_index(descriptor, shard, chunks)
            buffer = memoryview(bytearray(int(index[:, 1].max())))
            for positions in wanted:
                own, first = rows[positions], int(positions[0])
                number = int(own[0]) // self.chunk_rows
                frame = _read_frame(descriptor, buffer, index[number % chunks], chunk_bytes, number)
                cache.decoded += 1
                if len(own) == self.chunk_rows and _ascends(own) and _ascends(positions):
                    ZSTD.decode(frame, out[first : first + self.chunk_rows].reshape(-1))
                    continue
                chunk = np.empty(chunk_shape, dtype=np.uint8)
                ZSTD.decode(frame, chunk.reshape(-1))
                out[positions] = chunk[own % self.chunk_rows]
                cache.keep(number, chunk)
        finally:
            os.close(descriptor)


def _ascends(numbers: Rows) -> bool:
    return bool(np.all(np.diff(numbers) == 1))


def _read_index(descriptor: int, shard: int, chunks: int) -> NDArray[np.uint64]:
    """Offset and length [chunks, 2] of every chunk, all of them inside the file."""
    size = os.fstat(descriptor).st_size
    stored = os.pread(descriptor, chunks * ENTRY_BYTES + CRC_BYTES, max(0, size - chunks * ENTRY_BYTES - CRC_BYTES))
    entries, checksum = stored[:-CRC_BYTES], stored[-CRC_BYTES:]
    if len(entries) != chunks * ENTRY_BYTES or google_crc32c.value(entries) != int.from_bytes(checksum, "little"):
        msg = f"shard {shard}: its index is damaged or cut short"
        raise ValueError(msg)
    index = np.frombuffer(entries, dtype="<u8").reshape(chunks, 2)
    # A chunk that was never written has the largest offset and length there are: beyond the end as well.
    if (index > size).any() or (index.sum(axis=1) > size).any():
        msg = f"shard {shard}: its index names bytes beyond its end"
        raise ValueError(msg)
    return index


def _read_frame(
    descriptor: int, buffer: memoryview, entry: NDArray[np.uint64], content_bytes: int, number: int
) -> memoryview:
    """Compressed bytes of a chunk; the checksum inside is the decoder's to verify, its size is not."""
    frame = buffer[: int(entry[1])]
    if os.preadv(descriptor, [frame], int(entry[0])) != len(frame) or _content_bytes(frame) != content_bytes:
        msg = f"chunk {number} is not a whole frame of {content_bytes:,} bytes"
        raise ValueError(msg)
    return frame


def _content_bytes(frame: memoryview) -> int:
    """Size of what a zstd frame holds, as its header says (RFC 8878, 3.1.1.1); the decoder accepts a smaller one."""
    if len(frame) < 14 or frame[:4] != ZSTD_MAGIC:
        return -1
    flag, one_segment, dictionary = frame[4] >> 6, frame[4] >> 5 & 1, frame[4] & 3
    start = 5 + (0 if one_segment else 1) + (0, 1, 2, 4)[dictionary]
    size = int.from_bytes(frame[start : start + CONTENT_SIZE_BYTES[flag]], "little")
    return size + 256 if flag == 1 else size
