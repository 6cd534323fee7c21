import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.archives.folder import FolderSource
from pipeline.errors import AbsentSourceError, SourceError

FILES = ("benign/1.png", "benign/deep/2.JPG", "malignant/1.tif", "malignant/3.bmp", "normal/x.webp")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8))


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Five images in three class folders."""
    for seed, name in enumerate(FILES):
        path = tmp_path / "clinic" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    return tmp_path / "clinic"


def labels_file(clinic: Path, *lines: str, header: str = "path,label") -> Path:
    path = clinic.parent / "labels.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def refusal(*arguments: Path, **settings: object) -> str:
    with pytest.raises(SourceError) as caught:
        FolderSource(*arguments, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_sub_folder_is_a_class_in_alphabetical_order(clinic: Path) -> None:
    source = FolderSource(clinic)
    assert source.class_names == ("benign", "malignant", "normal")
    read = list(source.read(0, len(source)))
    assert [item.sample_id for item in read] == [f"clinic/{name}" for name in FILES]
    assert [item.label for item in read] == [0, 0, 1, 1, 2]
    assert [item.source for item in read] == list(FILES)
    for seed, item in enumerate(read):
        if item.source != "benign/deep/2.JPG":
            np.testing.assert_array_equal(np.asarray(item.image), np.asarray(picture(seed)))
    assert [item.index for item in source.read(2, 4)] == [2, 3]


def test_class_names_give_the_order_and_nothing_else(clinic: Path) -> None:
    source = FolderSource(clinic, class_names=["normal", "malignant", "benign"])
    read = list(source.read(0, 5))
    assert [item.sample_id for item in read] == [f"clinic/{name}" for name in FILES]
    assert [source.class_names[item.label or 0] for item in read] == [Path(name).parts[0] for name in FILES]
    assert "not named normal" in refusal(clinic, class_names=["malignant", "benign"])
    said = refusal(clinic, class_names=["malignant", "benign", "norml"])
    assert "absent norml; not named normal" in said


def test_nothing_is_skipped_in_silence(clinic: Path) -> None:
    for name in ("README.md", "benign/1.json", "benign/Thumbs.db", ".DS_Store", "normal/.hidden.png", ".git/x.png"):
        (clinic / name).parent.mkdir(exist_ok=True)
        (clinic / name).write_text("not an image")
    (clinic / "stray.png").write_bytes((clinic / FILES[0]).read_bytes())
    (clinic / "normal" / "scan.dcm").write_text("something")
    (clinic / "normal" / "broken.png").write_bytes((clinic / FILES[0]).read_bytes()[:50])
    source = FolderSource(clinic)
    read = {item.source: item.problem for item in source.read(0, len(source))}
    problems = {name: problem for name, problem in read.items() if problem is not None}
    assert set(read) == {*FILES, "stray.png", "normal/scan.dcm", "normal/broken.png"}
    assert set(problems) == {"stray.png", "normal/scan.dcm", "normal/broken.png"}
    assert problems["stray.png"] == "lies in no class folder"
    assert problems["normal/scan.dcm"].startswith("is of an unknown kind (.dcm); known: .bmp")
    assert "OSError" in problems["normal/broken.png"]


def test_identity_follows_names_and_content_and_not_place(clinic: Path, tmp_path: Path) -> None:
    source = FolderSource(clinic)
    moved = shutil.copytree(clinic, tmp_path / "elsewhere" / "clinic")
    assert FolderSource(moved).identity == source.identity == pickle.loads(pickle.dumps(source)).identity
    assert str(tmp_path) not in str(source.identity)
    content = bytearray((moved / FILES[3]).read_bytes())
    content[-1] ^= 1
    (moved / FILES[3]).write_bytes(content)
    assert FolderSource(moved).identity != source.identity
    shutil.copy(clinic / FILES[3], moved / FILES[3])
    assert FolderSource(moved).identity == source.identity
    (moved / FILES[3]).rename(moved / "malignant" / "4.bmp")
    assert FolderSource(moved).identity != source.identity


def test_a_csv_file_lists_images_with_labels_and_groups_in_its_own_order(clinic: Path) -> None:
    lines = [f"{FILES[3]},sick,p1", f"./{FILES[0]},healthy,p1", f"{FILES[4]},,", f"{FILES[1]},healthy,p2"]
    labels = labels_file(clinic, *lines, header="path,label,group_id")
    source = FolderSource(clinic, labels=labels)
    assert source.class_names == ("healthy", "sick")
    read = list(source.read(0, len(source)))
    assert [item.source for item in read] == [FILES[3], FILES[0], FILES[4], FILES[1]]
    assert [item.label for item in read] == [1, 0, None, 0]
    assert [item.group_id for item in read] == ["p1", "p1", None, "p2"]
    assert all(item.problem is None for item in read)
    before = source.identity
    labels_file(clinic, *lines[::-1], header="path,label,group_id")
    assert FolderSource(clinic, labels=labels).identity != before


def test_a_labels_file_as_spreadsheets_save_it_is_read(clinic: Path) -> None:
    labels = labels_file(clinic)
    labels.write_bytes(f"\ufeffpath,label\r\n{FILES[0]},Läsion\r\n\r\n{FILES[1]},well\r\n".encode())
    assert FolderSource(clinic, labels=labels).class_names == ("Läsion", "well")


def test_with_class_names_labels_are_names_or_else_places(clinic: Path) -> None:
    def labels_of(*values: str, names: list[str]) -> list[int | None]:
        lines = [f"{name},{value}" for name, value in zip(FILES[: len(values)], values, strict=True)]
        source = FolderSource(clinic, labels=labels_file(clinic, *lines), class_names=names)
        return [item.label for item in source.read(0, len(source))]

    assert labels_of("b", "a", "c", names=["c", "b", "a"]) == [1, 2, 0]
    assert labels_of("2", "0", "", names=["c", "b", "a"]) == [2, 0, None]
    assert labels_of("2", "1", names=["2", "1"]) == [0, 1]


def test_one_image_at_fault_is_one_reject(clinic: Path) -> None:
    (clinic / "broken.png").write_text("not an image")
    lines = [f"{FILES[0]},0", f"{FILES[1]},7", f"{FILES[2]},-1", "benign/lost.png,1", "broken.png,1"]
    source = FolderSource(clinic, labels=labels_file(clinic, *lines), class_names=["a", "b"])
    assert [item.problem for item in source.read(0, 5)] == [
        None,
        "label 7 is outside the 2 classes",
        "label -1 is outside the 2 classes",
        "no such file",
        "is not an image (BMP, JPEG, PNG, TIFF, WEBP)",
    ]
    (clinic / "benign" / "lost.png").write_bytes((clinic / FILES[0]).read_bytes())
    again = FolderSource(clinic, labels=labels_file(clinic, *lines), class_names=["a", "b"])
    assert again.identity != source.identity


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [f"{FILES[0]},malignnt"],
            "line 2: unknown class 'malignnt'; did you mean 'malignant'?; known: benign, malignant",
        ),
        ([f"{FILES[0]},benign", f"{FILES[1]},1"], "line 3: unknown class '1'"),
        ([f"{FILES[0]},benign", "../other/1.png,benign"], "line 3: '../other/1.png' is not a path inside"),
        (["/etc/passwd,benign"], "line 2: '/etc/passwd' is not a path inside"),
        ([f"{FILES[0]},benign", f"./{FILES[0]},benign"], f"line 3: '{FILES[0]}' is on line 2 already"),
        ([f"{FILES[0]},benign,p1"], "line 2 has 3 cells, the header 2"),
        ([], "lists no images"),
    ],
)
def test_a_labels_file_with_a_mistake_is_refused_with_its_line(clinic: Path, lines: list[str], said: str) -> None:
    labels = labels_file(clinic, *lines)
    message = refusal(clinic, labels=labels, class_names=["benign", "malignant"])
    assert message.startswith(f"{labels}: ")
    assert said in message


def test_a_labels_file_that_names_no_classes_is_refused(clinic: Path) -> None:
    numbered = labels_file(clinic, f"{FILES[0]},0", f"{FILES[1]},1")
    assert "its labels are numbers; give 'class_names'" in refusal(clinic, labels=numbered)
    assert "names 1 classes" in refusal(clinic, labels=labels_file(clinic, f"{FILES[0]},benign"))
    assert "got file, class" in refusal(clinic, labels=labels_file(clinic, header="file,class"))
    with pytest.raises(AbsentSourceError, match="no such file"):
        FolderSource(clinic, labels=clinic / "no.csv")
    numbered.write_bytes(b"path,label\n\xff\xfe,1\n")
    assert "CSV in UTF-8" in refusal(clinic, labels=numbered)


def test_links_that_lead_out_of_the_folder_are_refused(clinic: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(9).save(outside / "9.png")
    (clinic / "benign" / "link.png").symlink_to(outside / "9.png")
    assert "leads out of" in refusal(clinic)
    assert "leads out of" in refusal(clinic, labels=labels_file(clinic, "benign/link.png,a", f"{FILES[0]},b"))
    (clinic / "benign" / "link.png").unlink()
    (clinic / "benign" / "all").symlink_to(outside)
    assert "is a link to a folder" in refusal(clinic)


def test_folders_without_classes_or_images_are_refused(clinic: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "no")
    assert "has 1 class folders" in refusal(clinic.parent)
    for name in ("a", "b"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    assert "class folders without images: a, b; fill or remove them" in refusal(tmp_path / "empty")


def test_a_class_folder_without_an_image_is_refused_by_name(clinic: Path) -> None:
    (clinic / "unknown" / "deeper").mkdir(parents=True)
    (clinic / "unknown" / "README.md").write_text("none yet")
    assert "class folders without images: unknown;" in refusal(clinic)
    (clinic / "unknown" / "scan.dcm").write_text("something")
    assert "class folders without images: unknown;" in refusal(clinic)
    picture(7).save(clinic / "unknown" / "deeper" / "1.png")
    assert len(FolderSource(clinic)) == 7


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Nobody may read ``folder``; root, who always may, is somebody else meanwhile."""
    user = os.geteuid()
    folder.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["benign/deep", "malignant", "."])
