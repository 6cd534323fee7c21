"""``pipeline check``: what training and evaluation share, what a set holds twice, names that do not line up."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from pipeline.archives.archive import Archive
from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.check import check
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.manifest import load_manifest
from pipeline.results.marks import read_marks, read_overlaps, read_unknown
from pipeline.store.tables import read_metadata, write_table
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import tiny_config
from tests.models.factory import write_checkpoint

NAMES = ["basophil", "eosinophil", "erythroblast", "lymphocyte"]
SIZE = 28


def cells(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    items = list(SyntheticSource(count, seed).read(0, count))
    return np.stack([np.asarray(item.image) for item in items]), np.array([item.label for item in items])


def jpeg(pixels: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return np.asarray(Image.open(stream))


def pixelated(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels).resize((9, 9))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST))


def npz(split: str, names: list[str] = NAMES, **entries: Any) -> dict[str, Any]:
    return {"kind": "npz", "path": "cells.npz", "split": split, "class_names": names, **entries}


def training(**entries: Any) -> dict[str, Any]:
    return {
        "init": "generalist",
        "train": [{"name": "cells", "source": npz("train")}],
        "validation": [{"name": "cells", "source": npz("val")}],
        **entries,
    }


def write_study(folder: Path, file: str = "study.yaml", **entries: Any) -> Path:
    """A manifest in ``folder``; no checkpoint exists."""
    (folder / "tiny.json").write_text(json.dumps(tiny_config()))
    content = {
        "name": "study",
        "output": "run",
        "archives": "archives",
        "pair": {
            "architecture": "tiny.json",
            "generalist": "generalist.safetensors",
            "expert": "expert.safetensors",
        },
        "compute": {"device": "cpu"},
        "evaluation_sets": [{"name": "cells-test", "source": npz("test")}],
        "finetune": {"expert": training(), "generalist": training(init="random")},
    }
    content |= entries
    (folder / file).write_text(yaml.safe_dump(content))
    return folder / file


def write_cells(folder: Path) -> None:
    """30 training, 10 validation and 24 test images. Of the test images, 3 is training image 7, 5 a JPEG of 11, 20 is
    validation image 2, and 22 is test image 9 once more."""
    arrays: dict[str, np.ndarray] = {}
    for split, count, seed in (("train", 30, 1), ("val", 10, 2), ("test", 24, 3)):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = cells(count, seed)
    test = arrays["test_images"]
    test[3], test[5] = arrays["train_images"][7], jpeg(arrays["train_images"][11])
    test[20], test[22] = arrays["val_images"][2], test[9]
    np.savez(folder / "cells.npz", **arrays)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PIPELINE_DATA_ROOT", raising=False)
    write_cells(tmp_path)
    return tmp_path


def ingested(path: Path) -> Path:
    manifest = load_manifest(path)
    ingest(manifest, LocalEngine(manifest))
    return path


def found(path: Path) -> list[tuple[Any, ...]]:
    table = pl.read_parquet(path.parent / "run" / "checks" / "duplicates.parquet")
    columns = ("evaluation_set", "row", "kind", "model", "other_role", "other_sample_id", "via")
    return table.select(columns).rows()


def test_planted_leaks_and_duplicates_are_found_and_nothing_else(folder: Path, command_line: CommandLine) -> None:
    path = ingested(write_study(folder))
    code, out, err = command_line("check", str(path), "--json")
    assert code == 0, err
    result = json.loads(out)
    entry = result["evaluation_sets"]["cells-test"]
    assert entry["marks"] == ["leak", "near-duplicates", "duplicates-within"]
    counts = {(each["model"], each["role"]): (each["exact"], each["near"]) for each in entry["training"]}
    expected = {"training": (1, 1), "validation": (1, 0)}
    assert counts == {(model, role): expected[role] for model in ("generalist", "expert") for role in expected}
    assert (entry["within"]["exact"], entry["within"]["near"]) == (1, 0)
    assert result["unknown"] == []
    shared = [
        ("cells-test", row, kind, model, role, other, None)
        for model in ("generalist", "expert")
        for row, kind, role, other in (
            (3, "exact", "training", "cells/train/7"),
            (5, "near", "training", "cells/train/11"),
            (20, "exact", "validation", "cells/val/2"),
        )
    ]
    within = ("cells-test", 22, "exact", None, "within", "cells/test/9", None)
    assert found(path) == [*shared, within]
    assert json.loads((folder / "run" / "checks.json").read_text()) == result
    assert read_marks(folder / "run") == {"cells-test": entry["marks"]}


def test_the_table_is_for_people_and_a_leak_can_fail_a_script(folder: Path, command_line: CommandLine) -> None:
    path = ingested(write_study(folder))
    code, out, _ = command_line("check", str(path))
    assert code == 0
    assert "cells-test †‡§" in out
    assert "† images seen in training" in out
    code, failed_out, err = command_line("check", str(path), "--fail-on-leak")
    assert (code, failed_out, err) == (2, out, "")


def test_a_set_without_leaks_fails_no_script(folder: Path, command_line: CommandLine) -> None:
    sections = {name: training(train=[{"name": "cells", "source": npz("train", limit=5)}]) for name in ("expert",)}
    sections["expert"]["validation"] = [{"name": "cells", "source": npz("val", limit=2)}]
    path = ingested(write_study(folder, finetune=sections))
    code, out, _ = command_line("check", str(path), "--fail-on-leak", "--json")
    assert code == 0
    assert json.loads(out)["evaluation_sets"]["cells-test"]["marks"] == ["duplicates-within"]


def test_a_set_whose_archive_changed_since_counts_as_not_checked(folder: Path) -> None:
    path, run = ingested(write_study(folder)), folder / "run"
    recorded = check(load_manifest(path))
    (run / "run.json").write_text(json.dumps({"manifest": {"archives": str(load_manifest(path).archives)}}))
    assert {overlap.code for overlap in read_overlaps(run)} == {*read_marks(run)["cells-test"]}
    recorded["inputs"]["archive.cells-test"] = "0" * 64
    (run / "checks.json").write_text(json.dumps(recorded))
    assert (read_marks(run), read_overlaps(run)) == ({}, [])
    assert read_unknown(run) == [
        "evaluation set cells-test: not checked since its archive has changed; run `pipeline check` again"
    ]
    (run / "run.json").write_text(json.dumps({"manifest": {"archives": str(folder / "gone")}}))
    assert "cells-test" in read_marks(run)


def test_equal_work_gives_equal_bytes(folder: Path) -> None:
    path = ingested(write_study(folder))
    files = [folder / "run" / "checks.json", folder / "run" / "checks" / "duplicates.parquet"]
    check(load_manifest(path))
    before = [file.read_bytes() for file in files]
    check(load_manifest(path))
    assert [file.read_bytes() for file in files] == before
    metadata = read_metadata(files[1])
    assert metadata is not None
    assert metadata.fingerprint == json.loads(before[0])["fingerprint"]


def test_training_that_no_manifest_describes_is_unknown_by_name(folder: Path, command_line: CommandLine) -> None:
    path = ingested(write_study(folder, finetune={"expert": training()}))
    write_study(folder, "other.yaml", name="other", finetune={"generalist": training(init="random")})
    _, out, _ = command_line("check", str(path))
    assert "unknown: generalist: generalist.safetensors: neither a manifest nor a card says" in out
    _, out, _ = command_line("check", str(path), "--json", "--training", str(folder / "other.yaml"))
    result = json.loads(out)
    assert result["unknown"] == []
    assert result["models"]["expert"]["init"] == "generalist"
    assert {each["model"] for each in result["evaluation_sets"]["cells-test"]["training"]} == {"generalist", "expert"}


def test_a_card_alone_names_the_training_sets_but_leaves_their_images_unknown(folder: Path) -> None:
    path = ingested(write_study(folder, finetune={}))
    stated = [{"name": "cells", "images": 30, "val_images": 10, "class_names": [*NAMES[:3], "lymphocytes"]}]
    for name in ("expert", "generalist"):
        write_checkpoint(folder / f"{name}.safetensors", {}, {"training": {"sets": stated}})
    result = check(load_manifest(path))
    assert [each["model"] for each in result["unknown"]] == ["generalist", "expert"]
    assert "its card lists cells (30 + 10)" in result["unknown"][1]["reason"]
    assert result["evaluation_sets"]["cells-test"]["training"] == []
    assert result["evaluation_sets"]["cells-test"]["marks"] == ["duplicates-within", "class-names"]


@pytest.mark.parametrize("stated", [{"class_names": []}, {}, {"class_names": None}], ids=["none", "absent", "null"])
def test_a_card_without_class_names_says_nothing_of_them(folder: Path, stated: dict[str, Any]) -> None:
    path = ingested(write_study(folder, finetune={}))
    write_checkpoint(folder / "expert.safetensors", {}, {"training": {"sets": [stated]}})
    entry = check(load_manifest(path))["evaluation_sets"]["cells-test"]
    assert (entry["class_names"], entry["marks"]) == ([], ["duplicates-within"])


def test_what_a_model_started_from_counts_as_its_training_too(folder: Path) -> None:
    started = training(init="base.safetensors")
    path = ingested(write_study(folder, finetune={"expert": started, "generalist": training(init="openai")}))
    result = check(load_manifest(path))
    reasons = {each["model"]: each["reason"] for each in result["unknown"]}
    assert reasons.keys() == {"base.safetensors", "openai"}
    assert "published weights" in reasons["openai"]


def test_a_card_that_tells_of_other_training_sets_is_believed(folder: Path) -> None:
    path = ingested(write_study(folder))
    sets = [{"name": "cells", "images": 30, "val_images": 10, "class_names": NAMES}]
    for name, stated in (("expert", sets), ("generalist", [*sets, {"name": "secret", "images": 5, "val_images": 1}])):
        write_checkpoint(folder / f"{name}.safetensors", {}, {"training": {"sets": stated}})
    (unknown,) = check(load_manifest(path))["unknown"]
    assert unknown["model"] == "generalist"
    assert "secret (5 + 1)" in unknown["reason"]


def test_training_images_that_cannot_be_read_are_unknown_not_clean(folder: Path) -> None:
    absent = {**npz("train"), "path": "absent.npz"}
    path = ingested(write_study(folder, finetune={"expert": training(train=[{"name": "cells", "source": absent}])}))
    result = check(load_manifest(path))
    assert any(each["model"] == "expert" and "absent.npz" in each["reason"] for each in result["unknown"])
    roles = {(each["model"], each["role"]) for each in result["evaluation_sets"]["cells-test"]["training"]}
    assert roles == {("expert", "validation")}


def test_sets_without_an_archive_are_named_with_what_to_do(folder: Path, command_line: CommandLine) -> None:
    path = write_study(folder)
    code, out, err = command_line("check", str(path))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "run `pipeline ingest`" in err
    ingested(path)
    more = [{"name": "cells-test", "source": npz("test")}, {"name": "later", "source": npz("val")}]
    result = check(load_manifest(write_study(folder, evaluation_sets=more)))
    assert result["not_checked"].keys() == {"later"}
    assert "run `pipeline ingest`" in result["not_checked"]["later"]
    assert read_marks(folder / "run").keys() == {"cells-test"}


def corrupted_like_the_released(archive: Archive, base: str) -> None:
    """Give an archive's samples the columns that corrupted sets have: image i is a version of ``base``/i."""
    for part in range(archive.parts):
        samples = archive.samples(part)
        rows = samples["row"].to_pylist()
        columns: Mapping[str, pa.Array] = {
            "group_id": pa.array([f"{base}/{row}" for row in rows]),
            "corruption": pa.array(["pixelate"] * len(rows)),
        }
        for name, values in columns.items():
            if name in samples.column_names:
                samples = samples.drop_columns(name)
            samples = samples.append_column(name, values)
        content = read_metadata(archive.samples_path(part))
        assert content is not None
        write_table(archive.samples_path(part), samples, archive.fingerprint(part), extra=content.extra)


