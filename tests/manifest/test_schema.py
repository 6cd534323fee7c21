"""The schema of manifests and the manifests of the repository fit each other."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.manifest import Manifest, load_manifest, manifest_schema

ROOT = Path(__file__).parents[2]
MANIFESTS = [*sorted((ROOT / "manifests").glob("*.yaml")), ROOT / "pipeline" / "demo" / "demo.yaml"]


def test_the_schema_is_a_valid_json_schema_that_explains_every_default() -> None:
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$defs"]["Coefficient"]["properties"]["gamma"]["default"] == 1.0
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_schema_accepts_every_manifest_of_the_repository(path: Path) -> None:
    validator = jsonschema.Draft202012Validator(manifest_schema())
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(validator.iter_errors(content)) == []
    content["coefficient"] = {"gama": 1}
    assert len(list(validator.iter_errors(content))) == 1


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_of_the_repository_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_DATA_ROOT", str(tmp_path))
    manifest = load_manifest(path)
    assert Manifest.model_validate(manifest.model_dump()) == manifest
    assert Path(manifest.output).is_absolute()
    assert Path(manifest.architecture).is_file()
