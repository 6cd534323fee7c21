"""Image classifiers trained on and compared by real images; the oracle is plain timm with the files on disk."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.stages.selection import select_methods
from tests.main_job.classifiers import CONFIGS, ROLES, PlainTimm, trained_and_run, write_study
from tests.main_job.factory import matrix, numpy_weights, read_answers, read_evidence


def test_classifiers_of_real_images(tmp_path: Path, data_root: Path) -> None:
    def breast(split: str, limit: int) -> list[dict[str, Any]]:
        source = {"kind": "medmnist", "flag": "breastmnist", "split": split, "limit": limit}
        return [{"name": "breast", "source": source}]

    training = {"epochs": 2, "learning_rate": 2e-3, "batch_size": 16, "threads": 1}
    sets = {"train": breast("train", 96), "validation": breast("val", 32)}
    path = write_study(
        tmp_path,
        CONFIGS["resnet"] | {"num_classes": 2},
        data_root=str(data_root),
        evaluation_sets=breast("test", 156),
        finetune={
            "generalist": training | sets | {"init": "random", "epochs": 1},
            "expert": training | sets | {"init": "generalist"},
        },
    )
    manifest = trained_and_run(path)
    with np.load(data_root / "medmnist" / "breastmnist.npz") as arrays:
        images = {row: Image.fromarray(image) for row, image in enumerate(arrays["test_images"])}
        labels = arrays["test_labels"].reshape(-1).tolist()
    plain = PlainTimm("resnet", images, classes=2)
    evidence = read_evidence(manifest, "breast")
    assert evidence["label"].to_pylist() == labels
    for role in ROLES:
        expected = plain.logits(numpy_weights(tmp_path / f"{role}.safetensors"), sorted(images))
        np.testing.assert_allclose(matrix(evidence, f"logits_{role}"), expected, rtol=1e-5, atol=1e-5)
    for item in select_methods(manifest):
        assert read_answers(manifest, item.key, "breast")["row"].to_pylist() == sorted(images)
