import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pipeline.archives.archive import create_or_open
from pipeline.archives.ingest import append_segment, plan_segments
from pipeline.archives.medimeta import MedIMetaSource, find_medimeta
from pipeline.errors import AbsentSourceError, SourceError, StaleCacheError
from pipeline.geometry import Geometry
from tests.archives.medimeta_factory import NAMES, TASK, make_medimeta, some_images, task_entry
from tests.archives.npy_factory import announcing

LABELS = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]


@pytest.fixture
def pbc(tmp_path: Path) -> Path:
    return make_medimeta(tmp_path / "pbc", some_images(), LABELS)


def refusal(folder: Path, split: str = "test", task: str | None = None, splits: str = "medimeta") -> str:
    with pytest.raises(SourceError) as caught:
        list(MedIMetaSource(folder, split, task, splits).read(0, 1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_real_set_reads_as_its_files_say_sample_by_sample(data_root: Path) -> None:
    folder = data_root / "medimeta" / "pbc"
    with h5py.File(folder / "images.hdf5") as file:
        images = file["images"][:]
    numbers = np.load(folder / "task_labels" / "cell class.npy")
    (task,) = yaml.safe_load((folder / "info.yaml").read_text())["tasks"]
    paths = (folder / "splits" / "test.txt").read_text().split()
    source = MedIMetaSource(find_medimeta("pbc", None, data_root), "test")
    assert len(source) == len(paths) == 400
    for item, path in zip(source.read(0, 400), paths, strict=True):
        position = int(Path(path).stem)
        assert item.label is not None
        assert source.class_names[item.label] == task["labels"][int(numbers[position])]
        assert (item.sample_id, item.group_id, item.source) == (f"pbc/{path}", None, "images.hdf5")
        np.testing.assert_array_equal(np.asarray(item.image), images[position])


@pytest.mark.parametrize("tail", [(9, 7, 3), (9, 7, 1), (9, 7)])
@pytest.mark.parametrize("tiff", [True, False])
@pytest.mark.parametrize("block", [1, 5 * 9 * 7 * 3, 1 << 20])
def test_any_range_of_a_split_gives_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: tuple[int, ...], tiff: bool, block: int
) -> None:
    monkeypatch.setattr("pipeline.archives.hdf5.READ_BYTES", block)
    images, listed = some_images(12, *tail), [7, 0, 1, 2, 9, 11, 10]
    source = MedIMetaSource(make_medimeta(tmp_path / "set", images, LABELS, test=listed, tiff=tiff), "test")
    positions = sorted(listed)
    assert len(source) == 7
    for start, stop in [(0, 7), (3, 5), (2, 2), (6, 7), (0, 4)]:
        read = list(source.read(start, stop))
        assert [item.index for item in read] == list(range(start, stop))
        assert [item.sample_id for item in read] == [f"set/images/{p:06d}.tiff" for p in positions[start:stop]]
        assert [item.label for item in read] == [LABELS[p] for p in positions[start:stop]]
        for item, position in zip(read, positions[start:stop], strict=True):
            np.testing.assert_array_equal(np.asarray(item.image), images[position].squeeze())


def test_original_splits_are_read_where_asked_for(pbc: Path) -> None:
    source = MedIMetaSource(pbc, "train", splits="original")
    assert [item.sample_id[-11:] for item in source.read(0, len(source))] == [
        "000000.tiff",
        "000001.tiff",
        "000002.tiff",
    ]
    assert source.identity["splits"] == "original"


def test_class_names_follow_the_numbers_and_not_the_order_of_the_lines(tmp_path: Path) -> None:
    tasks = [task_entry({8: "worst", 0: "none", 4: "some"}, target="ORDINAL_REGRESSION")]
    folder = make_medimeta(tmp_path / "set", some_images(4), [4, 0, 8, 1], tasks=tasks)
    source = MedIMetaSource(folder, "test")
    assert source.class_names == ("none", "some", "worst")
    read = list(source.read(0, 4))
    assert [item.label for item in read] == [1, 0, 2, None]
    assert [item.problem for item in read[:3]] == [None] * 3
    assert read[3].problem == "label 1 is none of the 3 that task 'cell class' has"


def test_names_that_yaml_takes_for_truth_values_stay_names(tmp_path: Path) -> None:
    folder = make_medimeta(tmp_path / "set", some_images(2), [0, 1])
    info = (folder / "info.yaml").read_text().replace("neutrophil", "no").replace("eosinophil", "yes")
    (folder / "info.yaml").write_text(info)
    assert MedIMetaSource(folder, "test").class_names[:2] == ("no", "yes")


def test_patients_become_groups_where_the_annotations_name_them(tmp_path: Path) -> None:
    patients = ["p1", "p1", "", "nan", "p2"]
    folder = make_medimeta(tmp_path / "set", some_images(5), LABELS[:5], patients=patients, test=[0, 1, 2, 3, 4])
    source = MedIMetaSource(folder, "test")
    groups = [item.group_id for item in source.read(0, 5)]
    assert groups == ["set/patient_id/p1", "set/patient_id/p1", None, None, "set/patient_id/p2"]
    before = source.identity
    (folder / "annotations.csv").write_text((folder / "annotations.csv").read_text().replace("p2", "p1"))
    assert MedIMetaSource(folder, "test").identity != before


def test_identity_follows_content_and_not_place(pbc: Path, tmp_path: Path) -> None:
    source = MedIMetaSource(pbc, "test")
    moved = shutil.copytree(pbc, tmp_path / "elsewhere" / "pbc")
    assert MedIMetaSource(moved, "test").identity == source.identity
    assert str(tmp_path) not in str(source.identity)
    np.save(moved / "task_labels" / f"{TASK}.npy", np.array(LABELS[::-1]))
    assert MedIMetaSource(moved, "test").identity != source.identity


def test_identity_follows_the_numbers_that_stand_for_the_classes(tmp_path: Path, pbc: Path) -> None:
    tasks = [task_entry(dict(enumerate(NAMES, start=1)))]
    shifted = make_medimeta(tmp_path / "shifted" / "pbc", some_images(), LABELS, tasks=tasks)
    before, after = MedIMetaSource(pbc, "test"), MedIMetaSource(shifted, "test")
    assert before.class_names == after.class_names
    assert [item.label for item in before.read(0, 2)] != [item.label for item in after.read(0, 2)]
    assert after.identity == {**before.identity, "numbers": [1, 2, 3, 4]}
    assert "numbers" not in before.identity, "archives made before the numbers were kept are still those of the set"


def test_an_archive_is_not_that_of_a_set_with_other_numbers(tmp_path: Path, pbc: Path) -> None:
    source = MedIMetaSource(pbc, "test")
    archive = create_or_open(tmp_path / "archive", class_names=source.class_names, geometry=Geometry(8, 8), part_rows=8)
    append_segment(archive, source)
    assert plan_segments(archive, [source]) == []
    info = (pbc / "info.yaml").read_text()
    for number in (3, 2, 1, 0):
        info = info.replace(f"{number}: {NAMES[number]}", f"{number + 1}: {NAMES[number]}")
    (pbc / "info.yaml").write_text(info)
    with pytest.raises(StaleCacheError, match="changed in numbers"):
        plan_segments(archive, [MedIMetaSource(pbc, "test")])


def test_a_pickled_source_reads_on(pbc: Path) -> None:
    source = MedIMetaSource(pbc, "test")
    list(source.read(0, 3))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(np.asarray(next(copy.read(4, 5)).image), some_images()[4])


def test_a_tiff_that_cannot_be_read_is_a_problem_of_that_image_alone(tmp_path: Path) -> None:
    folder = make_medimeta(tmp_path / "set", some_images(4), LABELS[:4], tiff=True)
    path = folder / "images" / "000001.tiff"
    path.write_bytes(path.read_bytes()[:40])
    (folder / "images" / "000002.tiff").unlink()
    read = list(MedIMetaSource(folder, "test").read(0, 4))
    assert [item.problem is None for item in read] == [True, False, False, True]
    assert read[2].problem == "no such file"
    assert all(str(tmp_path) not in str(item.problem) for item in read)


def rewrite_hdf5(folder: Path, name: str = "images", **settings: object) -> None:
    with h5py.File(folder / "images.hdf5", "w") as file:
        file.create_dataset(name, **settings)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


BREAKAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: truncate(folder / "images.hdf5"), "damaged or not an HDF5 file"),
    (lambda folder: (folder / "images.hdf5").write_text("not HDF5"), "damaged or not an HDF5 file"),
    (lambda folder: rewrite_hdf5(folder, data=some_images().astype(np.float32)), "dtype float32"),
    (lambda folder: rewrite_hdf5(folder, data=some_images(12, 9, 7, 4)), "shape (12, 9, 7, 4)"),
    (lambda folder: rewrite_hdf5(folder, "pixels", data=some_images()), "no dataset 'images'; it holds pixels"),
    (lambda folder: rewrite_hdf5(folder, data=some_images(11)), "11 images but 12 labels of task 'cell class'"),
    (lambda folder: (folder / "images.hdf5").unlink(), "holds neither images.hdf5 nor images/"),
    (lambda folder: (folder / "info.yaml").write_text("tasks: [}"), "info.yaml: cannot be read"),
    (lambda folder: (folder / "info.yaml").write_text("id: pbc"), "lists no tasks"),
    (lambda folder: (folder / "info.yaml").write_text("tasks: []"), "lists no tasks"),
    (lambda folder: (folder / "splits" / "test.txt").write_text("images/000012.tiff"), "lists image 12, but there"),
    (lambda folder: (folder / "splits" / "test.txt").write_text("images/../x.tiff"), "line 1 is not images/NUMBER"),
    (lambda folder: (folder / "splits" / "test.txt").write_text("images/000001.tiff\n" * 2), "more than once"),
    (lambda folder: (folder / "splits" / "test.txt").unlink(), "no such split; splits there: train, val"),
    (lambda folder: (folder / "task_labels" / f"{TASK}.npy").unlink(), "no such file"),
    (lambda folder: truncate(folder / "task_labels" / f"{TASK}.npy"), "damaged or not an .npy file"),
    (lambda folder: np.save(folder / "task_labels" / f"{TASK}.npy", np.zeros(12)), "dtype float64"),
    (lambda folder: np.save(folder / "task_labels" / f"{TASK}.npy", np.zeros((12, 3), int)), "shape (12, 3)"),
    (lambda folder: np.save(folder / "task_labels" / f"{TASK}.npy", np.array([Path()] * 12)), "dtype object"),
    (
        lambda folder: (folder / "task_labels" / f"{TASK}.npy").write_bytes(announcing((1 << 50,), bytes(12))),
        f"does not hold the ({1 << 50},) values it announces",
    ),
    (lambda folder: (folder / "task_labels" / f"{TASK}.npy").write_bytes(announcing((-12,), bytes(12))), "announces"),
    (lambda folder: rewrite_hdf5(folder, data=h5py.Empty(np.uint8)), "'images' holds no values"),
    (
        lambda folder: (folder / "splits" / "test.txt").write_text(f"images/{'9' * 5000}.tiff"),
        "line 1 is not images/NUMBER",
    ),
]


