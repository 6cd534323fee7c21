"""Plans that measure no longer than they must, and their stages by name."""

from pathlib import Path
from typing import Any

from pipeline.drivers.plan import plan
from pipeline.manifest import Manifest

EVERY_KIND = [
    "generalist",
    "ensemble",
    "t3-batch",
    "t3",
    {"name": "t3-lambda", "tolerance": 0.02},
    {"name": "t3-batch", "batch_size": 5},
    "t3-mixture",
    "soup",
    "ties",
    {"name": "oracle", "points": 4},
]


def quick(manifest: Manifest, **settings: Any) -> dict[str, Any]:
    """A plan that measures everything once: counts and bytes do not depend on how long is measured."""
    return plan(manifest, seconds=0.0, **settings)


def stages(planned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["method"] or stage["stage"]: stage for stage in planned["stages"]}


def by_name(planned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages, those of methods by their plain names."""
    return {key.partition("@")[0]: stage for key, stage in stages(planned).items()}


def files_below(*folders: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}
