import hashlib

import imagehash
import numpy as np
from PIL import Image

from pipeline.checks.hashing import NO_CLUSTER, SIDE, hash_cluster, perceptual_hash, thumbnail
from tests.checks.factory import cells, hashed


def test_looks_are_the_bits_of_imagehash_on_cells_of_several_sizes() -> None:
    for size in (16, 28, 64):
        for pixels in cells(5, seed=1, size=size):
            assert f"{perceptual_hash(pixels):016x}" == str(imagehash.phash(Image.fromarray(pixels)))


def test_contents_are_the_digests_that_archives_record() -> None:
    images = cells(4, seed=2)
    found = hashed(images).contents.tolist()
    assert found == [hashlib.sha256(pixels.tobytes()).digest() for pixels in images]


def test_the_thumbnail_sum_is_that_of_all_images_also_for_a_selection() -> None:
    images = cells(6, seed=3, size=40)
    selected = hashed(images).select(np.array([1, 4]))
    assert selected.addresses.tolist() == [1, 4]
    assert selected.summed == 6
    expected = sum(np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.LANCZOS)).astype(int) for each in images)
    np.testing.assert_array_equal(selected.thumbnail_sum, expected)
    assert thumbnail(images[0]).shape == (SIDE, SIDE, 3)


def test_clusters_are_told_apart_and_never_none() -> None:
    ids = [hash_cluster(f"cell/0/{index}") for index in range(1000)]
    assert len(set(ids)) == 1000
    assert NO_CLUSTER not in ids
    assert hashed(cells(1, seed=1)).clusters.tolist() == [NO_CLUSTER]
