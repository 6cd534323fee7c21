"""Cells, altered copies of them, and sets of hashes for the tests of this room."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from pipeline.archives.synthetic import SyntheticSource
from pipeline.checks.duplicates import NearSettings, Pairs, compare_thumbnails, near_candidates
from pipeline.checks.hashing import HashedImages, Hasher, thumbnail

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


def near_pairs(first: Sequence[Pixels], second: Sequence[Pixels]) -> set[tuple[int, int]]:
    """Confirmed near duplicates at default settings."""
    settings = NearSettings()
    one, two = hashed(first), hashed(second)
    pairs = near_candidates(one, two, settings).pairs
    dissimilarity, difference = compare(first, second, pairs, one, two)
    near = (dissimilarity <= settings.dissimilarity) & (difference <= settings.difference)
    return set(zip(pairs.first[near].tolist(), pairs.second[near].tolist(), strict=True))


def compare(
    first: Sequence[Pixels], second: Sequence[Pixels], pairs: Pairs, one: HashedImages, two: HashedImages
) -> tuple[np.ndarray, np.ndarray]:
    if not len(pairs):
        return np.empty(0), np.empty(0)
    return compare_thumbnails(
        np.stack([thumbnail(first[at]) for at in pairs.first]),
        np.stack([thumbnail(second[at]) for at in pairs.second]),
        one.thumbnail_sum + two.thumbnail_sum,
        one.summed + two.summed,
    )


Alteration = Callable[[Pixels], Pixels]
