"""Images that two sets share, or that one set holds twice: exact copies, and copies that were altered a little.

A near duplicate is found in two steps. Candidates are pairs whose perceptual hashes differ in few bits. That alone says
little where all images look alike (a fundus photograph is a disc on black), so each candidate is compared once more, as
aligned thumbnails: what *this* image has beyond what the images of both sets have on average must
correlate, and the pixels must be close. Defaults were chosen by looking at pairs of training and test images of
BreastMNIST (which holds many scans of the same lesion), RetinaMNIST and PBC-28 at 28 pixels, and at copies made by
JPEG, shifts, noise and resizing: see :class:`NearSettings`.

Legend: P pairs, H and W the thumbnail's 32 pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.checks.hashing import NO_CLUSTER, SIDE, HashedImages

PAIRS_PER_BLOCK = 1 << 21
PAIRS_PER_COMPARISON = 2048
# By how much, in grey levels, cutting off a row and a column may bring mean colours closer.
EDGE_SLACK = 3.0
DETAIL_SIGMA = 2.0
STEPS = (0.0, -0.5, 0.5, -1.0, 1.0)
ALIGNMENTS = tuple((down, right) for down in STEPS for right in STEPS)  # in pixels of the thumbnail
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts to grey


@dataclass(frozen=True, slots=True)
class NearSettings:
    """When two images count as near duplicates.

    ``distance``: bits of 64 in which perceptual hashes may differ for a pair to be a candidate (JPEG at quality 90
    changes up to 4, a shift by one pixel 8 to 14 at 28 pixels and up to 12 at 64). ``dissimilarity``: 1 minus the
    correlation of detail (JPEG 90 at 28 pixels: up to 0.03; unrelated candidates: from 0.06 in RetinaMNIST, from 0.2
    in PBC-28). ``difference``: mean absolute difference in grey levels, which keeps apart what differs in colour only
    (JPEG 90 at 28 pixels: up to 6.3). ``candidates_per_image``: the nearest ones that are compared, so that memory is
    bounded.
    """

    distance: int = 12
    dissimilarity: float = 0.05
    difference: float = 7.0
    candidates_per_image: int = 256

    def as_json(self) -> dict[str, float]:
        """All settings by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Positions in two sets, int64 [P] each, and in how many bits the images' hashes differ, int64 [P]."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distances: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Pairs":
        """Those of the pairs that a mask or positions choose."""
        return Pairs(self.first[chosen], self.second[chosen], self.distances[chosen])


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs to be compared, and how many further ones were left out by ``candidates_per_image``."""

    pairs: Pairs
    left_out: int


def exact_pairs(first: HashedImages, second: HashedImages | None = None) -> Pairs:
    """Each image of ``first`` with the earliest image of ``second`` of the same content and another cluster.

    Without a ``second``, each image with the earliest one before it in ``first``: k copies make k - 1 pairs.
    """
    other = first if second is None else second
    order = np.argsort(other.contents, kind="stable")
    sorted_contents = other.contents[order]
    starts = np.searchsorted(sorted_contents, first.contents, side="left")
    stops = np.searchsorted(sorted_contents, first.contents, side="right")
    found: list[tuple[int, int]] = []
    for position in np.flatnonzero(stops > starts).tolist():
        matches = order[starts[position] : stops[position]]
        if second is None:
            matches = matches[matches < position]
        matches = matches[_unrelated(first.clusters[position], other.clusters[matches])]
        if len(matches):
            found.append((position, int(matches[0])))
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return Pairs(pairs[:, 0], pairs[:, 1], np.zeros(len(pairs), dtype=np.int64))


def near_candidates(first: HashedImages, second: HashedImages | None, settings: NearSettings) -> Candidates:
    """Pairs of unequal content and other clusters whose perceptual hashes lie within ``settings.distance``.

    Without a ``second``, pairs inside ``first``, the later image first. All hashes are compared with all, block by
    block, one XOR and one count of bits for each pair.
    """
    other = first if second is None else second
    blocks, left_out = [], 0
    for rows in _blocks(len(first), len(other)):
        distances = np.bitwise_count(first.looks[rows, None] ^ other.looks[None, :])
        near = distances <= settings.distance
        if second is None:
            near &= np.arange(len(other))[None, :] < rows[:, None]
        at, with_ = np.nonzero(near)
        pairs = Pairs(rows[at], with_.astype(np.int64), distances[at, with_].astype(np.int64))
        alike = first.contents[pairs.first] == other.contents[pairs.second]
        pairs = pairs.select(~alike & _unrelated(first.clusters[pairs.first], other.clusters[pairs.second]))
        kept = _nearest(pairs, settings.candidates_per_image)
        left_out += len(pairs) - len(kept)
        blocks.append(kept)
    joined = [np.concatenate([getattr(block, name) for block in blocks]) for name in Pairs.__slots__]
    return Candidates(Pairs(*joined), left_out)


def compare_thumbnails(
    first_PHWC: NDArray[np.uint8],
    second_PHWC: NDArray[np.uint8],
    total_HWC: NDArray[np.int64],
    images: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How unlike the images of each pair are: dissimilarity in [0, 2] and difference in grey levels, float32 [P] each.

    ``total_HWC`` is the sum of the thumbnails of all ``images`` of both sets. Their mean without the pair itself is
    taken from both thumbnails, and what is smoother than a few pixels; dissimilarity is 1 minus the correlation of the
    rest (1 where an image has no detail). Thumbnails are aligned first, by up to one pixel in steps of half a pixel;
    the difference is that of the alignment with the highest correlation.
    """
    weights = np.array(LUMINANCE, dtype=np.float32)
    rest = (total_HWC - first_PHWC - second_PHWC) / max(images - 2, 1)
    details = [_detail(each.astype(np.float32) @ weights) for each in (first_PHWC, second_PHWC, rest)]
    dissimilarity = np.full(len(first_PHWC), np.inf, dtype=np.float32)
    alignment = np.zeros(len(first_PHWC), dtype=np.int64)
    for number, shift in enumerate(ALIGNMENTS):
        # The rest stays where the first image is: what all images share does not move with the second.
        kept, rest_kept = _kept(details[0], shift), _kept(details[2], shift)
        apart: NDArray[np.float32] = np.float32(1) - _correlation(
            kept - rest_kept, _moved(details[1], shift) - rest_kept
        )
        better = apart < dissimilarity
        dissimilarity, alignment = np.where(better, apart, dissimilarity), np.where(better, number, alignment)
    difference = np.empty(len(first_PHWC), dtype=np.float32)
    for number, shift in enumerate(ALIGNMENTS):
        at = np.flatnonzero(alignment == number)
        kept, moved = (each[at].astype(np.float32) for each in (first_PHWC, second_PHWC))
        difference[at] = np.abs(_kept(kept, shift) - _moved(moved, shift)).mean(axis=(1, 2, 3))
    return dissimilarity, difference


