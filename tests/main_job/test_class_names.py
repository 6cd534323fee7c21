"""Base-to-novel answers go by the names of classes: the same images in two label orders get the same answers.

MedIMeta's PBC and MedMNIST's BloodMNIST number the same eight cell types differently.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from pipeline.results.metrics import evaluate_run
from tests.archives.medimeta_factory import make_medimeta
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import MANIFEST, predictions_folder, read_predictions, run_both, study
from tests.main_job.test_real_images import CELL_NAMES

PBC_NAMES = (
    "neutrophil",
    "eosinophil",
    "basophil",
    "lymphocyte",
    "monocyte",
    "immature granulocyte",
    "erythroblast",
    "platelet",
)
METHODS = ["generalist", "expert", "t3-batch"]
REAL_IMAGES = 160


def scored(folder: Path, pair: Path, sets: Sequence[dict[str, Any]]) -> Manifest:
    manifest = study(folder, pair, folder / "archives", evaluation_sets=sets, methods=METHODS)
    summary = ingest(manifest, LocalEngine(manifest))
    assert summary.rejected == 0
    return run_both(manifest)


def assert_answers_go_by_name(manifest: Manifest, medimeta: str, other: str) -> None:
    accuracy = {
        (row["method"], row["evaluation_set"]): row["accuracy"]
        for row in evaluate_run(Path(manifest.output)).to_dicts()
    }
    for method in METHODS:
        key = predictions_folder(manifest, method, medimeta).parent.name
        theirs, ours = (read_predictions(manifest, method, name) for name in (medimeta, other))
        assert theirs["class_name"].to_pylist() == ours["class_name"].to_pylist()
        assert len(set(theirs["class_name"].to_pylist())) > 1
        truth = [
            np.array(names)[table["label"].to_numpy()] for table, names in ((theirs, PBC_NAMES), (ours, CELL_NAMES))
        ]
        assert np.array_equal(*truth)
        expected = np.mean(np.array(theirs["class_name"].to_pylist()) == truth[0])
        assert accuracy[key, medimeta] == accuracy[key, other] == pytest.approx(expected)

        positions = [table["prediction"].to_numpy() for table in (theirs, ours)]
        assert not np.array_equal(*positions)
        by_position = np.mean(positions[0] == ours["label"].to_numpy())
        assert by_position != pytest.approx(expected)


def test_medimeta_and_a_folder_in_another_order_get_the_same_answers(pair: Path, tmp_path: Path) -> None:
    cells = SyntheticSource(150, 8, classes=8)
    items = list(cells.read(0, 150))
    labels = [PBC_NAMES.index(cells.class_names[item.label or 0]) for item in items]
    images = np.stack([np.asarray(item.image) for item in items])
    make_medimeta(tmp_path / "pbc", images, labels, names=PBC_NAMES)
    (tmp_path / "cells").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "cells" / f"{number}.png")
    lines = [f"{number}.png,{PBC_NAMES[label]}" for number, label in enumerate(labels)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    sets = [
        {"name": "novel", "source": {"kind": "medimeta", "dataset": "pbc", "root": ".", "split": "test"}},
        {"name": "folder", "source": {"kind": "folder", "path": "cells", "labels": "labels.csv"}},
    ]
    assert_answers_go_by_name(scored(tmp_path, pair, sets), "novel", "folder")


def test_real_cells_get_the_same_answers_in_bloodmnists_order(pair: Path, data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "medimeta" / "pbc"
    with h5py.File(folder / "images.hdf5") as file:
        images = file["images"][:REAL_IMAGES]
    numbers = np.load(folder / "task_labels" / "cell class.npy")[:REAL_IMAGES]
    labels = np.array([CELL_NAMES.index(PBC_NAMES[number]) for number in numbers])
    np.savez(tmp_path / "blood.npz", test_images=images, test_labels=labels)
    npz = {"kind": "npz", "path": "blood.npz", "split": "test", "class_names": CELL_NAMES}
    pbc = {"kind": "medimeta", "dataset": "pbc", "split": "test", "limit": REAL_IMAGES, "root": str(folder.parent)}
    sets = [{"name": "novel", "source": pbc}, {"name": "blood", "source": npz}]
    assert_answers_go_by_name(scored(tmp_path, pair, sets), "novel", "blood")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "medimeta", "dataset": "pbc"}, "evaluation_sets[0].source[0].split is required"),
        ({"kind": "medimeta", "dataset": "pbc", "split": "all"}, "source[0].split: input should be 'train', 'val' or"),
        ({"kind": "medimeta", "dataset": "../pbc", "split": "test"}, "source[0].dataset: must be letters, digits"),
        ({"kind": "medimeta", "dataset": "pbc", "root": ".", "split": "val"}, "lists no images; choose another split"),
        (
            {"kind": "medimeta", "dataset": "nwe", "root": ".", "split": "test"},
            "https://doi.org/10.5281/zenodo.7884735",
        ),
        (
            {"kind": "medimeta", "dataset": "pbc", "root": ".", "split": "test", "task": "x"},
            "tasks there: 'cell class'",
        ),
        ({"kind": "folder", "path": "nowhere"}, "nowhere: no such folder"),
        ({"kind": "folder", "path": "pbc", "labels": "no.csv"}, "no.csv: no such file"),
        ({"kind": "foldr", "path": "pbc"}, "unknown source 'foldr'; did you mean folder?"),
    ],
)
def test_a_mistake_in_a_source_is_one_line(
    pair: Path, tmp_path: Path, command_line: CommandLine, source: dict[str, Any], said: str
) -> None:
    make_medimeta(tmp_path / "pbc", np.zeros((3, 8, 8, 3), np.uint8), [0, 1, 2])
    valid = [{"name": "cells", "source": {"kind": "synthetic", "count": 4}}]
    study(tmp_path, pair, tmp_path / "archives", evaluation_sets=valid)
    content = yaml.safe_load((tmp_path / MANIFEST).read_text())
    content["evaluation_sets"][0]["source"] = source
    (tmp_path / MANIFEST).write_text(yaml.safe_dump(content))
    code, _, err = command_line("ingest", str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    (line,) = err.splitlines()
    assert said in line
    assert line.startswith("error: ")