@pytest.mark.parametrize(("damage", "said"), BREAKAGES, ids=[said[:30] for _, said in BREAKAGES])
def test_what_is_damaged_or_does_not_fit_is_refused_in_one_line(
    pbc: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(pbc)
    assert said in refusal(pbc)
    assert refusal(pbc).startswith(str(pbc))


def test_damage_inside_a_compressed_hdf5_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    folder = make_medimeta(tmp_path / "set", some_images(), LABELS)
    rewrite_hdf5(folder, data=some_images(), chunks=(1, 9, 7, 3), compression="gzip")
    with h5py.File(folder / "images.hdf5") as file:
        offset = file["images"].id.get_chunk_info(0).byte_offset
    content = bytearray((folder / "images.hdf5").read_bytes())
    content[offset : offset + 8] = bytes(8)
    (folder / "images.hdf5").write_bytes(content)
    assert "damaged" in refusal(folder)


def test_pixels_outside_the_file_are_refused(pbc: Path, tmp_path: Path) -> None:
    shutil.move(pbc / "images.hdf5", tmp_path / "other.hdf5")
    with h5py.File(pbc / "images.hdf5", "w") as file:
        file["images"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "images")
    assert "lies in other files" in refusal(pbc)


def test_a_file_that_changed_after_listing_is_refused(pbc: Path) -> None:
    source = pickle.loads(pickle.dumps(MedIMetaSource(pbc, "test")))
    rewrite_hdf5(pbc, data=some_images(40))
    with pytest.raises(SourceError, match="changed since it was listed"):
        list(source.read(0, 1))


def test_the_task_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    tasks = [task_entry(dict(enumerate(NAMES))), task_entry({0: "a", 1: "b"}, "other", "MULTILABEL_CLASSIFICATION")]
    folder = make_medimeta(tmp_path / "set", some_images(), LABELS, tasks=tasks)
    assert "name one as 'task': 'cell class', 'other'" in refusal(folder)
    assert "no task 'cells'; tasks there: 'cell class', 'other'" in refusal(folder, task="cells")
    assert "multi-label" in refusal(folder, task="other")
    assert len(MedIMetaSource(folder, "test", TASK)) == 12


def test_an_empty_split_is_refused(pbc: Path) -> None:
    assert "lists no images; choose another split" in refusal(pbc, "train")


def test_a_set_that_is_absent_says_where_to_get_it(tmp_path: Path, pbc: Path) -> None:
    assert find_medimeta("pbc", pbc.parent, None) == find_medimeta("pbc", None, pbc.parent) == pbc
    with pytest.raises(
        SourceError, match=r"medimeta/chaksu: no MedIMeta data set .* fetch chaksu from https://doi.org"
    ):
        find_medimeta("chaksu", None, tmp_path)
    with pytest.raises(AbsentSourceError, match="give 'root'"):
        find_medimeta("chaksu", None, None)


@pytest.mark.parametrize("name", ["images.hdf5", f"task_labels/{TASK}.npy"])
def test_files_that_are_not_there_are_absent_and_not_damaged(pbc: Path, name: str) -> None:
    (pbc / name).unlink()
    with pytest.raises(AbsentSourceError):
        MedIMetaSource(pbc, "test")