def least_difference(first_PHWC: NDArray[np.uint8], second_PHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the ``difference`` of each pair cannot fall below but for the edges: that of mean colours, float32 [P]."""
    colours = [each.mean(axis=(1, 2), dtype=np.float32) for each in (first_PHWC, second_PHWC)]
    return np.abs(colours[0] - colours[1]).mean(axis=1).astype(np.float32)


def best_of_each(pairs: Pairs, dissimilarity: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions of the pairs that are the least unlike of their first image, in order of it; ties go to the earlier."""
    order = np.lexsort((pairs.second, dissimilarity, pairs.first))
    _, starts = np.unique(pairs.first[order], return_index=True)
    return order[starts].astype(np.int64)


def _unrelated(first: NDArray[np.uint64] | np.uint64, second: NDArray[np.uint64]) -> NDArray[np.bool_]:
    unrelated: NDArray[np.bool_] = (second == NO_CLUSTER) | (first != second)
    return unrelated


def _blocks(rows: int, columns: int) -> Iterator[NDArray[np.int64]]:
    size = max(1, PAIRS_PER_BLOCK // max(columns, 1))
    for start in range(0, max(rows, 1), size):
        yield np.arange(start, min(start + size, rows), dtype=np.int64)


def _nearest(pairs: Pairs, limit: int) -> Pairs:
    """The ``limit`` nearest candidates of each first image, ties to the earlier."""
    order = np.lexsort((pairs.second, pairs.distances, pairs.first))
    _, starts, counts = np.unique(pairs.first[order], return_index=True, return_counts=True)
    ranks = np.arange(len(order)) - np.repeat(starts, counts)
    return pairs.select(order[ranks < limit].astype(np.int64))


def _detail(images_PHW: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth: NDArray[np.float32] = gaussian_filter(images_PHW, (0.0, DETAIL_SIGMA, DETAIL_SIGMA))
    return images_PHW - smooth


def _correlation(first_PHW: NDArray[np.float32], second_PHW: NDArray[np.float32]) -> NDArray[np.float32]:
    first = first_PHW - first_PHW.mean(axis=(1, 2), keepdims=True)
    second = second_PHW - second_PHW.mean(axis=(1, 2), keepdims=True)
    power = (first * first).sum(axis=(1, 2)) * (second * second).sum(axis=(1, 2))
    product = (first * second).sum(axis=(1, 2))
    result: NDArray[np.float32] = np.where(power > 0, product / np.sqrt(np.maximum(power, 1e-12)), 0.0)
    return result


def _kept(images: NDArray[np.float32], shift: tuple[float, float]) -> NDArray[np.float32]:
    """The part of an image that has a counterpart in another which is moved by ``shift``."""
    down, right = shift
    return images[:, _counterpart(down), _counterpart(right)]


def _moved(images: NDArray[np.float32], shift: tuple[float, float]) -> NDArray[np.float32]:
    """Images moved by up to a pixel, half pixels interpolated, where :func:`_kept` keeps the other image."""
    for axis, along in enumerate(shift, start=1):
        kept = _counterpart(along)
        first = kept.start - along
        low, between = math.floor(first), first != math.floor(first)
        positions = np.arange(low, low + kept.stop - kept.start)
        moved = images.take(positions, axis)
        if between:
            moved = (moved + images.take(positions + 1, axis)) * np.float32(0.5)
        images = moved
    return images


def _counterpart(along: float) -> slice:
    return slice(max(math.ceil(along), 0), SIDE + min(math.floor(along), 0))
