"""What workers read: each chunk of a window once, in pieces that leave the device little to wait for."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archives.archive import Archive, ArchiveRecord
from pipeline.archives.pixels import choose_chunk_rows
from pipeline.geometry import Geometry
from pipeline.manifest import Manifest
from pipeline.stages.reading import rows_per_read, shared_reads
from tests.main_job.factory import assert_same_files, copy_run, predictions_folder, result_files, run_infer

# The archive's five parts of 128 rows of 28x28 are a chunk each.
CHUNKS = 5


class CountingCodec:
    """The codec, and how often it decoded."""

    def __init__(self, codec: Any) -> None:
        self.codec, self.decoded = codec, 0

    def decode(self, *arguments: Any) -> Any:
        self.decoded += 1
        return self.codec.decode(*arguments)


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> CountingCodec:
    from pipeline.archives import shards

    counting = CountingCodec(shards.ZSTD)
    monkeypatch.setattr(shards, "ZSTD", counting)
    return counting


@pytest.mark.parametrize("online", [False, True])
def test_a_worker_decodes_each_chunk_of_a_window_once_whatever_the_order_of_its_rows(
    tmp_path: Path, pair: Path, finished: Manifest, codec: CountingCodec, *, online: bool
) -> None:
    run = copy_run(finished, tmp_path, pair)
    clear(run)
    run_infer(run, "t3-lambda", online=online)
    # Online, stage one's forwards read the window before its batches are known.
    assert codec.decoded == CHUNKS * (2 if online else 1)
    assert_same_files(result_files(Path(run.output), "predictions"), result_files(Path(finished.output), "predictions"))


def test_without_room_for_a_chunk_the_answers_are_the_same(
    tmp_path: Path, pair: Path, finished: Manifest, codec: CountingCodec
) -> None:
    run = copy_run(finished, tmp_path, pair, compute={"read_bytes": 1 << 16})
    clear(run)
    run_infer(run, "t3-lambda")
    assert codec.decoded > CHUNKS
    assert_same_files(result_files(Path(run.output), "predictions"), result_files(Path(finished.output), "predictions"))


def test_batches_in_order_of_address_are_read_chunk_by_chunk(
    tmp_path: Path, pair: Path, finished: Manifest, codec: CountingCodec
) -> None:
    run = copy_run(finished, tmp_path, pair)
    clear(run, "t3-batch")
    run_infer(run, "t3-batch")
    assert codec.decoded == CHUNKS


@pytest.mark.parametrize(
    ("side", "part_rows", "read_bytes", "tile", "rows"),
    [
        (28, 8192, 64 << 20, 32, 1024),
        (28, 8192, 1 << 20, 32, 384),
        (28, 8192, 1 << 16, 32, 32),
        (28, 512, 64 << 20, 32, 128),
        (224, 8192, 64 << 20, 32, 416),
        (224, 8192, 1 << 16, 32, 32),
        (28, 8192, 64 << 20, 48, 768),
    ],
)
def test_a_read_is_whole_tiles_within_its_bytes_and_an_eighth_of_a_part(
    tmp_path: Path, side: int, part_rows: int, read_bytes: int, tile: int, rows: int
) -> None:
    chunk_rows = choose_chunk_rows(part_rows, side * side * 3)
    record = ArchiveRecord(("a", "b"), Geometry(side, side), part_rows, chunk_rows, part_rows, segments=())
    assert rows_per_read(Archive(tmp_path, record), read_bytes, tile) == rows


@given(sizes=st.lists(st.integers(0, 40), max_size=20), limit=st.integers(1, 30))
def test_neighbouring_batches_share_a_read_while_they_fit_and_large_ones_are_cut(sizes: list[int], limit: int) -> None:
    reads = shared_reads(sizes, limit)
    rows = [(piece.batch, row) for read in reads for piece in read for row in range(piece.start, piece.stop)]
    assert rows == [(batch, row) for batch, size in enumerate(sizes) for row in range(size)]
    lengths = [[piece.stop - piece.start for piece in read] for read in reads]
    assert all(0 < sum(read) <= limit for read in lengths)
    assert all(sum(read) + after[0] > limit for read, after in pairwise(lengths))
    pieces = [piece for read in reads for piece in read]
    assert all(piece.stop == sizes[piece.batch] or piece.stop - piece.start == limit for piece in pieces)


def clear(run: Manifest, method: str = "t3-lambda") -> None:
    shutil.rmtree(predictions_folder(run, method))
