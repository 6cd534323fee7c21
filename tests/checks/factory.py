"""Cells, altered copies of them, and sets of hashes for the tests of this room."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from pipeline.archives.synthetic import SyntheticSource
from pipeline.checks.duplicates import NearSettings
from pipeline.checks.hashing import SIDE, HashedImages, Hasher, thumbnail
from pipeline.drivers.check_compare import compare_sets
from pipeline.drivers.check_sets import Looked

Pixels = np.ndarray


def cells(count: int, seed: int, size: int = 28) -> list[Pixels]:
    source = SyntheticSource(count, seed, size=size)
    return [np.asarray(item.image) for item in source.read(0, count)]


def jpeg(pixels: Pixels, quality: int = 90) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def shifted(pixels: Pixels, down: int, right: int) -> Pixels:
    """The image moved, its edge repeated where nothing is known."""
    padded = np.pad(pixels, ((down, 0), (right, 0), (0, 0)), mode="edge")
    return padded[: pixels.shape[0], : pixels.shape[1]]


def hashed(images: Sequence[Pixels], clusters: Sequence[str | None] | None = None) -> HashedImages:
    hasher = Hasher()
    for address, pixels in enumerate(images):
        hasher.add(address, pixels, cluster=None if clusters is None else clusters[address])
    return hasher.finish()


class ImagesInMemory:
    """A set as the command reads it, without an archive or a source; sample ids are positions."""

    def __init__(self, images: Sequence[Pixels]) -> None:
        self._images = images
        self.hashes = hashed(images)

    def look(self, positions: np.ndarray) -> Looked:
        thumbnails = [thumbnail(self._images[position]) for position in positions]
        return Looked([str(position) for position in positions], np.array(thumbnails).reshape(-1, SIDE, SIDE, 3))


def duplicates_of(first: Sequence[Pixels], second: Sequence[Pixels], kind: str) -> set[tuple[int, int]]:
    """Positions of duplicates at default settings."""
    one, other = ImagesInMemory(first), ImagesInMemory(second)
    found = compare_sets(one, np.arange(len(first)), other, np.arange(len(second)), NearSettings())
    return {(each.row, int(each.other_sample_id)) for each in found.duplicates if each.kind == kind}


def near_pairs(first: Sequence[Pixels], second: Sequence[Pixels]) -> set[tuple[int, int]]:
    """Positions of near duplicates at default settings."""
    return duplicates_of(first, second, "near")


Alteration = Callable[[Pixels], Pixels]
