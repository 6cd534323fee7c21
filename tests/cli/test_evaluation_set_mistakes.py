"""Evaluation sets that are not there, not whole or not what they say: one line each that says what to do."""

import pickle

import pytest
from medmnist.info import INFO

from pipeline.drivers.downloads import NOT_YET
from pipeline.drivers.validate import InvalidManifestError
from tests.cli.factory import CLASSES, SYNTHETIC, Run, Study, only_line, with_nan_weights, write_npz


def test_a_wrong_md5_is_one_line_with_both_digests(study: Study, run: Run) -> None:
    (study.folder / "data").mkdir()
    (study.folder / "data" / "breastmnist.npz").write_bytes(b"another file of that name")
    source = {"kind": "medmnist", "flag": "breastmnist", "split": "test"}
    study.write(evaluation_sets=[{"name": "breast", "source": source}])
    for command in (("validate",), ("ingest", "--engine", "local")):
        line = only_line(run(command[0], study.manifest, *command[1:], "--data-root", study.folder / "data"))
        assert line.startswith("evaluation set 'breast': ")
        assert "breastmnist.npz: MD5 is " in line
        assert f"published is {INFO['breastmnist']['MD5']}; delete it and fetch" in line
    assert not (study.folder / "archives" / "breast").exists()


@pytest.mark.parametrize("command", ["validate", "ingest", "precompute", "infer"])
def test_no_evaluation_sets_is_one_line(study: Study, run: Run, command: str) -> None:
    study.write(evaluation_sets=[])
    engine = () if command == "validate" else ("--engine", "local")
    assert only_line(run(command, study.manifest, *engine)) == (
        "study: evaluation_sets is empty; list at least one set"
    )


@pytest.mark.parametrize("command", [("validate",), ("ingest", "--engine", "local")], ids=lambda c: c[0])
def test_an_empty_set_is_one_line(study: Study, run: Run, command: tuple[str, ...]) -> None:
    study.write(evaluation_sets=[{"name": "none", "source": write_npz(study.folder / "x.npz", 0)}])
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("evaluation set 'none': ")
    assert "it is empty; choose another split" in line


@pytest.mark.parametrize("command", [("validate",), ("ingest", "--engine", "local")], ids=lambda c: c[0])
def test_another_number_of_class_names_is_one_line(study: Study, run: Run, command: tuple[str, ...]) -> None:
    item = {"name": "cells", "source": SYNTHETIC, "class_names": ["one", "two", "three"]}
    study.write(evaluation_sets=[item])
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("evaluation set 'cells': class_names lists 3 names, its source has 4 classes (")
    assert "give one name per class, in this order" in line


def test_a_mismatch_of_class_names_after_ingestion_is_one_line(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    study.write(evaluation_sets=[{"name": "cells", "source": SYNTHETIC, "class_names": ["one", "two", "three"]}])
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "class_names lists 3 names, its source has 4 classes" in line


def test_a_site_without_an_image_is_one_line(study: Study, run: Run) -> None:
    source = write_npz(study.folder / "x.npz", 12)
    sites = [{**source, "site": {"index": index, "of": 16, "alpha": 0.01}} for index in range(16)]
    seen = set()
    for index, site in enumerate(sites):
        study.write(evaluation_sets=[{"name": "clinic", "source": site}])
        result = run("validate", study.manifest)
        seen.add(result[0])
        if result[0] == 0:
            continue
        line = only_line(result)
        assert line.startswith("evaluation set 'clinic': ")
        assert f"site {index} of 16 got no image at alpha 0.01; choose another index, seed or alpha" in line
    assert seen == {0, 2}


def test_problems_of_several_sets_are_a_line_each(study: Study, run: Run) -> None:
    study.write(
        evaluation_sets=[
            {"name": "none", "source": write_npz(study.folder / "x.npz", 0)},
            {"name": "uneven", "source": write_npz(study.folder / "y.npz", 3, labels=2)},
            {"name": "absent", "source": {"kind": "npz", "path": "z.npz", "split": "test", "class_names": CLASSES}},
        ]
    )
    with_nan_weights(study)
    code, out, err = run("validate", study.manifest)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, "", 4)
    assert all(line.startswith("error: ") for line in lines)
    for said in ("NaN", "'none'", "3 images but 2 labels", "z.npz: no such file"):
        assert sum(said in line for line in lines) == 1


def test_what_is_only_to_be_downloaded_is_no_error_beside_one(
    study: Study, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_DATA_ROOT", str(study.folder))
    study.write(
        evaluation_sets=[
            {"name": "cells", "source": SYNTHETIC},
            {"name": "breast", "source": {"kind": "medmnist", "flag": "breastmnist", "split": "test"}},
            {"name": "absent", "source": {"kind": "npz", "path": "z.npz", "split": "test", "class_names": CLASSES}},
        ]
    )
    code, out, err = run("validate", study.manifest)
    assert code == 2
    assert out == f"breast: {NOT_YET} breastmnist.npz from {INFO['breastmnist']['url']}\n"
    assert only_line((code, "", err)).startswith("evaluation set 'absent': ")


def test_problems_and_downloads_stay_apart_across_processes() -> None:
    copy = pickle.loads(pickle.dumps(InvalidManifestError(["a is wrong"], ["b is awaited"])))
    assert (copy.problems, copy.awaited, str(copy)) == (("a is wrong",), ("b is awaited",), "a is wrong")
