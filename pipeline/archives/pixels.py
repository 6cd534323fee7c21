"""The pixels of an archive: one sharded Zarr v3 array, read in any order, with every damage noticed.

Each inner chunk carries a zstd checksum and each shard's index a CRC-32C; a shard that was never written, or was lost,
is an error as well and not an image of zeros.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from pipeline.archives.shards import ChunkCache, ShardReader
from pipeline.errors import ArchiveError, ArchiveUnavailableError
from pipeline.store.files import sync_directory, sync_file

CHUNK_BYTES = 256 << 10
SHARD_BYTES = 64 << 20
ZSTD_LEVEL = 3

# Process-wide because zarr keeps its settings there. The fused pipeline encodes without an event loop, and one thread
# per process is what engines count on. Results do not depend on either.
zarr.config.set(
    {
        "codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline",
        "codec_pipeline.max_workers": 1,
        "threading.max_workers": 1,
    }
)

# What zarr, its codecs and the file system raise for bytes that are not what was written.
READ_FAILURES = (RuntimeError, ValueError, OSError, MemoryError, OverflowError)


def choose_chunk_rows(part_rows: int, image_bytes: int) -> int:
    """Divisor of ``part_rows`` that brings a chunk nearest to :data:`CHUNK_BYTES`; 1 when not even two images fit."""
    target = CHUNK_BYTES / image_bytes
    if target < 2:
        return 1
    return min(_divisors(part_rows), key=lambda rows: abs(np.log(rows / target)))


def choose_shard_rows(part_rows: int, chunk_rows: int, image_bytes: int) -> int:
    """Largest whole number of chunks that divides ``part_rows`` and stays within :data:`SHARD_BYTES`, or one chunk."""
    fitting = [chunks * chunk_rows for chunks in _divisors(part_rows // chunk_rows)]
    return max((rows for rows in fitting if rows * image_bytes <= SHARD_BYTES), default=chunk_rows)


class PixelStore:
    """The Zarr array at ``path``: uint8 [address, *image_shape]. zarr writes it, :class:`ShardReader` reads it."""

    def __init__(self, path: Path, image_shape: tuple[int, int, int], chunk_rows: int, shard_rows: int) -> None:
        self.path = path
        self.image_shape = image_shape
        self.chunk_rows = chunk_rows
        self.shard_rows = shard_rows
        self._rows: int | None = None
        self._shards = ShardReader(path, image_shape, chunk_rows, shard_rows)

    def resize(self, rows: int) -> None:
        """Create the array, or give it ``rows`` addresses; what is already written stays as it is."""
        self._rows = None
        if (self.path / "zarr.json").exists():
            array = self._open("r+")
            if array.shape[0] != rows:
                array.resize((rows, *self.image_shape))
        else:
            zarr.create_array(
                self.path,
                shape=(rows, *self.image_shape),
                dtype="uint8",
                chunks=(self.chunk_rows, *self.image_shape),
                shards=(self.shard_rows, *self.image_shape),
                compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True)],
                fill_value=0,
            )
        sync_file(self.path / "zarr.json")
        sync_directory(self.path)
        sync_directory(self.path.parent)

    def write_shard(self, start: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Write one whole shard durably: ``pixels`` is uint8 [shard_rows, H, W, 3], ``start`` its first address."""
        assert start % self.shard_rows == 0
        assert pixels.shape == (self.shard_rows, *self.image_shape)
        self._open("r+")[start : start + self.shard_rows] = pixels
        shard = self.path / "c" / str(start // self.shard_rows) / "0" / "0" / "0"
        sync_file(shard)
        for folder in (shard.parent, *shard.parents[1:4]):
            sync_directory(folder)

    def read(self, rows: npt.NDArray[np.int64], cache: ChunkCache | None = None) -> npt.NDArray[np.uint8]:
        """Pixels [n, H, W, 3] of ``rows`` in their order, each chunk decoded once, or never if ``cache`` holds it.

        :class:`ArchiveError` names the rows that cannot be read.
        """
        count = self._count()
        if len(rows) and (rows.min() < 0 or rows.max() >= count):
            raise ArchiveError(f"{self.path}: rows {rows.min()} to {rows.max()} asked, 0 to {count - 1} exist")
        try:
            return self._shards.read(rows, cache or ChunkCache(0))
        except READ_FAILURES as error:
            self._require_available(error)
            raise self._unreadable(np.unique(rows), error) from error

    def readable(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], list[str | None]]:
        """Say of each row whether it can be read, and if not why; decodes chunk by chunk."""
        self._count()
        reasons: dict[int, str] = {}
        for chunk in np.unique(rows // self.chunk_rows).tolist():
            first = chunk * self.chunk_rows
            try:
                self._shards.read(np.arange(first, first + self.chunk_rows), ChunkCache(0))
            except READ_FAILURES as error:
                self._require_available(error)
                reasons[chunk] = _one_line(error)
        listed = [reasons.get(chunk) for chunk in (rows // self.chunk_rows).tolist()]
        return np.array([reason is None for reason in listed], dtype=np.bool_), listed

    def _require_available(self, error: BaseException) -> None:
        """A disk, network or memory that fails for now must not cost images: only lost and damaged files do.

        A shard is lost only where the array itself is there: of what is no longer mounted, every file is missing.
        """
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
            reason = _one_line(error)
        elif os.access(self.path / "zarr.json", os.R_OK):
            return
        else:
            reason = "it is not there any more; is its file system mounted?"
        msg = f"{self.path}: cannot be read for now ({reason}); run the command again when it can"
        raise ArchiveUnavailableError(msg) from error

    def _unreadable(self, rows: npt.NDArray[np.int64], error: BaseException) -> ArchiveError:
        mask, reasons = self.readable(rows)
        bad = rows[~mask]
        reason = next((reason for reason in reasons if reason is not None), _one_line(error))
        named = _ranges(bad if len(bad) else rows)
        remedy = "restore the file from a copy, or delete their part's file in 'samples' and run ingest again"
        return ArchiveError(f"{self.path}: rows {named} cannot be read ({reason}); {remedy}")

    def _count(self) -> int:
        """Addresses of the array, once it is known to be laid out as :class:`ShardReader` reads it."""
        if self._rows is None:
            array = self._open("r")
            cuts = ((self.shard_rows, *self.image_shape), (self.chunk_rows, *self.image_shape))
            checked = [isinstance(codec, ZstdCodec) and codec.checksum for codec in array.compressors]
            if (array.shards, array.chunks) != cuts or array.dtype.str != "|u1" or checked != [True]:
                raise ArchiveError(f"{self.path}: is laid out otherwise than archive.json says; make the archive again")
            self._rows = int(array.shape[0])
        return self._rows

    def _open(self, mode: Literal["r", "r+"]) -> "zarr.Array[Any]":
        settings: Any = {"read_missing_chunks": False, "write_empty_chunks": True}
        try:
            return zarr.open_array(self.path, mode=mode, config=settings)
        except (*READ_FAILURES, KeyError, TypeError) as error:
            raise ArchiveError(f"{self.path}: cannot be opened ({_one_line(error)}); make the archive again") from error


def _ranges(rows: npt.NDArray[np.int64], shown: int = 4) -> str:
    """Sorted rows in short: ``3-66, 70, ... (80 in all)``."""
    breaks = np.flatnonzero(np.diff(rows) > 1) + 1
    runs = [(int(run[0]), int(run[-1])) for run in np.split(rows, breaks)]
    names = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:shown]]
    return ", ".join(names) + (f", ... ({len(rows)} in all)" if len(runs) > shown else "")


def _one_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
