"""An archive: one evaluation set's images, decoded and resized once, at addresses that never change.

    ARCHIVE/archive.json                      class names, geometry, layout, and the segments (one per listed source)
    ARCHIVE/images.zarr                       uint8 [address, H, W, 3]
    ARCHIVE/samples/part-00000.parquet        row, sample_id, label, group_id, source, content_hash,
                                              corruption, severity
    ARCHIVE/rejects/part-00000.parquet        row, sample_id, source, reason

A part exists once its samples file is in place. Part p owns the addresses from p * part_rows; a source starts a new
part, so the last part of a segment may be short, and growth changes nothing that was there before.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.archives.pixels import PixelStore, choose_chunk_rows, choose_shard_rows
from pipeline.archives.shards import ChunkCache
from pipeline.archives.source import JSON
from pipeline.errors import ArchiveError, PipelineError
from pipeline.geometry import Geometry
from pipeline.store.files import TEMPORARY_PREFIX, write_json
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.store.tables import PartMetadata, PartState, part_state, read_metadata, read_table

FORMAT_VERSION = 1
RECORD_NAME = "archive.json"
# Parts written before these columns were introduced have none; they are read as nulls.
CORRUPTION_FIELDS = (pa.field("corruption", pa.string()), pa.field("severity", pa.int32()))


@dataclass(frozen=True, slots=True)
class Segment:
    """The parts made from one listed source; ``source`` is the source's identity."""

    source: Mapping[str, JSON]
    rows: int
    first_part: int
    parts: int


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive parts of one segment, inside which stage two may reorder rows."""

    index: int
    first_part: int
    parts: int

    @property
    def part_numbers(self) -> range:
        """Numbers of the window's parts, ascending."""
        return range(self.first_part, self.first_part + self.parts)


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """What ``archive.json`` says."""

    class_names: tuple[str, ...]
    geometry: Geometry
    part_rows: int
    chunk_rows: int
    shard_rows: int
    segments: tuple[Segment, ...]


