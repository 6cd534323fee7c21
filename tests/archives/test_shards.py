"""The reader is held against zarr on the same files, and every lie that a shard can tell is an error."""

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zstd
from zarr.codecs import ZstdCodec

from pipeline.archives.pixels import PixelStore
from pipeline.archives.shards import ChunkCache
from pipeline.errors import ArchiveError

ROWS, SHARD_ROWS, SHAPE = 48, 16, (6, 5, 3)
CHUNKS_PER_SHARD = 4


def make_store(path: Path, chunk_rows: int) -> PixelStore:
    store = PixelStore(path / "images.zarr", SHAPE, chunk_rows, SHARD_ROWS)
    store.resize(ROWS)
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8)
    for start in range(0, ROWS, SHARD_ROWS):
        store.write_shard(start, pixels[start : start + SHARD_ROWS])
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, PixelStore]:
    return {rows: make_store(tmp_path_factory.mktemp(f"chunks-of-{rows}"), rows) for rows in (1, 4, 16)}


@given(
    chunk_rows=st.sampled_from([1, 4, 16]),
    rows=st.lists(st.integers(0, ROWS - 1), max_size=60) | st.integers(0, 40).map(lambda n: [*range(n, n + 8)]),
    limit=st.sampled_from([0, 500, 1 << 20]),
)
def test_any_rows_are_what_zarr_reads(
    stores: dict[int, PixelStore], chunk_rows: int, rows: list[int], limit: int
) -> None:
    store, cache = stores[chunk_rows], ChunkCache(limit)
    expected = np.asarray(zarr.open_array(store.path, mode="r")[:])[rows]
    for _ in range(2):
        np.testing.assert_array_equal(store.read(np.array(rows, dtype=np.int64), cache), expected)
    assert cache.held == sum(chunk.nbytes for chunk in cache.chunks.values()) <= limit


def test_a_chunk_that_was_partly_wanted_is_not_decoded_again(stores: dict[int, PixelStore]) -> None:
    cache = ChunkCache(1 << 20)
    for rows, decoded in (([0, 9], 2), ([1, 8, 2], 2), ([3, 40], 3), ([4, 5, 6, 7], 4), ([4, 5, 6, 7], 5)):
        stores[4].read(np.array(rows), cache)
        assert cache.decoded == decoded
    assert sorted(cache.chunks) == [0, 2, 10], "a chunk that was wanted whole is not wanted again"


def rewrite(shard: Path, entries: np.ndarray, data: bytes) -> None:
    """A shard of these chunks whose index is whole, as no accident would leave it."""
    index = entries.astype("<u8").tobytes()
    shard.write_bytes(data + index + int(google_crc32c.value(index)).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("chunk never written", "its index names bytes beyond its end"),
        ("chunk beyond the end", "its index names bytes beyond its end"),
        ("frame of fewer images", "chunk 5 is not a whole frame of 360 bytes"),
        ("no frame", "chunk 5 is not a whole frame of 360 bytes"),
        ("no shard", "shard 1 is not there"),
        ("index alone", "its index is damaged or cut short"),
    ],
)
def test_a_shard_that_is_whole_but_wrong_is_an_error(tmp_path: Path, lie: str, said: str) -> None:
    store = make_store(tmp_path, 4)
    shard = store.path / "c" / "1" / "0" / "0" / "0"
    content = shard.read_bytes()
    size = len(content) - CHUNKS_PER_SHARD * 16 - 4
    data, entries = content[:size], np.frombuffer(content[size:-4], "<u8").reshape(-1, 2).copy()
    short = bytes(Zstd(level=3, checksum=True).encode(np.zeros((3, *SHAPE), np.uint8)))
    rewrite(shard, entries, data)
    assert shard.read_bytes() == content, "the test lays shards out as zarr does"
    match lie:
        case "chunk never written":
            entries[1] = np.iinfo(np.uint64).max
        case "chunk beyond the end":
            entries[1, 1] += 10_000
        case "frame of fewer images":
            entries[1], data = (len(data), len(short)), data + short
        case "no frame":
            entries[1, 1] = 0
    rewrite(shard, entries, data)
    if lie == "no shard":
        shard.unlink()
    if lie == "index alone":
        shard.write_bytes(content[-40:])
    with pytest.raises(ArchiveError, match=said):
        store.read(np.array([20, 21]))


@pytest.mark.parametrize(
    "changes",
    [{"compressors": [ZstdCodec(level=3, checksum=False)]}, {"chunks": (8, *SHAPE)}, {"dtype": "int8"}],
)
def test_an_array_that_was_laid_out_otherwise_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    layout = {
        "shape": (ROWS, *SHAPE),
        "dtype": "uint8",
        "chunks": (4, *SHAPE),
        "shards": (SHARD_ROWS, *SHAPE),
        "compressors": [ZstdCodec(level=3, checksum=True)],
    }
    zarr.create_array(tmp_path / "images.zarr", **{**layout, **changes})  # type: ignore[arg-type]
    with pytest.raises(ArchiveError, match="laid out otherwise"):
        PixelStore(tmp_path / "images.zarr", SHAPE, 4, SHARD_ROWS).read(np.array([0]))
