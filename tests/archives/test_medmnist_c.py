"""MedMNIST-C's layout: every row at its place, under its base image's group; what is missing or torn is one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.archives.source import Source, SourceImage
from pipeline.errors import AbsentSourceError, SourceError
from pipeline.manifest.images import CleanSource, MedMNISTCSource, MedMNISTSource, NpzSource
from pipeline.stages.sources import open_source

CLASSES = ["a", "b", "c"]
BASE = 6
CELLS = [str(number) for number in range(8)]
FILES = {
    "breastmnist": ["jpeg_compression", "pixelate", "speckle_noise"],
    "retinamnist": ["gaussian_noise", "jpeg_compression", "pixelate", "speckle_noise"],
    "pbcblood": ["pixelate"],
}
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save_(dataset: str, corruption: str, **arrays: np.ndarray) -> Path:
        path = tmp_path / dataset / f"{corruption}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **arrays)
        return path

    return save_


def rows(mark: int = 0, base: int = BASE) -> dict[str, np.ndarray]:
    """Images whose first pixel is their severity, second their position, third ``mark``; classes take turns."""
    images = np.zeros((5 * base, 4, 4), np.uint8)
    images[:, 0, 0] = np.repeat(np.arange(1, 6), base)
    images[:, 0, 1] = np.tile(np.arange(base), 5)
    images[:, 0, 2] = mark
    return {"test_images": images, "test_labels": np.tile(np.arange(base) % 3, 5)[:, None].astype(np.uint8)}


def opened(root: Path, dataset: str = "cells", **settings: Any) -> Source:
    names = {} if dataset in FILES else {"class_names": CLASSES}
    return open_source(
        MedMNISTCSource(kind="medmnist-c", dataset=dataset, root=str(root), **{**names, **settings}), None
    )


def listed(source: Source) -> list[SourceImage]:
    return list(source.read(0, len(source)))


def refusal(root: Path, dataset: str = "cells", **settings: Any) -> str:
    # Not pytest.raises: what it keeps would hold other sources' open files until some later test.
    try:
        listed(opened(root, dataset, **settings))
    except SourceError as error:
        said = str(error)
    else:
        pytest.fail("was not refused")
    assert "\n" not in said
    return said


def clean_source(dataset: str, data_root: Path) -> Source:
    spec: CleanSource
    if dataset == "pbcblood":
        path = data_root / "medmnist" / "pbcblood.npz"
        spec = NpzSource(kind="npz", path=str(path), split="test", class_names=CELLS)
    else:
        spec = MedMNISTSource(kind="medmnist", flag=dataset, split="test")
    return open_source(spec, str(data_root))


@pytest.mark.parametrize("dataset", FILES)
def test_every_released_file_reads_as_numpy_does(data_root: Path, dataset: str) -> None:
    names = {"class_names": CELLS} if dataset == "pbcblood" else {}
    source = open_source(MedMNISTCSource(kind="medmnist-c", dataset=dataset, **names), str(data_root))
    clean = clean_source(dataset, data_root)
    base = len(clean)
    assert len(source) == base * 5 * len(FILES[dataset])
    for number, corruption in enumerate(FILES[dataset]):
        with np.load(data_root / "medmnist-c" / dataset / f"{corruption}.npz") as arrays:
            images, labels = arrays["test_images"], arrays["test_labels"].reshape(-1)
        first = number * 5 * base
        for row in [0, base - 1, base, *range(7, 5 * base, 611), 5 * base - 1]:
            (item,) = source.read(first + row, first + row + 1)
            severity, position = row // base + 1, row % base
            (original,) = clean.read(position, position + 1)
            assert (item.index, item.label, item.problem) == (first + row, labels[row], None)
            assert (item.corruption, item.severity, item.source) == (corruption, severity, f"{corruption}.npz")
            assert item.sample_id == f"{dataset}/{corruption}/{severity}/{position}"
            assert item.group_id == original.sample_id
            assert item.group_id == (original.group_id or original.sample_id)
            assert item.label == original.label
            np.testing.assert_array_equal(np.asarray(item.image), images[row])


def test_rows_stand_by_corruption_then_severity_then_base_image(save: Save, tmp_path: Path) -> None:
    for mark, name in enumerate(["pixelate", "fog", "bubble"]):
        save("cells", name, **rows(mark))
    source = opened(tmp_path, corruptions=["fog", "pixelate"], severities=[2, 5])
    read = listed(source)
    assert len(read) == len(source) == 2 * 2 * BASE
    expected = [
        (name, severity, position, mark)
        for name, mark in (("fog", 1), ("pixelate", 0))
        for severity in (2, 5)
        for position in range(BASE)
    ]
    found = [(item.corruption, *np.asarray(item.image)[0, :3].tolist()) for item in read]
    assert found == expected
    assert [item.severity for item in read] == [severity for _, severity, _, _ in expected]
    assert [item.index for item in read] == list(range(len(source)))
    for start, stop in [(5, 19), (0, 1), (11, 13), (7, 7), (23, 24)]:
        assert [item.sample_id for item in source.read(start, stop)] == [item.sample_id for item in read[start:stop]]


def test_without_a_choice_all_files_are_read_by_name(save: Save, tmp_path: Path) -> None:
    save("cells", "pixelate", **rows())
    save("cells", "fog", **rows())
    assert list(dict.fromkeys(item.corruption for item in listed(opened(tmp_path)))) == ["fog", "pixelate"]


def test_a_fold_holds_what_medmnist_c_has_for_the_set(save: Save, tmp_path: Path) -> None:
    for name in ("speckle_noise", "jpeg_compression", "pixelate"):
        save("breastmnist", name, **{**rows(), "test_labels": np.zeros(5 * BASE, np.uint8)})
    source = opened(tmp_path, "breastmnist", folds=["noise", "digital"])
    names = ["speckle_noise", "pixelate", "jpeg_compression"]
    assert list(dict.fromkeys(item.corruption for item in listed(source))) == names
    assert source.class_names == ("malignant", "normal, benign")
    said = refusal(tmp_path, "breastmnist", folds=["digital", "color"])
    assert "brightness_up.npz, brightness_down.npz, contrast_down.npz not there" in said
    assert "there: jpeg_compression, pixelate, speckle_noise;" in said
    assert "zenodo.org/records/11471504" in said


def test_a_fold_that_the_set_does_not_have_is_refused(save: Save, tmp_path: Path) -> None:
    # Known before anything is fetched: there is no such folder.
    said = refusal(tmp_path, "bloodmnist", folds=["digital", "noise"], class_names=None)
    assert said.startswith("MedMNIST-C has no corruption of fold 'noise' for 'bloodmnist'; it has digital, blur, color")
    save("cells", "pixelate", **rows())
    assert "no corruption of fold 'blur' for 'cells'; it has digital;" in refusal(tmp_path, folds=["blur"])
    assert len(opened(tmp_path, folds=["digital"])) == 5 * BASE


def test_what_is_absent_is_named_with_where_to_get_it(save: Save, tmp_path: Path) -> None:
    said = refusal(tmp_path, "breastmnist")
    assert said.startswith(f"{tmp_path / 'breastmnist'}: no such folder; get breastmnist.zip of MedMNIST-C")
    assert f"unpack it to {tmp_path / 'breastmnist'}" in said
    save("cells", "pixelate", **rows())
    assert "fog.npz not there; corruptions there: pixelate" in refusal(tmp_path, corruptions=["fog"])
    assert "give its 'class_names'" in refusal(tmp_path, class_names=None)
    (tmp_path / "empty").mkdir()
    assert "holds no .npz file" in refusal(tmp_path, "empty")
    with pytest.raises(AbsentSourceError, match="neither 'root' nor 'data_root'"):
        open_source(MedMNISTCSource(kind="medmnist-c", dataset="cells", class_names=CLASSES), None)


@pytest.mark.parametrize("nested", ["medmnist-c", "."])
def test_the_set_is_looked_for_under_the_data_root(save: Save, tmp_path: Path, nested: str) -> None:
    save("cells", "pixelate", **rows())
    home = tmp_path / "data" / nested
    home.mkdir(parents=True)
    (tmp_path / "cells").rename(home / "cells")
    spec = MedMNISTCSource(kind="medmnist-c", dataset="cells", class_names=CLASSES)
    assert len(open_source(spec, str(tmp_path / "data"))) == 5 * BASE


def test_files_that_are_not_in_the_layout_are_refused(save: Save, tmp_path: Path) -> None:
    whole = rows()
    save("cells", "pixelate", **{name: array[:-1] for name, array in whole.items()})
    assert "holds 29 images, which is not 5 severities of equally many" in refusal(tmp_path)
    image_major = np.repeat(np.arange(BASE) % 3, 5)
    save("cells", "pixelate", **{**whole, "test_labels": image_major})
    assert "rows must be ordered by severity first" in refusal(tmp_path)
    save("cells", "pixelate", **{f"train_{name[5:]}": array for name, array in whole.items()})
    assert "no split 'test'" in refusal(tmp_path)
    save("cells", "fog", **rows(base=BASE + 3))
    save("cells", "pixelate", **whole)
    assert "pixelate.npz: its labels are not those of fog.npz" in refusal(tmp_path)


def test_a_truncated_file_is_one_line(save: Save, tmp_path: Path) -> None:
    path = save("cells", "pixelate", **rows())
    path.write_bytes(path.read_bytes()[:-300])
    assert refusal(tmp_path).startswith(f"{path}: damaged or not an .npz file")


def test_a_label_outside_the_classes_rejects_that_image_alone(save: Save, tmp_path: Path) -> None:
    arrays = rows()
    arrays["test_labels"][2 * BASE + 4] = 9
    save("cells", "pixelate", **arrays)
    problems = {item.sample_id: item.problem for item in listed(opened(tmp_path)) if item.problem}
    assert problems == {"cells/pixelate/3/4": "label 9 is outside the 3 classes"}


def test_a_stratified_part_is_the_clean_sets_own_at_every_severity(save: Save, tmp_path: Path) -> None:
    base = 40
    arrays = rows(base=base)
    save("cells", "pixelate", **arrays)
    save("cells", "fog", **arrays)
    np.savez(tmp_path / "cells.npz", **{name: array[:base] for name, array in arrays.items()})
    part = {"images": 9, "seed": 3}
    clean = listed(
        open_source(
            NpzSource(kind="npz", path=str(tmp_path / "cells.npz"), split="test", class_names=CLASSES, stratified=part),
            None,
        )
    )
    source = opened(tmp_path, stratified=part, severities=[1, 4])
    read = listed(source)
    groups = [item.sample_id for item in clean]
    assert len(groups) == 9
    assert [item.group_id for item in read] == groups * 4
    assert [int(np.asarray(item.image)[0, 1]) for item in read[:9]] == [int(group.split("/")[2]) for group in groups]
    assert source.identity["stratified"] == part


def test_a_stratified_part_larger_than_the_set_is_refused(save: Save, tmp_path: Path) -> None:
    save("cells", "pixelate", **rows())
    said = refusal(tmp_path, stratified={"images": 7})
    assert said == f"{tmp_path / 'cells'}: stratified.images is 7, but there are only 6; ask for fewer"


def test_identity_says_what_was_asked_for_and_follows_the_content(save: Save, tmp_path: Path) -> None:
    save("cells", "pixelate", **rows())
    before = opened(tmp_path).identity
    assert before["kind"] == "medmnist-c"
    assert str(tmp_path) not in str(before)
    assert opened(tmp_path, severities=[1]).identity != before
    save("cells", "pixelate", **rows(mark=1))
    assert opened(tmp_path).identity != before