class Archive:
    """An archive on a local disk; the methods read, :mod:`pipeline.archives.ingest` writes. Can be pickled."""

    def __init__(self, path: Path, record: ArchiveRecord) -> None:
        self.path = path
        self._record = record
        self._footers: dict[int, PartMetadata] = {}
        shape = (record.geometry.height, record.geometry.width, 3)
        self.pixels = PixelStore(path / "images.zarr", shape, record.chunk_rows, record.shard_rows)

    @classmethod
    def open(cls, path: Path) -> "Archive":
        """Open the archive at ``path``; :class:`ArchiveError` when there is none or its record is damaged."""
        return cls(path, _read_record(path / RECORD_NAME))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self._record.class_names

    @property
    def geometry(self) -> Geometry:
        """Size of the stored images and how they got it."""
        return self._record.geometry

    @property
    def part_rows(self) -> int:
        """Addresses a part owns."""
        return self._record.part_rows

    @property
    def segments(self) -> tuple[Segment, ...]:
        """One segment per source, in the order of their parts."""
        return self._record.segments

    @property
    def parts(self) -> int:
        """Count of parts, written or not."""
        return sum(segment.parts for segment in self.segments)

    def segment_of(self, part: int) -> tuple[int, Segment]:
        """Position and segment that ``part`` belongs to."""
        for position, segment in enumerate(self.segments):
            if segment.first_part <= part < segment.first_part + segment.parts:
                return position, segment
        raise ArchiveError(f"{self.path}: has no part {part}; it has {self.parts} parts")

    def source_range(self, part: int) -> tuple[int, int]:
        """Indices ``start, stop`` in its source's list that ``part`` holds."""
        _, segment = self.segment_of(part)
        start = (part - segment.first_part) * self.part_rows
        return start, min(start + self.part_rows, segment.rows)

    def part_range(self, part: int) -> tuple[int, int]:
        """Row addresses ``start, stop`` of the images listed for ``part``, accepted or rejected."""
        first, last = self.source_range(part)
        start = part * self.part_rows
        return start, start + last - first

    def fingerprint(self, part: int) -> Fingerprint:
        """What the files of ``part`` depend on."""
        _, segment = self.segment_of(part)
        start, stop = self.part_range(part)
        first, last = self.source_range(part)
        return Fingerprint(
            {
                "geometry": digest_json(self.geometry.as_json()),
                "class_names": digest_json(list(self.class_names)),
                "source": digest_json(segment.source),
                "source_range": f"{first}:{last}",
                "rows": f"{start}:{stop}",
            }
        )

    def samples_path(self, part: int) -> Path:
        """Where the samples file of ``part`` lies once the part is committed."""
        return self.path / "samples" / f"part-{part:05d}.parquet"

    def rejects_path(self, part: int) -> Path:
        """Where the rejects file of ``part`` lies."""
        return self.path / "rejects" / f"part-{part:05d}.parquet"

    def is_written(self, part: int) -> bool:
        """Say whether ``part`` is committed; a part made from other inputs raises ``StaleCacheError``."""
        files = (self.samples_path(part), self.rejects_path(part))
        return all(part_state(path, self.fingerprint(part)) is PartState.COMMITTED for path in files)

    def missing_parts(self) -> list[int]:
        """Parts that are still to be written, in order."""
        return [part for part in range(self.parts) if not self.is_written(part)]

    def samples(self, part: int) -> pa.Table:
        """Accepted images of ``part``: row, sample_id, label, group_id, source, content_hash, corruption, severity.

        Sorted by row.
        """
        self._check_written(self.samples_path(part), part)
        table = read_table(self.samples_path(part))
        for field in CORRUPTION_FIELDS:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table

    def accepted(self, part: int) -> int:
        """Count of the accepted images of ``part``, from the file's footer: cheap."""
        return self._footer(part).rows

    def rejects(self, part: int) -> pa.Table:
        """Rejected images of ``part``: row, sample_id, source, reason; sorted by row."""
        self._check_written(self.rejects_path(part), part)
        return read_table(self.rejects_path(part))

    def part_digest(self, part: int) -> str:
        """SHA-256 over the geometry and all accepted samples of ``part``, from the file's footer: cheap."""
        return self._footer(part).extra["content"]

    def read(self, rows: npt.NDArray[np.int64], cache: ChunkCache | None = None) -> npt.NDArray[np.uint8]:
        """Pixels [n, H, W, 3] of ``rows``: any order, duplicates allowed; :class:`ArchiveError` names unreadable rows.

        The hole of a rejected image reads as zeros. ``cache`` keeps what was decoded and not all wanted.
        """
        return self.pixels.read(rows, cache)

    def readable(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], list[str | None]]:
        """Say which ``rows`` can be read, and why the others cannot: slow, for use when :meth:`read` failed."""
        return self.pixels.readable(rows)

    def windows(self, max_rows: int, max_bytes: int) -> list[Window]:
        """Cut each segment's parts into windows of at most ``max_rows`` addresses and ``max_bytes`` of pixels.

        A window has at least one part. Later segments never change earlier windows.
        """
        part_bytes = self.part_rows * self.geometry.height * self.geometry.width * 3
        size = max(1, min(max_rows // self.part_rows, max_bytes // part_bytes))
        cuts = [
            (first, min(size, segment.first_part + segment.parts - first))
            for segment in self.segments
            for first in range(segment.first_part, segment.first_part + segment.parts, size)
        ]
        return [Window(index, first, parts) for index, (first, parts) in enumerate(cuts)]

    def add_segment(self, identity: Mapping[str, JSON], rows: int) -> Segment:
        """List ``rows`` further images: new parts after all earlier ones, durable when this returns."""
        grown = self.grown(identity, rows)
        # The array grows first: a kill between the two steps leaves addresses that no segment claims yet.
        self.pixels.resize(grown.parts * self.part_rows)
        record = replace(self._record, segments=grown.segments)
        _write_record(self.path / RECORD_NAME, record)
        self._record = record
        return grown.segments[-1]

    def grown(self, identity: Mapping[str, JSON], rows: int) -> "Archive":
        """The archive as :meth:`add_segment` would make it, in memory only."""
        segment = Segment(dict(identity), rows, self.parts, -(-rows // self.part_rows))
        return Archive(self.path, replace(self._record, segments=(*self.segments, segment)))

    def _footer(self, part: int) -> PartMetadata:
        """Footer of a samples file, read once: a committed part never changes."""
        if part not in self._footers:
            path = self.samples_path(part)
            self._check_written(path, part)
            metadata = read_metadata(path)
            if metadata is None or "content" not in metadata.extra:
                raise ArchiveError(f"{path}: damaged; delete this file and run `pipeline ingest`")
            self._footers[part] = metadata
        return self._footers[part]

    def _check_written(self, path: Path, part: int) -> None:
        self.segment_of(part)
        if not path.exists():
            raise ArchiveError(f"{path}: part {part} is not written yet; run `pipeline ingest`")


def create_or_open(path: Path, *, class_names: Sequence[str], geometry: Geometry, part_rows: int) -> Archive:
    """Open the archive at ``path`` if it has these class names, geometry and part size; create it if there is none.

    Raises :class:`ArchiveError` naming what differs, or when the folder holds something else.
    """
    if part_rows < 1:
        raise ArchiveError(f"'part_rows' must be at least 1, got {part_rows}")
    wanted = {"class_names": tuple(class_names), "geometry": geometry, "part_rows": part_rows}
    if (path / RECORD_NAME).exists():
        archive = Archive.open(path)
        differing = [
            f"'{name}' is {getattr(archive, name)!r} there and {value!r} here"
            for name, value in wanted.items()
            if getattr(archive, name) != value
        ]
        if differing:
            raise ArchiveError(f"{path}: {'; '.join(differing)}; use another archive folder")
        return archive
    if path.is_dir() and any(not entry.name.startswith(TEMPORARY_PREFIX) for entry in path.iterdir()):
        raise ArchiveError(f"{path}: not empty and not an archive (no {RECORD_NAME}); use another archive folder")
    record = _new_record(class_names, geometry, part_rows)
    _write_record(path / RECORD_NAME, record)
    return Archive(path, record)


def imagine_archive(path: Path, *, class_names: Sequence[str], geometry: Geometry, part_rows: int) -> Archive:
    """The empty archive that :func:`create_or_open` would make at ``path``, in memory only."""
    return Archive(path, _new_record(class_names, geometry, part_rows))


def _new_record(class_names: Sequence[str], geometry: Geometry, part_rows: int) -> ArchiveRecord:
    image_bytes = geometry.height * geometry.width * 3
    chunk_rows = choose_chunk_rows(part_rows, image_bytes)
    shard_rows = choose_shard_rows(part_rows, chunk_rows, image_bytes)
    return ArchiveRecord(tuple(class_names), geometry, part_rows, chunk_rows, shard_rows, segments=())


def _write_record(path: Path, record: ArchiveRecord) -> None:
    write_json(path, {"format": FORMAT_VERSION, **asdict(record)})


def _read_record(path: Path) -> ArchiveRecord:
    if not path.exists():
        raise ArchiveError(f"{path.parent}: not an archive (no {path.name}); run `pipeline ingest`")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value.pop("format")
        value["class_names"] = tuple(value["class_names"])
        value["geometry"] = Geometry.from_json(value["geometry"])
        value["segments"] = tuple(Segment(**segment) for segment in value["segments"])
        record = ArchiveRecord(**value)
    except (PipelineError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{path}: damaged ({type(error).__name__}: {error}); make the archive again") from error
    if version != FORMAT_VERSION:
        raise ArchiveError(f"{path}: has format {version}, this program reads {FORMAT_VERSION}; make the archive again")
    return record
