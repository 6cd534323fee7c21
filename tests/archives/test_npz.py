import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.archives.npz import NpzSource
from pipeline.errors import SourceError
from tests.archives.npy_factory import announcing, saved

NAMES = tuple("abcde")
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save_(compressed: bool = True, **arrays: np.ndarray) -> Path:
        path = tmp_path / "cells.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return save_


def pixels(count: int = 30, *tail: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *(tail or (9, 7, 3))), dtype=np.uint8)


def labels(count: int = 30) -> np.ndarray:
    return np.arange(count, dtype=np.uint8)[:, None] % 5


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("tail", [(9, 7, 3), (9, 7)])
@pytest.mark.parametrize("block", [1, 5 * 9 * 7 * 3, 1 << 20])
def test_any_range_in_any_order_gives_the_saved_images(
    save: Save, monkeypatch: pytest.MonkeyPatch, compressed: bool, tail: tuple[int, ...], block: int
) -> None:
    monkeypatch.setattr("pipeline.archives.npz.READ_BYTES", block)
    images = pixels(30, *tail)
    source = NpzSource(save(compressed, test_images=images, test_labels=labels()), "test", NAMES)
    assert len(source) == 30
    for start, stop in [(0, 30), (20, 30), (3, 4), (5, 5), (11, 25)]:
        read = list(source.read(start, stop))
        assert [item.index for item in read] == list(range(start, stop))
        assert [item.label for item in read] == [index % 5 for index in range(start, stop)]
        for item in read:
            assert item.image is not None
            assert item.sample_id == f"cells/test/{item.index}"
            np.testing.assert_array_equal(np.asarray(item.image), images[item.index])


def test_interleaved_reads_do_not_disturb_each_other(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.archives.npz.READ_BYTES", 1)
    images = pixels()
    source = NpzSource(save(test_images=images, test_labels=labels()), "test", NAMES)
    for first, second in zip(source.read(0, 10), source.read(20, 30), strict=True):
        np.testing.assert_array_equal(np.asarray(first.image), images[first.index])
        np.testing.assert_array_equal(np.asarray(second.image), images[second.index])


def test_a_label_outside_the_classes_is_a_problem_of_that_image_alone(save: Save) -> None:
    values = np.array([0, 9, 4, -1])
    source = NpzSource(save(test_images=pixels(4), test_labels=values), "test", NAMES)
    read = list(source.read(0, 4))
    assert [item.problem for item in read] == [
        None,
        "label 9 is outside the 5 classes",
        None,
        "label -1 is outside the 5 classes",
    ]
    assert [item.image is None for item in read] == [False, True, False, True]


def test_identity_follows_content_and_not_place(save: Save, tmp_path: Path) -> None:
    path = save(test_images=pixels(), test_labels=labels())
    source = NpzSource(path, "test", NAMES)
    moved = tmp_path / "elsewhere" / path.name
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert NpzSource(moved, "test", NAMES).identity == source.identity
    assert str(tmp_path) not in str(source.identity)
    assert NpzSource(save(test_images=pixels() ^ 1, test_labels=labels()), "test", NAMES).identity != source.identity


def test_a_pickled_source_reads_on(save: Save) -> None:
    source = NpzSource(save(test_images=pixels(), test_labels=labels()), "test", NAMES)
    list(source.read(0, 3))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity
    np.testing.assert_array_equal(np.asarray(next(copy.read(4, 5)).image), pixels()[4])


def test_a_file_that_changed_after_listing_is_refused(save: Save) -> None:
    source = NpzSource(save(test_images=pixels(), test_labels=labels()), "test", NAMES)
    save(test_images=pixels(31), test_labels=labels(31))
    with pytest.raises(SourceError, match="changed since it was listed"):
        list(source.read(0, 3))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"train_images": pixels(), "train_labels": labels()}, "no split 'test'; splits in this file: train"),
        ({"test_images": pixels()}, "no 'test_labels'"),
        ({"test_images": pixels(), "test_labels": labels(29)}, "30 images but 29 labels"),
        ({"test_images": pixels(0), "test_labels": labels(0)}, "it is empty"),
        ({"test_images": pixels().astype(np.float32), "test_labels": labels()}, "dtype float32"),
        ({"test_images": np.asfortranarray(pixels()), "test_labels": labels()}, "Fortran order"),
        ({"test_images": pixels(30, 9, 7, 4), "test_labels": labels()}, "shape"),
        ({"test_images": pixels(), "test_labels": np.zeros((30, 14), np.uint8)}, "multi-label"),
        ({"test_images": pixels(), "test_labels": labels() / 2}, "dtype float64"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused_in_one_line(
    save: Save, arrays: dict[str, np.ndarray], said: str
) -> None:
    path = save(**arrays)
    with pytest.raises(SourceError) as caught:
        NpzSource(path, "test", NAMES)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("which", ["images", "labels"])
def test_nothing_is_ever_unpickled(save: Save, tmp_path: Path, which: str) -> None:
    bomb = np.array([Bomb(tmp_path / "witness")] * 30, dtype=object)
    arrays = {"test_images": pixels(), "test_labels": labels(), f"test_{which}": bomb}
    with pytest.raises(SourceError, match="dtype object"):
        NpzSource(save(**arrays), "test", NAMES)
    assert not (tmp_path / "witness").exists()


def test_absent_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        NpzSource(tmp_path / "no.npz", "test", NAMES)
    foreign = tmp_path / "text.npz"
    foreign.write_text("not a zip")
    with pytest.raises(SourceError, match="damaged or not an"):
        NpzSource(foreign, "test", NAMES)


def test_a_truncated_file_is_refused(save: Save) -> None:
    path = save(test_images=pixels(), test_labels=labels())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match="damaged"):
        NpzSource(path, "test", NAMES)


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_pixels_are_noticed(save: Save, compressed: bool) -> None:
    path = save(compressed, test_images=pixels(), test_labels=labels())
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        list(NpzSource(path, "test", NAMES).read(0, 30))


