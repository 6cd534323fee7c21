"""Label-skewed sites of a split: disjoint, complete, with their labels, under an identity of their own."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.manifest.images import NpzSource, Site
from pipeline.stages.sources import open_source

CLASSES = ["a", "b", "c"]


def write_npz(path: Path, labels: np.ndarray) -> Path:
    """Images whose every pixel is their position in the file."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 4, 4))
    np.savez(path, train_images=images, train_labels=labels[:, None])
    return path


def site(path: Path, index: int, **settings: object) -> NpzSource:
    chosen = Site(index=index, of=3, alpha=0.3, seed=7)
    return NpzSource(kind="npz", path=str(path), split="train", class_names=CLASSES, site=chosen, **settings)


def test_sites_share_out_every_image_once_with_its_own_label(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 200)
    path = write_npz(tmp_path / "cells.npz", labels)
    seen = []
    for index in range(3):
        source = open_source(site(path, index), None)
        images = list(source.read(0, len(source)))
        assert [image.index for image in images] == list(range(len(source)))
        for image in images:
            position = int(image.sample_id.rsplit("/", maxsplit=1)[1])
            assert image.image is not None
            assert np.asarray(image.image).flat[0] == position
            assert image.label == labels[position]
            seen.append(position)
    assert sorted(seen) == list(range(200))


def test_a_site_is_skewed_and_the_same_every_time(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "cells.npz", np.arange(240) % 3)
    counts = []
    for index in range(3):
        source = open_source(site(path, index), None)
        labels = [image.label for image in source.read(0, len(source))]
        again = open_source(site(path, index), None)
        assert [image.sample_id for image in again.read(0, len(again))] == [
            image.sample_id for image in source.read(0, len(source))
        ]
        counts.append(np.bincount(labels, minlength=3))
    assert np.max(np.ptp(counts, axis=1)) > 20


def test_a_range_and_a_limit_of_a_site_are_ranges_of_its_list(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "cells.npz", np.arange(240) % 3)
    whole = open_source(site(path, 0), None)
    ids = [image.sample_id for image in whole.read(0, len(whole))]
    assert [image.sample_id for image in whole.read(3, 9)] == ids[3:9]
    limited = open_source(site(path, 0, limit=5), None)
    assert [image.sample_id for image in limited.read(0, len(limited))] == ids[:5]
    assert limited.identity["site"] == {"index": 0, "of": 3, "alpha": 0.3, "seed": 7}
    assert limited.identity["limit"] == 5


def test_a_split_with_a_label_below_zero_cannot_be_cut_into_sites(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "cells.npz", np.array([0, 1, -1, 2]))
    with pytest.raises(SourceError, match="cannot be cut into sites"):
        open_source(site(path, 0), None)
