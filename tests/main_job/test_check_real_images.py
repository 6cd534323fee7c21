"""What `pipeline check` finds in published images: PBC-28's own copies, BreastMNIST's, and look-alikes."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.archives.npz import NpzSource
from pipeline.checks.duplicates import exact_pairs
from pipeline.checks.hashing import SIDE, HashedImages
from pipeline.drivers.check import check
from pipeline.manifest import load_manifest
from pipeline.store.tables import read_table
from tests.main_job.test_check_command import ingested, training, write_study
from tests.main_job.test_real_images import CELL_NAMES


def pbc_contents(data_root: Path) -> dict[str, HashedImages]:
    """PBC-28's three splits by content; looks are left out, which exact copies do not need."""
    splits = {}
    for split in ("train", "val", "test"):
        source = NpzSource(data_root / "medmnist" / "pbcblood.npz", split, CELL_NAMES)
        digests = [hashlib.sha256(np.asarray(item.image).tobytes()).digest() for item in source.read(0, len(source))]
        count = len(digests)
        zeros = np.zeros(count, np.uint64)
        total = np.zeros((SIDE, SIDE, 3), np.int64)
        splits[split] = HashedImages(np.arange(count), np.array(digests, "S32"), zeros, zeros, total, count)
    return splits


def test_pbc28_holds_17_images_twice_of_which_8_lie_in_two_splits(data_root: Path) -> None:
    splits = pbc_contents(data_root)
    within = {name: len(exact_pairs(images)) for name, images in splits.items()}
    across = {
        (one, other): len(exact_pairs(splits[one], splits[other]))
        for one, other in (("val", "train"), ("test", "train"), ("test", "val"))
    }
    assert within == {"train": 8, "val": 0, "test": 1}
    assert across == {("val", "train"): 4, ("test", "train"): 4, ("test", "val"): 0}
    assert sum(across.values()) == 8
    assert sum(within.values()) + sum(across.values()) == 17


@pytest.mark.slow
def test_check_finds_what_pbc28_shares_between_its_splits(data_root: Path, tmp_path: Path) -> None:
    source = {"kind": "npz", "path": str(data_root / "medmnist" / "pbcblood.npz"), "class_names": CELL_NAMES}
    sets = [{"name": split, "source": {**source, "split": split}} for split in ("train", "val", "test")]
    path = ingested(write_study(tmp_path, evaluation_sets=sets, finetune={}))
    entries = check(load_manifest(path))["evaluation_sets"]
    assert {name: entry["within"]["exact"] for name, entry in entries.items()} == {"train": 8, "val": 0, "test": 1}
    across = {each["set"]: each["exact"] for each in entries["test"]["between"]}
    assert across == {"train": 4, "val": 0}
    assert [each["exact"] for each in entries["val"]["between"]] == [4]
    assert read_table(tmp_path / "run" / "checks" / "duplicates.parquet").num_rows >= 17


def shared_by_medmnist(flag: str, data_root: Path, folder: Path) -> list[tuple[str, int, int]]:
    """Role, exact and near duplicates of a set's test split with its other two."""

    def of_split(split: str) -> list[dict[str, Any]]:
        return [{"name": flag, "source": {"kind": "medmnist", "flag": flag, "split": split}}]

    expert = training(train=of_split("train"), validation=of_split("val"))
    sets = of_split("test")
    path = write_study(folder, data_root=str(data_root), evaluation_sets=sets, finetune={"expert": expert})
    entry = check(load_manifest(ingested(path)))["evaluation_sets"][flag]
    return [(each["role"], each["exact"], each["near"]) for each in entry["training"]]


def test_breastmnist_shares_scans_between_training_and_test(data_root: Path, tmp_path: Path) -> None:
    (_, exact, near), (_, _, near_validation) = shared_by_medmnist("breastmnist", data_root, tmp_path)
    assert exact == 1
    assert 30 <= near <= 60
    assert near_validation > 0


@pytest.mark.slow
def test_fundus_photographs_that_look_alike_are_no_duplicates(data_root: Path, tmp_path: Path) -> None:
    found = shared_by_medmnist("retinamnist", data_root, tmp_path)
    assert found == [("training", 0, 0), ("validation", 0, 0)]