def test_a_corrupted_image_leaks_through_its_base_and_is_no_duplicate_of_it(folder: Path) -> None:
    with np.load(folder / "cells.npz") as arrays:
        content = dict(arrays)
    images, labels = content["test_images"], content["test_labels"]
    content |= {"noisy_images": np.stack([pixelated(image) for image in images]), "noisy_labels": labels}
    np.savez(folder / "cells.npz", **content)
    sets = [
        {"name": "cells-noisy", "source": npz("noisy"), "condition": "noise"},
        {"name": "cells-test", "source": npz("test")},
    ]
    path = ingested(write_study(folder, evaluation_sets=sets, finetune={"expert": training()}))
    corrupted_like_the_released(Archive.open(folder / "archives" / "cells-noisy"), "cells/test")
    result = check(load_manifest(path))
    entry = result["evaluation_sets"]["cells-noisy"]
    assert entry["through_base"] == 24
    assert entry["marks"] == ["leak", "near-duplicates"]
    assert entry["within"]["exact"] == entry["within"]["near"] == 0
    assert result["evaluation_sets"]["cells-test"]["between"][0]["exact"] == 0
    noisy = [row[1:] for row in found(path) if row[0] == "cells-noisy"]
    assert noisy == [
        (3, "exact", "expert", "training", "cells/train/7", "cells/test/3"),
        (5, "near", "expert", "training", "cells/train/11", "cells/test/5"),
        (20, "exact", "expert", "validation", "cells/val/2", "cells/test/20"),
    ]
    alone = check(load_manifest(write_study(folder, evaluation_sets=sets[:1], finetune={"expert": training()})))
    assert alone["evaluation_sets"]["cells-noisy"]["through_base"] == 0