def test_a_folder_that_may_not_be_read_is_refused_and_not_passed_over(clinic: Path, name: str) -> None:
    # pytest's own folder is closed to everybody else altogether.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        moved = shutil.copytree(clinic, Path(place) / "clinic")
        with closed(moved / name):
            said = refusal(moved)
    assert said == f"{moved / name}: cannot be read (Permission denied); mend that and run again"


def test_a_name_that_is_not_in_utf_8_is_refused(clinic: Path) -> None:
    shutil.copy(clinic / FILES[0], os.fsencode(clinic / "benign") + b"/l\xe4sion.png")
    said = refusal(clinic)
    assert said == f"{clinic}: the name 'benign/l\\udce4sion.png' is not in UTF-8; rename it"
    said.encode()


def test_a_link_in_a_circle_is_refused(clinic: Path) -> None:
    (clinic / "benign" / "a.png").symlink_to("b.png")
    (clinic / "benign" / "b.png").symlink_to("a.png")
    assert "benign/a.png" in refusal(clinic)
    assert "benign/b.png" in refusal(clinic, labels=labels_file(clinic, "benign/b.png,a", f"{FILES[0]},b"))


def test_a_path_that_no_file_can_have_is_refused(clinic: Path) -> None:
    for name, said in (
        (f"{'x' * 300}.png", "File name too long"),
        ("a\0b.png", "'a\\x00b.png' cannot be a file's path"),
    ):
        assert said in refusal(clinic, labels=labels_file(clinic, f"{name},a", f"{FILES[0]},b"))


def test_a_label_of_more_digits_than_a_number_has_is_refused_with_its_line(clinic: Path) -> None:
    labels = labels_file(clinic, f"{FILES[0]},0", f"{FILES[1]},{'1' * 5000}")
    said = refusal(clinic, labels=labels, class_names=["a", "b"])
    assert said == f"{labels}: line 3: a label of 5,000 digits is no class's place"
