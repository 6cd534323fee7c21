import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from medmnist.info import INFO

from pipeline.archives.medmnist import open_medmnist
from pipeline.errors import SourceError


@pytest.mark.parametrize(
    ("flag", "split", "size", "said"),
    [
        ("bloodmnst", "test", 28, "did you mean 'bloodmnist'"),
        ("bloodmnist", "tset", 28, "no split 'tset'"),
        ("bloodmnist", "test", 32, "choose one of 28, 64, 128, 224"),
        ("organmnist3d", "test", 28, "three-dimensional"),
        ("chestmnist", "test", 28, "multi-label"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, flag: str, split: str, size: int, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_medmnist(flag, split, size, tmp_path)


@pytest.mark.parametrize("nested", [True, False])
def test_real_breastmnist_is_found_in_either_folder(data_root: Path, nested: bool) -> None:
    source = open_medmnist("breastmnist", "test", 28, data_root if nested else data_root / "medmnist")
    assert len(source) == 156
    assert source.class_names == ("malignant", "normal, benign")
    assert next(source.read(0, 1)).sample_id == "breastmnist/test/0"


def test_an_image_is_of_one_group_at_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, suffix in ((28, ""), (224, "_224")):
        path = tmp_path / f"breastmnist{suffix}.npz"
        np.savez(path, test_images=np.zeros((2, size, size), np.uint8), test_labels=np.zeros(2, np.uint8))
        monkeypatch.setitem(INFO["breastmnist"], f"MD5{suffix}", hashlib.md5(path.read_bytes()).hexdigest())
        images = list(open_medmnist("breastmnist", "test", size, tmp_path).read(0, 2))
        assert [image.group_id for image in images] == ["breastmnist/test/0", "breastmnist/test/1"]
        assert [image.sample_id for image in images] == [f"breastmnist{suffix}/test/0", f"breastmnist{suffix}/test/1"]


def test_a_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "breastmnist.npz").write_bytes(b"something else")
    with pytest.raises(SourceError) as caught:
        open_medmnist("breastmnist", "test", 28, tmp_path)
    assert INFO["breastmnist"]["MD5"] in str(caught.value)
    assert hashlib.md5(b"something else").hexdigest() in str(caught.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A real web server on this machine: its folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_an_absent_set_is_downloaded_once(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    np.savez(folder / "x.npz", test_images=np.zeros((3, 64, 64), np.uint8), test_labels=np.zeros((3, 1), np.uint8))
    monkeypatch.setitem(INFO["breastmnist"], "url_64", f"{address}/x.npz")
    monkeypatch.setitem(INFO["breastmnist"], "MD5_64", hashlib.md5((folder / "x.npz").read_bytes()).hexdigest())
    root = tmp_path / "new" / "root"
    assert len(open_medmnist("breastmnist", "test", 64, root)) == 3
    assert [entry.name for entry in root.iterdir()] == ["breastmnist_64.npz"]
    (folder / "x.npz").unlink()
    assert len(open_medmnist("breastmnist", "test", 64, root)) == 3


def test_a_failed_download_names_the_address_and_the_place(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server[1]}/not-there.npz"
    monkeypatch.setitem(INFO["breastmnist"], "url", url)
    with pytest.raises(SourceError) as caught:
        open_medmnist("breastmnist", "test", 28, tmp_path / "root")
    assert url in str(caught.value)
    assert str(tmp_path / "root" / "breastmnist.npz") in str(caught.value)
    assert not (tmp_path / "root" / "breastmnist.npz").exists()
