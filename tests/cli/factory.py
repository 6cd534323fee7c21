"""A study in a folder, what can be wrong with it, and the one line that must then be all that is printed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.models.factory import State, changed, random_state, write_checkpoint

MANIFEST: dict[str, Any] = {
    "name": "study",
    "output": "run",
    "archives": "archives",
    "pair": {
        "architecture": "tiny.json",
        "generalist": "generalist.safetensors",
        "expert": "expert.safetensors",
    },
    "prompts": {"templates": ["a {}"]},
    "compute": {"device": "cpu"},
    "evaluation_sets": [{"name": "cells", "source": {"kind": "synthetic", "count": 6, "size": 28}}],
}
SYNTHETIC = MANIFEST["evaluation_sets"][0]["source"]
CLASSES = ["malignant", "benign"]


@dataclass(frozen=True)
class Study:
    """A folder with a tiny pair and a manifest."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "study.yaml"

    def write(self, **entries: Any) -> Path:
        content = changed(MANIFEST, **entries)
        self.manifest.write_text(yaml.safe_dump(content), encoding="utf-8")
        return self.manifest


Run = Callable[..., tuple[int, str, str]]


def only_line(result: tuple[int, str, str]) -> str:
    """The one line of an error, without its mark."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


def replace_expert(study: Study, edit: Callable[[State], State], card: dict[str, Any] | None = None) -> None:
    state = edit(random_state(study.folder / "tiny.json", seed=2))
    write_checkpoint(study.folder / "expert.safetensors", state, card)


def with_nan_weights(study: Study) -> None:
    replace_expert(study, lambda state: state | {"visual.proj": state["visual.proj"] * float("nan")})


def write_npz(path: Path, images: int, labels: int | None = None) -> dict[str, Any]:
    """A file in MedMNIST's layout, and the source that names it."""
    np.savez(
        path,
        test_images=np.zeros((images, 28, 28), np.uint8),
        test_labels=np.zeros((images if labels is None else labels, 1), np.uint8),
    )
    return {"kind": "npz", "path": path.name, "split": "test", "class_names": CLASSES}
