"""The least that a manifest must say, with a pair or with K sources, and what is wrong with one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.manifest import load_manifest

MINIMAL: dict[str, Any] = {
    "name": "study",
    "output": "runs/study",
    "pair": {"architecture": "ViT-B-32-quickgelu", "generalist": "openai", "expert": "expert.safetensors"},
    "evaluation_sets": [{"name": "cells", "source": {"kind": "synthetic", "count": 8}}],
}
SOURCES: dict[str, Any] = {
    "architecture": "models/tiny.json",
    "models": {"site-1": "checkpoints/site-1.safetensors", "site-2": "openai", "site-3": "hf-hub:org/model"},
}
Write = Callable[..., Path]


def problems(path: Path) -> list[str]:
    """Problems, each without the file's name that it must begin with."""
    with pytest.raises(PipelineError) as caught:
        load_manifest(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def of_sources(path: Path, **models: Any) -> Path:
    """The same manifest with K sources instead of its pair; ``models`` replace those of the section's keys."""
    content = yaml.safe_load(path.read_text())
    del content["pair"]
    content["sources"] = SOURCES | models
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
