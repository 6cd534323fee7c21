"""Parts on a real disk: equal work gives equal bytes, and nothing torn, stale or foreign is taken for a part."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StaleCacheError
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.tables import PartState, part_state, read_metadata, read_table, write_table

WEIGHTS = "0123456789abcdef" * 4
FINGERPRINT = Fingerprint({"expert": WEIGHTS, "prompts": "b", "tile": "32"})


def a_table(rows: int = 500) -> pa.Table:
    rng = np.random.default_rng(0)
    logits = pa.array(rng.standard_normal(rows * 3).astype(np.float32))
    return pa.table(
        {
            "row": np.arange(rows),
            "sample_id": [f"s{row}" for row in range(rows)],
            "label": pa.array([None if row % 7 == 0 else row % 3 for row in range(rows)], pa.int32()),
            "logits": pa.FixedSizeListArray.from_arrays(logits, 3),
            "rows": pa.array([[row, row + 1] for row in range(rows)], pa.list_(pa.int64())),
        }
    )


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "part-00000.parquet"
    write_table(path, a_table(), FINGERPRINT)
    return path


@pytest.mark.parametrize("rows", [0, 1, 500])
def test_a_table_comes_back_with_its_types(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "x.parquet"
    table = a_table(500).slice(0, rows)
    write_table(path, table, FINGERPRINT, extra={"content": "abc", "kind": "λ"})
    found = read_table(path)
    assert found.replace_schema_metadata(None).equals(table)
    assert found.schema.types == table.schema.types
    metadata = read_metadata(path)
    assert metadata is not None
    assert (metadata.rows, metadata.fingerprint, metadata.inputs) == (
        rows,
        FINGERPRINT.digest,
        dict(FINGERPRINT.inputs),
    )
    assert metadata.extra == {"content": "abc", "kind": "λ"}


def test_columns_can_be_chosen(part: Path) -> None:
    assert read_table(part, ["label", "row"]).column_names == ["label", "row"]


def test_equal_tables_give_equal_bytes_however_they_were_put_together(tmp_path: Path) -> None:
    table = a_table()
    shuffled = Fingerprint(dict(reversed(FINGERPRINT.inputs.items())))
    chunked = pa.concat_tables([table.slice(0, 123), table.slice(123)]).replace_schema_metadata({"made": "today"})
    contents = set()
    for name, version, fingerprint in (("a", table, FINGERPRINT), ("b", chunked, shuffled), ("b", table, FINGERPRINT)):
        write_table(tmp_path / name, version, fingerprint, extra={"x": "1", "y": "2"})
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1


def test_a_part_is_absent_then_committed(tmp_path: Path, part: Path) -> None:
    assert part_state(tmp_path / "other.parquet", FINGERPRINT) is PartState.ABSENT
    assert part_state(part, FINGERPRINT) is PartState.COMMITTED


def test_a_stale_part_is_refused_naming_each_input_that_changed(part: Path) -> None:
    now = Fingerprint({"expert": "f" * 64, "prompts": "b", "threads": "1"})
    with pytest.raises(StaleCacheError) as caught:
        part_state(part, now)
    message = str(caught.value)
    assert message.startswith(f"{part}: expert changed (cached {WEIGHTS[:12]}, now {'f' * 12}); ")
    assert "threads changed (cached absent, now 1); " in message
    assert "tile changed (cached 32, now absent); " in message
    assert "prompts" not in message
    assert "give another 'output', or delete what is cached there" in message
    assert len(message.splitlines()) == 1


def test_somebody_elses_parquet_is_refused_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"row": [1]}), path)
    before = path.read_bytes()
    for look in (lambda: read_metadata(path), lambda: part_state(path, FINGERPRINT)):
        with pytest.raises(StaleCacheError, match="was not written by this project; move it away"):
            look()
    assert path.read_bytes() == before


def test_a_torn_file_is_unreadable_at_every_length(tmp_path: Path, part: Path) -> None:
    whole, torn = part.read_bytes(), tmp_path / "torn.parquet"
    for length in (0, 1, 4, 11, 12, *range(100, len(whole), 997), len(whole) - 8, len(whole) - 1):
        torn.write_bytes(whole[:length])
        assert part_state(torn, FINGERPRINT) is PartState.UNREADABLE
        with pytest.raises(StaleCacheError, match="delete this file and run the stage again"):
            read_table(torn)


def test_a_file_that_is_no_parquet_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("not a table")
    assert part_state(path, FINGERPRINT) is PartState.UNREADABLE


def data_bytes(path: Path) -> list[tuple[int, int]]:
    """Where the pages of each column lie: ``start, stop``."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    return [(start, start + chunk.total_compressed_size) for start, chunk in zip(starts, chunks, strict=True)]


def table_or_refusal(path: Path) -> pa.Table | str:
    try:
        return read_table(path)
    except StaleCacheError as error:
        return str(error)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_in_a_page_is_detected_when_it_is_read(tmp_path: Path, part: Path, bit: int) -> None:
    """Silence is what must not happen: a changed byte gives an error, or lay in padding and changes no value."""
    whole, damaged = part.read_bytes(), tmp_path / "damaged.parquet"
    expected = read_table(part)
    detected = tried = 0
    for start, stop in data_bytes(part):
        for position in range(start, stop, max(1, (stop - start) // 25)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            damaged.write_bytes(flipped)
            tried += 1
            found = table_or_refusal(damaged)
            if isinstance(found, str):
                detected += 1
                assert found.startswith(f"{damaged}: cannot be read (")
                assert len(found.splitlines()) == 1
            else:
                assert found.equals(expected), f"byte {position} was changed and read back in silence"
    assert detected > 0.9 * tried


def test_an_absent_part_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StaleCacheError, match=r"absent\.parquet: cannot be read"):
        read_table(tmp_path / "absent.parquet")
