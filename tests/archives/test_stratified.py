"""A stratified part: proportional to the classes, complete, and the same every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archives.stratified import labels_of, stratified_choice
from pipeline.archives.synthetic import SyntheticSource
from tests.archives.factory import PatchedSource


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6), data=st.data())
def test_every_class_gets_its_share_to_less_than_one_image(counts: list[int], data: st.DataObject) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    images = data.draw(st.integers(len(counts), len(labels)))
    chosen = stratified_choice(labels, images, seed=5)
    assert len(chosen) == images
    assert (np.diff(chosen) > 0).all()
    shares = np.bincount(labels[chosen], minlength=len(counts))
    exact = np.array(counts) * images / len(labels)
    assert (shares >= 1).all()
    assert (shares <= counts).all()
    if (exact >= 1).all():
        assert (np.abs(shares - exact) < 1).all()


def test_the_largest_remainders_get_what_is_left() -> None:
    labels = np.repeat([0, 1, 2], [47, 33, 20])
    # 10 of 100: 4.7, 3.3 and 2.0 images.
    assert np.bincount(labels[stratified_choice(labels, 10, 0)]).tolist() == [5, 3, 2]
    # 3 of 100: 2.85, 0.12 and 0.03; the small classes take theirs from the large one.
    rare = np.repeat([0, 1, 2], [95, 4, 1])
    assert np.bincount(rare[stratified_choice(rare, 3, 0)]).tolist() == [1, 1, 1]


def test_the_seed_decides_and_nothing_else() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 500)
    first = stratified_choice(labels, 100, 1)
    np.testing.assert_array_equal(first, stratified_choice(labels.copy(), 100, 1))
    assert not np.array_equal(first, stratified_choice(labels, 100, 2))
    np.testing.assert_array_equal(stratified_choice(labels, 500, 7), np.arange(500))


def test_all_images_of_a_class_are_equally_likely() -> None:
    labels = np.zeros(20, np.int64)
    drawn = np.concatenate([stratified_choice(labels, 5, seed) for seed in range(2000)])
    counts = np.bincount(drawn, minlength=20)
    # Binomial(2000, 1/4): mean 500, deviation 19.4.
    assert np.abs(counts - 500).max() < 5 * 19.4


@pytest.mark.parametrize(("images", "said"), [(11, "only 10"), (1, "fewer than the 2 classes")])
def test_a_part_that_cannot_be_is_refused(images: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stratified_choice(np.arange(10) % 2, images, 0)


def test_images_without_a_label_are_a_class_of_their_own() -> None:
    cells = SyntheticSource(8, 1)
    expected = [item.label for item in cells.read(0, 8)]
    assert labels_of(PatchedSource(cells, refused=(2,))).tolist() == expected
