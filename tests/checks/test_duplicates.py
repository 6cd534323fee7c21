import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import gaussian_filter
from scipy.stats import pearsonr

from pipeline.checks import duplicates
from pipeline.checks.duplicates import (
    EDGE_SLACK,
    NearSettings,
    Pairs,
    best_of_each,
    compare_thumbnails,
    exact_pairs,
    least_difference,
    near_candidates,
)
from pipeline.checks.hashing import SIDE, HashedImages
from tests.checks.factory import Alteration, cells, duplicates_of, hashed, jpeg, near_pairs, shifted

ALTERATIONS: dict[str, Alteration] = {
    "JPEG 90": jpeg,
    "one pixel to the right": lambda pixels: shifted(pixels, 0, 1),
    "one pixel down, then JPEG 90": lambda pixels: jpeg(shifted(pixels, 1, 0)),
    "a little noise": lambda pixels: np.clip(
        pixels + np.random.default_rng(1).normal(0, 2, pixels.shape), 0, 255
    ).astype(np.uint8),
}


def of_looks(looks: list[int], contents: list[bytes] | None = None) -> HashedImages:
    count = len(looks)
    names = contents or [b"%d" % index for index in range(count)]
    zeros = np.zeros((SIDE, SIDE, 3), dtype=np.int64)
    return HashedImages(
        np.arange(count), np.array(names, "S32"), np.array(looks, np.uint64), np.zeros(count, np.uint64), zeros, count
    )


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_copy_is_a_near_duplicate_of_its_original_and_of_no_other(name: str) -> None:
    originals = cells(40, seed=3, size=64)
    copies = [ALTERATIONS[name](pixels) for pixels in originals]
    assert near_pairs(copies, originals) == {(index, index) for index in range(40)}


def test_unrelated_cells_are_no_duplicates_though_some_hashes_are_near() -> None:
    first, second = cells(150, seed=4), cells(150, seed=5)
    assert len(near_candidates(hashed(first), hashed(second), NearSettings()).pairs)
    assert near_pairs(first, second) == set()
    assert len(exact_pairs(hashed(first), hashed(second))) == 0


@given(
    first=st.lists(st.integers(0, 2**64 - 1), max_size=12),
    second=st.lists(st.integers(0, 2**64 - 1), max_size=12),
    distance=st.integers(0, 40),
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_candidates_are_all_pairs_within_the_distance(
    first: list[int], second: list[int], distance: int, block: int
) -> None:
    expected = {
        (i, j, (one ^ two).bit_count())
        for i, one in enumerate(first)
        for j, two in enumerate(second)
        if (one ^ two).bit_count() <= distance
    }
    settings = NearSettings(distance=distance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "PAIRS_PER_BLOCK", block)
        one, two = of_looks(first), of_looks(second, [b"other %d" % index for index in range(len(second))])
        pairs = near_candidates(one, two, settings).pairs
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.distances.tolist(), strict=True)) == expected


def test_inside_a_set_each_pair_of_candidates_comes_once_the_later_image_first() -> None:
    pairs = near_candidates(of_looks([0, 1, 3, 2**64 - 1]), None, NearSettings(distance=1)).pairs
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(1, 0), (2, 1)]


def test_only_the_nearest_candidates_are_kept_and_the_others_counted() -> None:
    looks = [0b111, 0b1, 0b0, 0b11]
    found = near_candidates(of_looks([0], [b"x"]), of_looks(looks), replace(NearSettings(), candidates_per_image=2))
    assert found.pairs.second.tolist() == [2, 1]
    assert found.pairs.distances.tolist() == [0, 1]
    assert found.left_out == 2


def test_each_image_is_paired_with_the_earliest_exact_copy() -> None:
    a, b, c = cells(3, seed=6)
    pairs = exact_pairs(hashed([b, c, b]), hashed([a, b, a, b]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 1), (2, 1)]


def test_an_image_with_an_exact_copy_is_not_listed_as_a_near_one_of_another() -> None:
    a, b = cells(2, seed=12)
    test, training = [a, jpeg(b)], [ALTERATIONS["a little noise"](a), a, b, ALTERATIONS["a little noise"](b)]
    assert duplicates_of(test, training, "exact") == {(0, 1)}
    assert {row for row, _ in near_pairs(test, training)} == {1}


