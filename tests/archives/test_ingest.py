import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.archives.archive import Archive
from pipeline.archives.ingest import PartIngest, append_segment, plan_segments, write_part
from pipeline.archives.npz import NpzSource
from pipeline.archives.synthetic import SyntheticSource
from pipeline.errors import ArchiveError, SourceError, StaleCacheError
from pipeline.geometry import Geometry, image_transform, prepare_image
from pipeline.store.tables import read_metadata

from .factory import PART_ROWS, PatchedSource, create, files_of, ingest, pixels_of

NIGHT_ONE = SyntheticSource(70, 1)
NIGHT_TWO = SyntheticSource(33, 2)


def test_samples_say_what_is_stored(tmp_path: Path) -> None:
    archive = ingest(tmp_path, NIGHT_ONE, NIGHT_TWO)
    samples = archive.samples(4).to_pylist()
    (expected,) = NIGHT_TWO.read(32, 33)
    assert samples == [
        {
            "row": 128,
            "sample_id": expected.sample_id,
            "label": expected.label,
            "group_id": expected.group_id,
            "source": "synthetic",
            "content_hash": hashlib.sha256(pixels_of(NIGHT_TWO)[32].tobytes()).hexdigest(),
            "corruption": None,
            "severity": None,
        }
    ]
    assert archive.samples(0)["row"].to_pylist() == list(range(32))


def test_pixels_are_stored_after_the_models_own_resize(tmp_path: Path) -> None:
    archive = create(tmp_path, size=16)
    append_segment(archive, NIGHT_TWO)
    write_part(archive, 0, NIGHT_TWO)
    transform = image_transform(Geometry(16, 16))
    expected = [prepare_image(item.image, transform) for item in NIGHT_TWO.read(0, 32) if item.image]
    np.testing.assert_array_equal(archive.read(np.arange(32)), np.stack(expected))


def test_defective_images_leave_holes_and_are_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.Image.resize", _failing_resize)
    source = PatchedSource(NIGHT_ONE, broken=(5, 31), refused=(6, 69))
    archive = ingest(tmp_path, source)
    counts = [write_part(archive, part, source) for part in range(3)]
    assert counts == [PartIngest(29, 3), PartIngest(32, 0), PartIngest(5, 1)]
    rejects = archive.rejects(0).to_pylist()
    assert [(reject["row"], reject["reason"]) for reject in rejects] == [
        (5, "OSError: broken data stream in <BytesIO object>"),
        (6, "label 9 is outside the 4 classes"),
        (31, "OSError: broken data stream in <BytesIO object>"),
    ]
    assert rejects[1]["sample_id"] == "synthetic/a/1/6"
    assert archive.samples(0)["row"].to_pylist() == [row for row in range(32) if row not in (5, 6, 31)]
    pixels = archive.read(np.arange(70))
    assert [row for row in range(70) if not pixels[row].any()] == [5, 6, 31, 69]


_resize = __import__("PIL.Image").Image.Image.resize


def _failing_resize(image: object, size: tuple[int, int], *arguments: object, **settings: object) -> object:
    """Pillow's resize on an image of 30,000 lines as it behaves on a damaged file."""
    if getattr(image, "height", 0) == 30_000:
        raise OSError("broken data stream in <BytesIO object at 0x7f0012ab>")
    return _resize(image, size, *arguments, **settings)


def test_a_part_of_rejects_only_is_a_part(tmp_path: Path) -> None:
    source = PatchedSource(SyntheticSource(3, 1), refused=(0, 1, 2))
    archive = ingest(tmp_path, source)
    assert write_part(archive, 0, source) == PartIngest(0, 3)
    assert archive.samples(0).num_rows == 0
    assert not archive.read(np.arange(3)).any()
    assert archive.missing_parts() == []


def test_equal_work_gives_equal_bytes_in_any_order(tmp_path: Path) -> None:
    ingest(tmp_path / "forward", NIGHT_ONE, NIGHT_TWO)
    archive = create(tmp_path / "backward")
    append_segment(archive, NIGHT_ONE)
    append_segment(archive, NIGHT_TWO)
    for part, source in [(4, NIGHT_TWO), (1, NIGHT_ONE), (2, NIGHT_ONE), (3, NIGHT_TWO), (0, NIGHT_ONE)]:
        write_part(archive, part, source)
    assert files_of(tmp_path / "forward") == files_of(tmp_path / "backward")


def test_a_written_part_is_left_alone(tmp_path: Path) -> None:
    archive = ingest(tmp_path, NIGHT_ONE)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert write_part(archive, 0, NIGHT_ONE) == PartIngest(32, 0)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["samples", "rejects"])
def test_a_torn_or_lost_table_is_written_again(tmp_path: Path, name: str) -> None:
    archive = ingest(tmp_path, NIGHT_ONE)
    expected = files_of(tmp_path)
    path = tmp_path / name / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert archive.missing_parts() == [1]
    ingest(tmp_path, NIGHT_ONE)
    assert files_of(tmp_path) == expected
    path.unlink()
    assert archive.missing_parts() == [1]


