"""Comparing two sets of images: hashes first, then the pixels of those that look alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.checks.duplicates import (
    EDGE_SLACK,
    PAIRS_PER_COMPARISON,
    NearSettings,
    Pairs,
    best_of_each,
    compare_thumbnails,
    exact_pairs,
    least_difference,
    near_candidates,
)
from pipeline.drivers.check_sets import CheckedImages


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image of a set and its copy: ``distance`` in bits, ``dissimilarity`` and ``difference`` as compared."""

    row: int
    sample_id: str
    kind: str
    distance: int
    dissimilarity: float
    difference: float
    other_sample_id: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Duplicates of a set in another, at most one for each image, by row; and what was looked at to find the near ones.

    ``candidates`` pairs had similar hashes, ``confirmed`` of them are near duplicates, ``left_out`` were not compared.
    """

    duplicates: tuple[Duplicate, ...]
    candidates: int
    confirmed: int
    left_out: int


def compare_sets(
    first: CheckedImages,
    chosen: NDArray[np.int64],
    second: CheckedImages | None,
    chosen_second: NDArray[np.int64],
    settings: NearSettings,
) -> Comparison:
    """Duplicates that images ``chosen`` of ``first`` have among those of ``second``, or, without one, among themselves.

    An image that has an exact copy is not listed as a near one.
    """
    other = first if second is None else second
    here, there = first.hashes.select(chosen), other.hashes.select(chosen_second)
    exact = exact_pairs(here, None if second is None else there)
    found = near_candidates(here, None if second is None else there, settings)
    candidates = _at(found.pairs, chosen, chosen_second)
    dissimilarity, difference = _measure(first, other, candidates, settings)
    is_near = (dissimilarity <= settings.dissimilarity) & (difference <= settings.difference)
    confirmed = int(is_near.sum())
    exact = _at(exact, chosen, chosen_second)
    is_near &= ~np.isin(candidates.first, exact.first)
    positions = np.flatnonzero(is_near)
    positions = positions[best_of_each(candidates.select(positions), dissimilarity[positions])]
    zeros = np.zeros(len(exact), dtype=np.float32)
    duplicates = [
        *_describe(first, other, exact, "exact", zeros, zeros),
        *_describe(first, other, candidates.select(positions), "near", dissimilarity[positions], difference[positions]),
    ]
    duplicates.sort(key=lambda each: each.row)
    return Comparison(tuple(duplicates), len(candidates), confirmed, found.left_out)


def _at(pairs: Pairs, first: NDArray[np.int64], second: NDArray[np.int64]) -> Pairs:
    """Pairs of positions in two selections as pairs of positions in the whole sets."""
    return Pairs(first[pairs.first], second[pairs.second], pairs.distances)


def _measure(
    first: CheckedImages, second: CheckedImages, pairs: Pairs, settings: NearSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Dissimilarity and difference of each pair, infinite where colours alone rule it out.

    Only images that are in some pair are read again.
    """
    first_seen, first_at = np.unique(pairs.first, return_inverse=True)
    second_seen, second_at = np.unique(pairs.second, return_inverse=True)
    first_thumbnails = first.look(first_seen).thumbnails
    second_thumbnails = second.look(second_seen).thumbnails
    total, images = first.hashes.thumbnail_sum, first.hashes.summed
    if second is not first:
        total, images = total + second.hashes.thumbnail_sum, images + second.hashes.summed
    dissimilarity, difference = np.full((2, len(pairs)), np.inf, dtype=np.float32)
    for start in range(0, len(pairs), PAIRS_PER_COMPARISON):
        block = np.arange(start, min(start + PAIRS_PER_COMPARISON, len(pairs)))
        one, two = first_thumbnails[first_at[block]], second_thumbnails[second_at[block]]
        possible = least_difference(one, two) <= settings.difference + EDGE_SLACK
        dissimilarity[block[possible]], difference[block[possible]] = compare_thumbnails(
            one[possible], two[possible], total, images
        )
    return dissimilarity, difference


def _describe(
    first: CheckedImages,
    second: CheckedImages,
    pairs: Pairs,
    kind: str,
    dissimilarity: NDArray[np.float32],
    difference: NDArray[np.float32],
) -> list[Duplicate]:
    first_seen, first_at = np.unique(pairs.first, return_inverse=True)
    second_seen, second_at = np.unique(pairs.second, return_inverse=True)
    names, others = first.look(first_seen).sample_ids, second.look(second_seen).sample_ids
    rows = first.hashes.addresses[pairs.first].tolist()
    return [
        Duplicate(row, names[here], kind, int(distance), float(apart), float(pixels), others[there])
        for row, here, there, distance, apart, pixels in zip(
            rows, first_at, second_at, pairs.distances, dissimilarity, difference, strict=True
        )
    ]
