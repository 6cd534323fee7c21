"""Small archives and unusual sources for the tests of this room."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archives.archive import Archive, create_or_open
from pipeline.archives.ingest import append_segment, write_part
from pipeline.archives.source import JSON, Source, SourceImage
from pipeline.archives.synthetic import SyntheticSource
from pipeline.geometry import Geometry

PART_ROWS = 32


@dataclass(frozen=True, slots=True)
class PatchedSource:
    """Cells of which some are out of order: ``broken`` cannot be resized, ``refused`` come as problems.

    Reading the index ``deadly`` ends the process at once, as ``kill -9`` does.
    """

    cells: SyntheticSource
    broken: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    deadly: int | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.cells.class_names

    @property
    def identity(self) -> dict[str, JSON]:
        return self.cells.identity

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        for item in self.cells.read(start, stop):
            if item.index == self.deadly:
                os._exit(9)
            if item.index in self.refused:
                yield replace(item, image=None, problem="label 9 is outside the 4 classes")
            elif item.index in self.broken:
                assert item.image is not None
                yield replace(item, image=item.image.resize((1, 30_000)))
            else:
                yield item


@dataclass(frozen=True, slots=True)
class AnnotatedSource:
    """Cells that say something else about themselves."""

    cells: SyntheticSource
    change: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.cells.class_names

    @property
    def identity(self) -> dict[str, JSON]:
        return self.cells.identity

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        for item in self.cells.read(start, stop):
            yield replace(item, **self.change)


def create(path: Path, *, part_rows: int = PART_ROWS, classes: int = 4, size: int = 28) -> Archive:
    names = SyntheticSource(1, 0, classes=classes).class_names
    return create_or_open(path, class_names=names, geometry=Geometry(size, size), part_rows=part_rows)


def ingest(path: Path, *sources: Source, part_rows: int = PART_ROWS) -> Archive:
    archive = create(path, part_rows=part_rows)
    for source in sources[len(archive.segments) :]:
        append_segment(archive, source)
    for part in archive.missing_parts():
        position, _ = archive.segment_of(part)
        write_part(archive, part, sources[position])
    return archive


def pixels_of(source: Source) -> np.ndarray:
    return np.stack([np.asarray(item.image) for item in source.read(0, len(source))])


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of an archive and its bytes, strays of killed writers left out."""
    files = (file for file in path.rglob("*") if file.is_file())
    kept = (file for file in files if not file.name.startswith(".tmp-") and not file.name.endswith(".partial"))
    return {str(file.relative_to(path)): file.read_bytes() for file in kept}
