"""Synthetic images and the demo's tiny pair with random weights: a run of any size, for benchmarks of the pipeline."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from pipeline.archives.archive import create_or_open
from pipeline.archives.ingest import append_segment, plan_segments, write_part
from pipeline.archives.source import JSON, SourceImage
from pipeline.archives.synthetic import SyntheticSource
from pipeline.benchmarks.random_pair import perturbed
from pipeline.manifest import Manifest
from pipeline.models.architectures import load_architecture
from pipeline.stages.context import archive_path
from pipeline.stages.scoring_worker import load_manifest_architecture

ARCHITECTURE = "tiny.json"
PERTURBATION = 0.02
SET_NAME = "cells"
BLOCK = 4096


def write_pair(folder: Path) -> None:
    """Write ``tiny.json`` and the checkpoints of a random generalist and its perturbation to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = resources.files("pipeline.demo").joinpath(ARCHITECTURE).read_text(encoding="utf-8")
    (folder / ARCHITECTURE).write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    state = load_architecture(str(folder / ARCHITECTURE)).build().state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "generalist.safetensors")
    save_file(perturbed(state, PERTURBATION), folder / "expert.safetensors")


def write_manifest(folder: Path, pair: Path, images: int, *, threads: int = 1, part_rows: int = 8192) -> Path:
    """Write a manifest of one set of ``images`` for ``t3-batch`` to ``folder``, with the pair that lies in ``pair``."""
    settings: dict[str, Any] = {
        "name": f"{images} images",
        "output": "run",
        "archives": "archives",
        "pair": {
            "architecture": str((pair / ARCHITECTURE).resolve()),
            "generalist": str((pair / "generalist.safetensors").resolve()),
            "expert": str((pair / "expert.safetensors").resolve()),
        },
        "methods": ["t3-batch"],
        "compute": {"device": "cpu", "threads": threads},
        "part_rows": part_rows,
        "evaluation_sets": [{"name": SET_NAME, "source": {"kind": "synthetic", "count": images}}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class RepeatedCells:
    """``cells`` of which only the first :data:`BLOCK` are drawn: image i shows cell i modulo that.

    For archives of millions, where drawing would take most of the time. It calls itself what it stands for, so that a
    manifest which names a synthetic source accepts the archive: for measurements only.
    """

    cells: SyntheticSource
    drawn: list[SourceImage] = field(default_factory=list)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the cells."""
        return self.cells.class_names

    @property
    def identity(self) -> dict[str, JSON]:
        """Those of the cells."""
        return self.cells.identity

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield the images of a range."""
        if not self.drawn:
            self.drawn.extend(self.cells.read(0, min(BLOCK, len(self))))
        for index in range(start, stop):
            item = self.drawn[index % len(self.drawn)]
            yield replace(item, index=index, sample_id=f"{item.sample_id}+{index}", group_id=f"{item.group_id}+{index}")


def write_archive(manifest: Manifest, images: int) -> None:
    """Write the archive that ``manifest`` (of :func:`write_manifest`) names, of repeated cells; what is there stays."""
    architecture = load_manifest_architecture(manifest)
    geometry = architecture.preprocessing(architecture.build()).geometry
    source = RepeatedCells(SyntheticSource(images, 0))
    archive = create_or_open(
        archive_path(manifest, SET_NAME),
        class_names=source.class_names,
        geometry=geometry,
        part_rows=manifest.part_rows,
    )
    for _ in plan_segments(archive, [source]):
        append_segment(archive, source)
    for part in archive.missing_parts():
        write_part(archive, part, source)
