"""The images that a check compares: those of an archive, and those of a training set at an archive's geometry."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.archives.source import Source
from pipeline.checks.hashing import SIDE, HashedImages, Hasher, thumbnail
from pipeline.geometry import Geometry, image_transform, prepare_image

ROWS_PER_READ = 1024


@dataclass(frozen=True, slots=True)
class Looked:
    """Images that were read once more: their sample ids, and thumbnails uint8 [n, 32, 32, 3]."""

    sample_ids: list[str]
    thumbnails: NDArray[np.uint8]


class CheckedImages(Protocol):
    """A set that was read once for its hashes and can be looked into again."""

    hashes: HashedImages

    def look(self, positions: NDArray[np.int64]) -> Looked:
        """Read the images at ascending ``positions`` of ``hashes`` again."""
        ...


class ArchivedImages:
    """An evaluation set as its archive holds it; ``corrupted`` (bool [N]) says which images are corrupted versions.

    An image's cluster is its ``group_id`` where it has one, else its sample id.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        hasher, corrupted = Hasher(), []
        for part in range(archive.parts):
            samples = archive.samples(part)
            clusters = cluster_names(samples)
            corrupted += [value is not None for value in _optional(samples, "corruption")]
            rows = samples["row"].to_numpy()
            for start in range(0, len(rows), ROWS_PER_READ):
                stop = start + ROWS_PER_READ
                pixels = archive.read(rows[start:stop])
                for row, image, cluster in zip(rows[start:stop].tolist(), pixels, clusters[start:stop], strict=True):
                    hasher.add(row, image, cluster=cluster)
        self.hashes = hasher.finish()
        self.corrupted: NDArray[np.bool_] = np.array(corrupted, dtype=np.bool_)

    def look(self, positions: NDArray[np.int64]) -> Looked:
        """Read the rows at ascending ``positions`` again."""
        rows = self.hashes.addresses[positions]
        thumbnails = np.empty((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
        ids: list[str] = []
        for start in range(0, len(rows), ROWS_PER_READ):
            for offset, image in enumerate(self._archive.read(rows[start : start + ROWS_PER_READ])):
                thumbnails[start + offset] = thumbnail(image)
        for part in np.unique(rows // self._archive.part_rows).tolist():
            samples = self._archive.samples(part)
            wanted = rows[rows // self._archive.part_rows == part]
            at = np.searchsorted(samples["row"].to_numpy(), wanted)
            ids += samples["sample_id"].take(pa.array(at)).to_pylist()
        return Looked(ids, thumbnails)


class TrainingImages:
    """A training set, prepared with the archives' ``geometry`` as training prepares it; unusable images left out."""

    def __init__(self, sources: Sequence[Source], geometry: Geometry) -> None:
        self._sources = sources
        self._transform = image_transform(geometry)
        self._starts = np.cumsum([0, *map(len, sources)])
        hasher = Hasher()
        for address, image in self._prepared(np.arange(self._starts[-1], dtype=np.int64)):
            hasher.add(address, image[1])
        self.hashes = hasher.finish()

    def look(self, positions: NDArray[np.int64]) -> Looked:
        """Read the images at ascending ``positions`` again."""
        thumbnails = np.empty((len(positions), SIDE, SIDE, 3), dtype=np.uint8)
        ids = []
        for place, (_, (name, pixels)) in enumerate(self._prepared(self.hashes.addresses[positions])):
            ids.append(name)
            thumbnails[place] = thumbnail(pixels)
        return Looked(ids, thumbnails)

    def _prepared(self, addresses: NDArray[np.int64]) -> Iterator[tuple[int, tuple[str, NDArray[np.uint8]]]]:
        """Address, sample id and pixels of each usable image, runs of neighbours read in one go."""
        # A copy has no open file: what this pass opens is closed when it ends.
        for number, source in enumerate(deepcopy(self._sources)):
            start = int(self._starts[number])
            own = addresses[(addresses >= start) & (addresses < self._starts[number + 1])] - start
            for run in np.split(own, np.flatnonzero(np.diff(own) > 1) + 1) if len(own) else []:
                for item in source.read(int(run[0]), int(run[-1]) + 1):
                    if item.image is not None:
                        yield start + item.index, (item.sample_id, prepare_image(item.image, self._transform))


def cluster_names(samples: pa.Table) -> list[str]:
    """Cluster of each sample: its group where it has one, else the sample itself."""
    groups, ids = _optional(samples, "group_id"), samples["sample_id"].to_pylist()
    return [name if group is None else group for group, name in zip(groups, ids, strict=True)]


def _optional(samples: pa.Table, column: str) -> list[str | None]:
    values: list[str | None] = (
        samples[column].to_pylist() if column in samples.column_names else [None] * samples.num_rows
    )
    return values
