"""The run manifest: YAML in, validated settings out, JSON Schema on request.

Everything a run depends on is written in one file. An error names the file, the key path, the value and the remedy;
an unknown key is an error with the nearest known key suggested. ``${NAME}`` and ``${NAME:-default}`` are replaced by
environment variables; relative paths are relative to the manifest.
"""

from pipeline.manifest.load import load_manifest, manifest_schema
from pipeline.manifest.schema import ROLES, EvaluationSet, Manifest, Role, SourceSpec, Training, check_method

__all__ = [
    "ROLES",
    "EvaluationSet",
    "Manifest",
    "Role",
    "SourceSpec",
    "Training",
    "check_method",
    "load_manifest",
    "manifest_schema",
]
