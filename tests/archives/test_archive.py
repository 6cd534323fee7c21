import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archives.archive import Archive, create_or_open
from pipeline.archives.ingest import append_segment
from pipeline.archives.pixels import choose_chunk_rows, choose_shard_rows
from pipeline.archives.synthetic import SyntheticSource
from pipeline.errors import ArchiveError
from pipeline.geometry import Geometry

from .factory import PART_ROWS, create, files_of, ingest, pixels_of

NIGHT_ONE = SyntheticSource(70, 1)
NIGHT_TWO = SyntheticSource(33, 2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Parts of 32, 32, 6 rows from the first night and 32, 1 from the second."""
    return ingest(tmp_path_factory.mktemp("module") / "archive", NIGHT_ONE, NIGHT_TWO)


def test_addresses_are_parts_times_part_rows(archive: Archive) -> None:
    assert archive.parts == 5
    assert [archive.part_range(part) for part in range(5)] == [(0, 32), (32, 64), (64, 70), (96, 128), (128, 129)]
    assert [archive.source_range(part) for part in range(5)] == [(0, 32), (32, 64), (64, 70), (0, 32), (32, 33)]
    with pytest.raises(ArchiveError, match="has no part 5; it has 5 parts"):
        archive.part_range(5)


@given(data=st.data())
def test_any_rows_in_any_order_read_as_they_were_written(archive: Archive, data: st.DataObject) -> None:
    expected = np.zeros((5 * PART_ROWS, 28, 28, 3), dtype=np.uint8)
    expected[:70], expected[96:129] = pixels_of(NIGHT_ONE), pixels_of(NIGHT_TWO)
    rows = np.array(data.draw(st.lists(st.integers(0, 5 * PART_ROWS - 1), max_size=60)), dtype=np.int64)
    np.testing.assert_array_equal(archive.read(rows), expected[rows])


def test_rows_beyond_the_end_are_refused(archive: Archive) -> None:
    for row in (-1, 160):
        with pytest.raises(ArchiveError, match="0 to 159 exist"):
            archive.read(np.array([3, row]))


def test_an_opened_or_pickled_archive_is_the_same(archive: Archive) -> None:
    for other in (Archive.open(archive.path), pickle.loads(pickle.dumps(archive))):
        assert other.segments == archive.segments
        assert (other.class_names, other.geometry, other.part_rows) == (NIGHT_ONE.class_names, Geometry(28, 28), 32)
        np.testing.assert_array_equal(other.read(np.array([5, 1])), archive.read(np.array([5, 1])))


def test_windows_stay_inside_segments_and_bounds(archive: Archive) -> None:
    def cuts(max_rows: int, max_bytes: int) -> list[tuple[int, int, int]]:
        return [(window.index, window.first_part, window.parts) for window in archive.windows(max_rows, max_bytes)]

    assert cuts(1000, 1 << 30) == [(0, 0, 3), (1, 3, 2)]
    assert cuts(2 * PART_ROWS + 31, 1 << 30) == [(0, 0, 2), (1, 2, 1), (2, 3, 2)]
    assert cuts(1000, 2 * PART_ROWS * 2352) == [(0, 0, 2), (1, 2, 1), (2, 3, 2)]
    assert cuts(1, 1) == [(part, part, 1) for part in range(5)]


def test_a_further_segment_changes_no_earlier_file_window_or_digest(tmp_path: Path) -> None:
    archive = ingest(tmp_path, NIGHT_ONE)
    files, windows = files_of(tmp_path), archive.windows(64, 1 << 30)
    digests = [archive.part_digest(part) for part in range(3)]
    archive = ingest(tmp_path, NIGHT_ONE, NIGHT_TWO)
    after = files_of(tmp_path)
    records = {"archive.json", "images.zarr/zarr.json"}
    assert {name for name in files if files[name] != after[name]} == records
    assert archive.windows(64, 1 << 30)[: len(windows)] == windows
    assert [archive.part_digest(part) for part in range(3)] == digests


def test_a_kill_between_growing_and_recording_is_mended_by_the_next_try(tmp_path: Path) -> None:
    expected = ingest(tmp_path / "calm", NIGHT_ONE, NIGHT_TWO)
    archive = ingest(tmp_path / "killed", NIGHT_ONE)
    archive.pixels.resize(100 * PART_ROWS)
    ingest(tmp_path / "killed", NIGHT_ONE, NIGHT_TWO)
    assert files_of(tmp_path / "killed") == files_of(expected.path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"class_names": ("x", "y")}, "'class_names' is"),
        ({"geometry": Geometry(28, 28, "bilinear")}, "'geometry' is"),
        ({"part_rows": 64}, "'part_rows' is 32 there and 64 here"),
    ],
)
def test_an_archive_made_otherwise_is_refused_by_name(archive: Archive, other: dict[str, object], named: str) -> None:
    wanted = {"class_names": archive.class_names, "geometry": archive.geometry, "part_rows": 32, **other}
    with pytest.raises(ArchiveError, match="another archive folder") as caught:
        create_or_open(archive.path, **wanted)  # type: ignore[arg-type]
    assert named in str(caught.value)


def test_a_folder_with_other_things_is_not_made_an_archive(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArchiveError, match="not empty and not an archive"):
        create(tmp_path)
    with pytest.raises(ArchiveError, match="run `pipeline ingest`"):
        Archive.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1}', '{"format": 1, "geometry": {"depth": 1}}'])
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    create(tmp_path)
    (tmp_path / "archive.json").write_text(content)
    with pytest.raises(ArchiveError, match="damaged"):
        Archive.open(tmp_path)


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    create(tmp_path)
    path = tmp_path / "archive.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ArchiveError, match="format 99"):
        Archive.open(tmp_path)


def test_what_is_not_written_yet_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    archive = create(tmp_path)
    append_segment(archive, NIGHT_ONE)
    assert archive.missing_parts() == [0, 1, 2]
    for ask in (archive.samples, archive.rejects, archive.part_digest):
        with pytest.raises(ArchiveError, match="part 1 is not written yet"):
            ask(1)
    with pytest.raises(ArchiveError, match="rows 3, 9 cannot be read"):
        archive.read(np.array([9, 3]))


def shard_of(archive: Archive, shard: int) -> Path:
    return archive.path / "images.zarr" / "c" / str(shard) / "0" / "0" / "0"


def test_damage_is_named_by_row_and_the_rest_can_still_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.archives.pixels.CHUNK_BYTES", 8 * 2352)
    archive = ingest(tmp_path, NIGHT_ONE)
    content = bytearray(shard_of(archive, 0).read_bytes())
    content[30] ^= 1
    shard_of(archive, 0).write_bytes(content)
    rows = np.array([40, 2, 17, 7, 2])
    with pytest.raises(ArchiveError, match="rows 2, 7 cannot be read") as caught:
        archive.read(rows)
    assert "\n" not in str(caught.value)
    mask, reasons = archive.readable(rows)
    assert mask.tolist() == [True, False, True, False, False]
    assert [reason is None for reason in reasons] == mask.tolist()
    np.testing.assert_array_equal(archive.read(rows[mask]), pixels_of(NIGHT_ONE)[rows[mask]])


def test_no_flipped_byte_of_a_shard_is_ever_read_as_an_image(tmp_path: Path) -> None:
    archive = ingest(tmp_path, SyntheticSource(8, 1), part_rows=8)
    clean = shard_of(archive, 0).read_bytes()
    expected = archive.read(np.arange(8))
    positions = {*range(24), *range(0, len(clean), 97), *range(len(clean) - 24, len(clean))}
    for position in sorted(positions):
        damaged = bytearray(clean)
        damaged[position] ^= 1 << (position % 8)
        shard_of(archive, 0).write_bytes(damaged)
        try:
            pixels = archive.read(np.arange(8))
        except ArchiveError:
            continue
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_a_truncated_or_lost_shard_is_an_error(tmp_path: Path, kept: int) -> None:
    archive = ingest(tmp_path, NIGHT_ONE)
    shard = shard_of(archive, 1)
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ArchiveError, match="rows 32-63 cannot be read"):
        archive.read(np.arange(70))
    shard.unlink()
    with pytest.raises(ArchiveError, match="rows 32-63 cannot be read"):
        archive.read(np.arange(70))


@given(st.integers(1, 20_000), st.integers(1, 512))
def test_chunks_and_shards_divide_a_part(part_rows: int, side: int) -> None:
    image_bytes = side * side * 3
    chunk_rows = choose_chunk_rows(part_rows, image_bytes)
    shard_rows = choose_shard_rows(part_rows, chunk_rows, image_bytes)
    assert part_rows % shard_rows == 0
    assert shard_rows % chunk_rows == 0
    assert shard_rows == chunk_rows or shard_rows * image_bytes <= 64 << 20


def test_chunks_at_the_usual_sizes() -> None:
    assert choose_chunk_rows(8192, 28 * 28 * 3) == 128
    assert choose_chunk_rows(8192, 224 * 224 * 3) == 1
    assert choose_shard_rows(8192, 1, 224 * 224 * 3) == 256
