import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.files import write_atomically, write_json, write_text
from pipeline.store.fingerprints import Fingerprint, digest_file, digest_json

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    write_text(path, "naïve λ\n")
    assert path.read_bytes() == "naïve λ\n".encode()
    assert entries(path.parent) == ["x.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the new")
        raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["x.txt"]
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(tmp_path / "y.txt", fail)
    assert entries(tmp_path) == ["x.txt"]


def test_a_writer_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError):
        write_atomically(path, lambda _temporary: None)
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["x.txt"]


def test_a_reader_never_sees_the_file_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename is atomic inside one folder"
        temporary.write_text("whole")

    write_atomically(path, write)
    assert path.read_text() == "whole"


def test_a_writer_killed_half_way_leaves_no_file_and_the_next_one_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    killed = f"""
import os, signal
from pathlib import Path
from pipeline.store.files import write_atomically
def write(temporary):
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path({str(path)!r}), write)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    assert all(name.startswith(".tmp-") for name in entries(tmp_path))
    write_text(path, "whole")
    assert path.read_text() == "whole"


@settings(max_examples=40)
@given(value=JSON_VALUES)
def test_json_comes_back_and_equal_values_give_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    folder = tmp_path_factory.mktemp("json")
    write_json(folder / "a.json", value)
    write_json(folder / "b.json", json.loads(json.dumps(value)))
    assert json.loads((folder / "a.json").read_text(encoding="utf-8")) == value
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


@settings(max_examples=40)
@given(st.dictionaries(st.text(), JSON_VALUES, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert digest_json(dict(items)) == digest_json(value)


def test_a_digest_is_that_of_the_canonical_text() -> None:
    text = '{"a":[1,"λ"],"b":null}'
    printed = subprocess.run(["sha256sum"], input=text.encode(), capture_output=True, check=True).stdout
    assert digest_json({"b": None, "a": [1, "λ"]}) == printed.split()[0].decode()


def test_a_number_that_is_not_finite_has_no_digest() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json({"gamma": float("nan")})


@pytest.mark.parametrize(("algorithm", "command"), [("sha256", "sha256sum"), ("md5", "md5sum")])
def test_the_digest_of_a_file_is_coreutils(tmp_path: Path, algorithm: str, command: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(os.urandom((1 << 20) + 17))
    printed = subprocess.run([command, path], capture_output=True, text=True, check=True).stdout
    assert digest_file(path, algorithm) == printed.split()[0]


def test_a_fingerprint_names_what_changed() -> None:
    now = Fingerprint({"expert": "a", "prompts": "b", "tile": "32"})
    assert now.changed_inputs({"expert": "a", "prompts": "c", "threads": "1"}) == ["prompts", "threads", "tile"]
    assert now.changed_inputs(dict(now.inputs)) == []
    assert now.digest == Fingerprint(dict(reversed(now.inputs.items()))).digest
    assert now.digest != Fingerprint({"expert": "a", "prompts": "b3", "tile": "2"}).digest