def test_class_names_are_compared_as_prompts_use_them(folder: Path, command_line: CommandLine) -> None:
    plural = [*NAMES[:3], "lymphocytes"]
    sets = [
        {"name": "turned", "source": npz("test", NAMES[::-1])},
        {"name": "plural", "source": npz("test", plural)},
        {"name": "mended", "source": npz("test", plural), "class_names": NAMES},
        {"name": "foreign", "source": npz("test", [*NAMES[:3], "platelet"])},
        {"name": "novel", "source": npz("test", [*NAMES[:3], "platelet"]), "condition": "base-to-novel"},
    ]
    path = ingested(write_study(folder, evaluation_sets=sets))
    code, out, _ = command_line("check", str(path), "--json")
    assert code == 0
    entries = json.loads(out)["evaluation_sets"]
    marked = {name for name, entry in entries.items() if "class-names" in entry["marks"]}
    assert marked == {"plural", "foreign"}
    assert entries["turned"]["class_names"][0]["relation"] == "reordered"
    (finding,) = entries["plural"]["class_names"]
    assert finding["model"] == "expert"
    assert finding["almost"] == [["lymphocytes", "lymphocyte"]]
    _, out, _ = command_line("check", str(path))
    assert "plural: expert: names are almost those" in out
    assert "¶ class names do not line up" in out


def test_copies_in_two_evaluation_sets_are_listed_with_the_later_one(folder: Path) -> None:
    sets = [{"name": "first", "source": npz("val")}, {"name": "second", "source": npz("test")}]
    path = ingested(write_study(folder, evaluation_sets=sets, finetune={}))
    result = check(load_manifest(path))
    (between,) = result["evaluation_sets"]["second"]["between"]
    assert (between["set"], between["exact"], between["near"]) == ("first", 1, 0)
    assert result["evaluation_sets"]["first"]["marks"] == []
    assert ("second", 20, "exact", None, "evaluation", "cells/val/2", None) in found(path)
