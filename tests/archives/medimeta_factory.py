"""Small data sets in MedIMeta's layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from PIL import Image

TASK = "cell class"
NAMES = ("neutrophil", "eosinophil", "basophil", "lymphocyte")


def some_images(count: int = 12, *tail: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (count, *(tail or (9, 7, 3))), dtype=np.uint8)


def task_entry(
    labels: Mapping[int, str], name: str = TASK, target: str = "MULTICLASS_CLASSIFICATION"
) -> dict[str, Any]:
    return {"task_name": name, "task_target": target, "labels": dict(labels)}


def make_medimeta(
    folder: Path,
    images: np.ndarray,
    labels: Sequence[int],
    *,
    names: Sequence[str] = NAMES,
    test: Sequence[int] | None = None,
    tiff: bool = False,
    patients: Sequence[str] | None = None,
    **info: Any,
) -> Path:
    """Write a data set whose test split has the images ``test``, by default all; train and val are empty."""
    for name in ("splits", "original_splits", "task_labels"):
        (folder / name).mkdir(parents=True)
    content = {"id": folder.name, "tasks": [task_entry(dict(enumerate(names)))], "license": "CC BY 4.0", **info}
    (folder / "info.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    np.save(folder / "task_labels" / f"{TASK}.npy", np.asarray(labels))
    paths = [f"images/{number:06d}.tiff" for number in range(len(images))]
    chosen = range(len(images)) if test is None else test
    for split, lines in (("train", []), ("val", []), ("test", [paths[number] for number in chosen])):
        (folder / "splits" / f"{split}.txt").write_text("\n".join(lines))
    (folder / "original_splits" / "train.txt").write_text("\n".join(paths[:3]))
    columns = ["filepath", *(["patient_id"] if patients else [])]
    rows = [[path, *([patients[number]] if patients else [])] for number, path in enumerate(paths)]
    (folder / "annotations.csv").write_text("".join(",".join(row) + "\n" for row in [columns, *rows]))
    if tiff:
        (folder / "images").mkdir()
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image.squeeze()).save(folder / path)
    else:
        with h5py.File(folder / "images.hdf5", "w") as file:
            file.create_dataset("images", data=images)
    return folder