KILLED = """
import sys
from pathlib import Path
import pipeline.archives.pixels
pipeline.archives.pixels.CHUNK_BYTES = pipeline.archives.pixels.SHARD_BYTES = 8 * 2352
sys.path.insert(0, {folder!r})
from archives.factory import PatchedSource, ingest
from pipeline.archives.synthetic import SyntheticSource
ingest(Path({path!r}), PatchedSource(SyntheticSource(70, 1), deadly={deadly}))
"""


@pytest.mark.parametrize("deadly", [0, 3, 20, 45])
def test_a_killed_writer_leaves_no_part_and_the_rerun_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadly: int
) -> None:
    monkeypatch.setattr("pipeline.archives.pixels.SHARD_BYTES", 8 * 2352)
    monkeypatch.setattr("pipeline.archives.pixels.CHUNK_BYTES", 8 * 2352)
    undisturbed = ingest(tmp_path / "undisturbed", NIGHT_ONE)
    script = KILLED.format(folder=str(Path(__file__).parents[1]), path=str(tmp_path / "killed"), deadly=deadly)
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert killed.returncode == 9
    archive = Archive.open(tmp_path / "killed")
    assert archive.missing_parts() == list(range(deadly // PART_ROWS, 3))
    ingest(tmp_path / "killed", NIGHT_ONE)
    assert files_of(tmp_path / "killed") == files_of(undisturbed.path)


def test_the_part_digest_follows_what_a_part_holds(tmp_path: Path) -> None:
    archive = ingest(tmp_path / "one", NIGHT_ONE)
    digests = {archive.part_digest(part) for part in range(3)}
    assert len(digests) == 3
    other = ingest(tmp_path / "other", PatchedSource(NIGHT_ONE, refused=(3,)))
    assert other.part_digest(0) != archive.part_digest(0)
    assert other.part_digest(1) == archive.part_digest(1)
    metadata = read_metadata(archive.samples_path(0))
    assert metadata is not None
    assert metadata.extra == {"content": archive.part_digest(0)}
    assert pq.read_schema(archive.samples_path(0)).metadata[b"pipeline.content"].decode() == archive.part_digest(0)


def test_new_nights_are_planned_and_held_ones_are_not(tmp_path: Path) -> None:
    archive = create(tmp_path)
    assert plan_segments(archive, [NIGHT_ONE, NIGHT_TWO]) == [0, 1]
    append_segment(archive, NIGHT_ONE)
    assert plan_segments(Archive.open(tmp_path), [NIGHT_ONE, NIGHT_TWO]) == [1]
    append_segment(archive, NIGHT_TWO)
    assert plan_segments(Archive.open(tmp_path), [NIGHT_ONE, NIGHT_TWO]) == []


def test_a_changed_or_lost_night_is_refused_by_name(tmp_path: Path) -> None:
    archive = create(tmp_path)
    append_segment(archive, NIGHT_ONE)
    append_segment(archive, NIGHT_TWO)
    with pytest.raises(StaleCacheError, match=r"source 1 \(synthetic a\) changed in seed since it was stored"):
        plan_segments(archive, [NIGHT_ONE, SyntheticSource(33, 5)])
    with pytest.raises(ArchiveError, match="holds 2 sources but only 1 are listed"):
        plan_segments(archive, [NIGHT_ONE])
    with pytest.raises(StaleCacheError, match="source 0"):
        write_part(archive, 0, NIGHT_TWO)


def test_a_source_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    archive = create(tmp_path)
    with pytest.raises(ArchiveError, match="classes are"):
        append_segment(archive, SyntheticSource(5, 1, classes=5))
    with pytest.raises(SourceError, match="lists no images"):
        append_segment(archive, PatchedSource(_Empty(5, 1)))
    assert archive.parts == 0


class _Empty(SyntheticSource):
    __slots__ = ()

    def __len__(self) -> int:
        return 0


def test_real_cells_are_stored_as_they_are(tmp_path: Path, data_root: Path) -> None:
    names = [str(index) for index in range(8)]
    source = NpzSource(data_root / "medmnist" / "pbcblood.npz", "val", names)
    archive = create(tmp_path, part_rows=512, classes=8)
    archive_names = archive.class_names
    source = NpzSource(source.path, "val", archive_names)
    append_segment(archive, source)
    for part in range(archive.parts):
        write_part(archive, part, source)
    with np.load(source.path) as arrays:
        images, labels = arrays["val_images"], arrays["val_labels"][:, 0]
    rows = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(archive.read(rows), images[rows])
    stored = [label for part in range(archive.parts) for label in archive.samples(part)["label"].to_pylist()]
    assert stored == labels.tolist()


def test_real_grey_images_become_rgb(tmp_path: Path, data_root: Path) -> None:
    archive = create(tmp_path, part_rows=128, classes=2)
    source = NpzSource(data_root / "medmnist" / "breastmnist.npz", "val", archive.class_names)
    append_segment(archive, source)
    write_part(archive, 0, source)
    with np.load(source.path) as arrays:
        images = arrays["val_images"]
    np.testing.assert_array_equal(archive.read(np.arange(78)), np.repeat(images[..., None], 3, axis=-1))
