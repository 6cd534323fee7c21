"""Manifests are written anew for each test, and the machine's data root is none of their business."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifest.factory import MINIMAL, Write


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPELINE_DATA_ROOT", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_manifest(**entries: Any) -> Path:
        """The minimal manifest with ``entries`` set; ``coefficient__gamma`` is a key of a section."""
        content = json.loads(json.dumps(MINIMAL))
        for path, value in entries.items():
            *sections, key = path.split("__")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return file

    return write_manifest