def test_a_header_that_announces_more_than_there_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lies.npz"
    np.save(tmp_path / "images.npy", pixels())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test_images.npy", (tmp_path / "images.npy").read_bytes()[:-1])
        np.save(tmp_path / "labels.npy", labels())
        archive.write(tmp_path / "labels.npy", "test_labels.npy")
    with pytest.raises(SourceError, match="announces"):
        NpzSource(path, "test", NAMES)


def write_members(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("member", "shape", "values"),
    [
        ("test_labels", (1 << 50,), 30),
        ("test_labels", (-3, -10), 30),
        ("test_images", (-5, -6, 9), 270),
        ("test_images", (-1, -9, 7, 3), 189),
    ],
)
def test_a_shape_that_no_array_has_is_refused(tmp_path: Path, member: str, shape: tuple[int, ...], values: int) -> None:
    good = {"test_images": saved(pixels()), "test_labels": saved(labels())}
    path = write_members(tmp_path / "lies.npz", **good | {member: announcing(shape, bytes(values))})
    with pytest.raises(SourceError) as caught:
        NpzSource(path, "test", NAMES)
    assert str(caught.value) == f"{path}: '{member}' does not hold the {shape} values it announces; fetch it again"


def test_a_header_that_cannot_be_parsed_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': (\n"
    torn = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    path = write_members(tmp_path / "torn.npz", test_images=torn, test_labels=saved(labels()))
    with pytest.raises(SourceError, match="damaged or not an"):
        NpzSource(path, "test", NAMES)


def test_real_breastmnist_reads_as_numpy_does(data_root: Path) -> None:
    path = data_root / "medmnist" / "breastmnist.npz"
    source = NpzSource(path, "val", ("malignant", "normal, benign"))
    with np.load(path) as arrays:
        images, expected = arrays["val_images"], arrays["val_labels"][:, 0]
    read = list(source.read(0, len(source)))
    np.testing.assert_array_equal(np.stack([np.asarray(item.image) for item in read]), images)
    assert [item.label for item in read] == expected.tolist()
