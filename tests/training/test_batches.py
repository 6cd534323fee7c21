"""The batches of an epoch and their augmentation: functions of the seed that lose no image."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.batches import augment, epoch_batches, generator_for, steps_per_epoch
from tests.training.factory import draw


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 3),
    epoch=st.integers(1, 3),
)
def test_an_epoch_draws_every_image_once_in_batches_of_one_set(sizes, batch_size, seed, epoch):
    batches = epoch_batches(sizes, batch_size, seed=seed, epoch=epoch)
    assert len(batches) == steps_per_epoch(sizes, batch_size) == sum(math.ceil(size / batch_size) for size in sizes)
    for index, size in enumerate(sizes):
        drawn = [batch.rows for batch in batches if batch.set_index == index]
        assert sorted(np.concatenate(drawn)) == [*range(size)]
        lengths = {len(rows) for rows in drawn}
        assert max(lengths) <= batch_size
        assert max(lengths) - min(lengths) <= 1


def test_pooled_sets_are_interleaved_in_proportion_and_anew_each_epoch():
    def order(epoch, seed=0):
        return [batch.set_index for batch in epoch_batches([3200, 640], 32, seed=seed, epoch=epoch)]

    assert order(1).count(0) == 100
    assert order(1).count(1) == 20
    assert 4 <= order(1)[:60].count(1) <= 16
    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=1)


def test_augmented_images_are_crops_of_the_reflected_image():
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 11, 3), dtype=np.uint8)
    cropped = augment(torch.from_numpy(images), padding=3, horizontal_flip=False, generator=generator_for(0, 1, 2))
    assert cropped.shape == images.shape
    assert cropped.dtype == torch.uint8
    shifts = set()
    for image, crop in zip(images, cropped.numpy(), strict=True):
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
        found = [(y, x) for y in range(7) for x in range(7) if (padded[y : y + 9, x : x + 11] == crop).all()]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 20


def test_augmentation_is_a_function_of_its_seed():
    images = torch.from_numpy(draw(32, 0, ("red", "blue"))[0])

    def once(*keys):
        return augment(images, padding=3, horizontal_flip=True, generator=generator_for(*keys))

    assert torch.equal(once(0, 1, 2), once(0, 1, 2))
    assert not torch.equal(once(0, 1, 2), once(0, 1, 3))
    assert not torch.equal(once(0, 1, 2), once(0, 2, 2))


def test_images_are_mirrored_only_when_asked():
    images = torch.from_numpy(draw(64, 0, ("red", "blue"))[0])
    kept = augment(images, padding=0, horizontal_flip=False, generator=generator_for(0))
    mixed = augment(images, padding=0, horizontal_flip=True, generator=generator_for(0))
    assert torch.equal(kept, images)
    is_same = (mixed == images).flatten(1).all(1)
    is_mirrored = (mixed == images.flip(2)).flatten(1).all(1)
    assert (is_same ^ is_mirrored).all()
    assert 16 < int(is_mirrored.sum()) < 48
