"""Writing an archive: list sources as segments, then write each part, one at a time and in any order.

A part is a pure function of its source's range and the archive's record, so writing it again gives the same bytes, and
a killed writer leaves nothing that counts: the samples file, which makes a part exist, is put in place last.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.archives.archive import CORRUPTION_FIELDS, Archive, Segment
from pipeline.archives.source import JSON, Source, SourceImage, describe_defect
from pipeline.errors import ArchiveError, SourceError, StaleCacheError
from pipeline.geometry import ImageTransform, image_transform, prepare_image
from pipeline.store.fingerprints import digest_json
from pipeline.store.tables import read_metadata, write_table

SAMPLES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("label", pa.int32()),
        ("group_id", pa.string()),
        ("source", pa.string()),
        ("content_hash", pa.string()),
        *CORRUPTION_FIELDS,
    ]
)
REJECTS_SCHEMA = pa.schema(
    [("row", pa.int64()), ("sample_id", pa.string()), ("source", pa.string()), ("reason", pa.string())]
)
# What of an identity names a source in messages.
NAMING = ("kind", "file", "dataset", "folder", "task", "split", "site")
CONTENT_COLUMNS = ("row", "sample_id", "label", "group_id", "content_hash", "corruption", "severity")


@dataclass(frozen=True, slots=True)
class PartIngest:
    """How many images of a part were stored and how many were set aside."""

    accepted: int
    rejected: int


@dataclass(slots=True)
class _PartRows:
    """Rows of the two tables, collected while the pixels are written."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)


def plan_segments(archive: Archive, sources: Sequence[Source]) -> list[int]:
    """Positions in ``sources`` that the archive does not hold yet.

    The segments must be the first of ``sources``, in order. Raises :class:`StaleCacheError` when a source that is
    already stored changed, and :class:`ArchiveError` when one is no longer listed.
    """
    held = len(archive.segments)
    if held > len(sources):
        lost = _name(archive.segments[len(sources)].source)
        raise ArchiveError(
            f"{archive.path}: holds {held} sources but only {len(sources)} are listed: {lost} is missing; "
            "list it again, or use another archive folder"
        )
    for position, segment in enumerate(archive.segments):
        _check_unchanged(archive, position, segment, sources[position])
    return list(range(held, len(sources)))


def append_segment(archive: Archive, source: Source) -> Segment:
    """List ``source`` in the archive: it gets new parts, none of them written yet."""
    if source.class_names != archive.class_names:
        raise ArchiveError(
            f"{archive.path}: classes are {list(archive.class_names)}, those of {_name(source.identity)} are "
            f"{list(source.class_names)}; use another archive folder"
        )
    if len(source) == 0:
        raise SourceError(f"{_name(source.identity)}: lists no images; remove it from the sources")
    return archive.add_segment(source.identity, len(source))


def write_part(archive: Archive, part: int, source: Source) -> PartIngest:
    """Store the images of one part; a part that is already written is left alone.

    ``source`` is the one listed for the part's segment. A defective image becomes a row of the rejects and leaves a
    hole. Memory is bounded by one shard.
    """
    position, segment = archive.segment_of(part)
    _check_unchanged(archive, position, segment, source)
    if not archive.is_written(part):
        _store(archive, part, source)
    samples, rejects = read_metadata(archive.samples_path(part)), read_metadata(archive.rejects_path(part))
    assert samples is not None
    assert rejects is not None
    return PartIngest(samples.rows, rejects.rows)


def _store(archive: Archive, part: int, source: Source) -> None:
    start, stop = archive.part_range(part)
    images = source.read(*archive.source_range(part))
    transform = image_transform(archive.geometry)
    shard_rows = archive.pixels.shard_rows
    rows = _PartRows()
    pixels = np.empty((shard_rows, *archive.pixels.image_shape), dtype=np.uint8)
    for shard_start in range(start, stop, shard_rows):
        pixels.fill(0)
        expected = min(shard_rows, stop - shard_start)
        stored = _fill_shard(pixels, shard_start, islice(images, expected), transform, rows)
        assert stored == expected, "the source yields fewer images than it lists"
        archive.pixels.write_shard(shard_start, pixels)

    fingerprint = archive.fingerprint(part)
    write_table(archive.rejects_path(part), pa.Table.from_pylist(rows.rejects, REJECTS_SCHEMA), fingerprint)
    samples = pa.Table.from_pylist(rows.samples, SAMPLES_SCHEMA)
    write_table(archive.samples_path(part), samples, fingerprint, extra={"content": _content(archive, samples)})


def _fill_shard(
    pixels: npt.NDArray[np.uint8], start: int, images: Iterator[SourceImage], transform: ImageTransform, rows: _PartRows
) -> int:
    offset = -1
    for offset, item in enumerate(images):
        row = start + offset
        prepared = _prepare(item, transform)
        if isinstance(prepared, str):
            rows.rejects.append({"row": row, "sample_id": item.sample_id, "source": item.source, "reason": prepared})
            continue
        pixels[offset] = prepared
        rows.samples.append(
            {
                "row": row,
                "sample_id": item.sample_id,
                "label": item.label,
                "group_id": item.group_id,
                "source": item.source,
                "content_hash": hashlib.sha256(prepared.tobytes()).hexdigest(),
                "corruption": item.corruption,
                "severity": item.severity,
            }
        )
    return offset + 1


def _prepare(item: SourceImage, transform: ImageTransform) -> npt.NDArray[np.uint8] | str:
    """Pixels of the image, or the reason for its rejection."""
    if item.image is None:
        return str(item.problem)
    try:
        return prepare_image(item.image, transform)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything, and one bad image never stops the night
        return describe_defect(error)


def _content(archive: Archive, samples: pa.Table) -> str:
    columns = {name: samples[name].to_pylist() for name in CONTENT_COLUMNS}
    return digest_json({"geometry": archive.geometry.as_json(), **columns})


def _check_unchanged(archive: Archive, position: int, segment: Segment, source: Source) -> None:
    identity = source.identity
    changed = sorted(
        name for name in segment.source.keys() | identity.keys() if segment.source.get(name) != identity.get(name)
    )
    if segment.rows != len(source):
        changed.append("number of images")
    if changed:
        raise StaleCacheError(
            f"{archive.path}: source {position} ({_name(segment.source)}) changed in {', '.join(changed)} since it was "
            "stored; use another archive folder, or list the new images as a further source"
        )


def _name(identity: Mapping[str, JSON]) -> str:
    return " ".join(str(identity[key]) for key in NAMING if key in identity)