def test_k_copies_inside_a_set_are_k_minus_one_duplicates() -> None:
    a, b = cells(2, seed=7)
    pairs = exact_pairs(hashed([a, b, a, a]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(2, 0), (3, 0)]


def test_images_of_one_cluster_are_no_duplicates_of_one_another() -> None:
    (a,) = cells(1, seed=8)
    first, second = hashed([a, a], ["base/1", "base/2"]), hashed([a], ["base/1"])
    assert exact_pairs(first, second).first.tolist() == [1]
    assert len(exact_pairs(hashed([a, a], ["base/1", "base/1"]))) == 0
    noisy = hashed([ALTERATIONS["a little noise"](a)], ["base/1"])
    assert near_candidates(noisy, second, NearSettings()).pairs.first.tolist() == []
    assert near_candidates(noisy, hashed([a]), NearSettings()).pairs.first.tolist() == [0]


def test_comparison_equals_the_formula_in_float64() -> None:
    generator = np.random.default_rng(0)
    thumbnails = generator.integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
    first, second = thumbnails[:2], thumbnails[[1, 2]]
    dissimilarity, difference = compare_thumbnails(first, second, thumbnails.sum(axis=0, dtype=np.int64), 5)
    grey = np.array([0.299, 0.587, 0.114])
    for pair in range(2):
        one, two = first[pair].astype(float), second[pair].astype(float)
        rest = (thumbnails.astype(float).sum(axis=0) - one - two) / 3
        detail = [each @ grey - gaussian_filter(each @ grey, 2.0) for each in (one, two, rest)]
        best = (np.inf, np.inf)
        for down, right in itertools.product((-1, -0.5, 0, 0.5, 1), repeat=2):
            here = np.ix_(inside(down), inside(right))
            moved = at(detail[1], inside(down) - down, inside(right) - right)
            r = pearsonr((detail[0] - detail[2])[here].ravel(), (moved - detail[2][here]).ravel()).statistic
            pixels = np.stack([at(two[..., c], inside(down) - down, inside(right) - right) for c in range(3)], axis=-1)
            best = min(best, (1 - r, np.abs(one[here] - pixels).mean()))
        assert dissimilarity[pair] == pytest.approx(best[0], abs=1e-5)
        assert difference[pair] == pytest.approx(best[1], abs=1e-3)


def inside(shift: float) -> np.ndarray:
    """Positions along one axis that have a counterpart in an image moved by ``shift``."""
    positions = np.arange(SIDE)
    return positions[(positions - shift >= 0) & (positions - shift <= SIDE - 1)]


def at(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    grid = RegularGridInterpolator((np.arange(SIDE), np.arange(SIDE)), image)
    return grid(tuple(np.meshgrid(rows, columns, indexing="ij")))


def test_the_same_detail_in_another_colour_is_no_copy() -> None:
    originals = cells(10, seed=9)
    tinted = [np.maximum(pixels - np.array([24, 0, 0]), 0).astype(np.uint8) for pixels in originals]
    paler = [np.clip(pixels.astype(int) + 3, 0, 255).astype(np.uint8) for pixels in originals]
    assert near_pairs(tinted, originals) == set()
    assert near_pairs(paler, originals) == {(index, index) for index in range(10)}


def test_what_all_images_share_makes_no_duplicates() -> None:
    """Discs on black that differ in faint spots only, as fundus photographs do."""
    generator = np.random.default_rng(2)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    disc = np.where(np.hypot(x, y) < 13, 150.0, 0.0)[..., None]
    spots = gaussian_filter(generator.normal(0, 25, (40, SIDE, SIDE, 1)), (0, 1, 1, 0)) * (disc > 0)
    images = list(np.clip(disc + spots + np.zeros(3), 0, 255).astype(np.uint8))
    assert len(near_candidates(hashed(images[:20]), hashed(images[20:]), NearSettings()).pairs)
    assert near_pairs(images[:20], images[20:]) == set()
    brighter = [image + (image > 0).astype(np.uint8) for image in images[:20]]
    assert near_pairs(brighter, images) == {(index, index) for index in range(20)}


def test_mean_colours_bound_the_difference_from_below_but_for_the_edges() -> None:
    first, second = (np.stack(cells(60, seed, size=SIDE)) for seed in (10, 11))
    total = (first.astype(np.int64) + second).sum(axis=0)
    _, difference = compare_thumbnails(first, second, total, 120)
    least = least_difference(first, second)
    np.testing.assert_allclose(least, np.abs(first.mean((1, 2)) - second.mean((1, 2))).mean(1), rtol=1e-5)
    assert (least <= difference + EDGE_SLACK).all()
    assert (least > 0).all()


def test_images_without_detail_are_not_called_alike() -> None:
    flat = np.full((1, SIDE, SIDE, 3), 7, dtype=np.uint8)
    dissimilarity, _ = compare_thumbnails(flat, flat, 2 * flat[0].astype(np.int64), 2)
    assert dissimilarity.tolist() == [1.0]


def test_of_several_near_copies_the_likest_counts_and_then_the_earlier() -> None:
    pairs = Pairs(np.array([1, 1, 0, 0]), np.array([5, 6, 9, 8]), np.zeros(4, np.int64))
    best = best_of_each(pairs, np.array([0.05, 0.01, 0.02, 0.02], np.float32))
    assert pairs.second[best].tolist() == [8, 6]
