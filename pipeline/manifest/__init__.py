"""The run manifest: YAML in, validated settings out, JSON Schema on request.

Everything a run depends on is written in one file. An error names the file, the key path, the value and the remedy;
an unknown key is an error with the nearest known key suggested. ``${NAME}`` and ``${NAME:-default}`` are replaced by
environment variables; relative paths are relative to the manifest.
"""

from pipeline.manifest.entries import check_entry, check_settings
from pipeline.manifest.images import EvaluationSet, SourceSpec
from pipeline.manifest.load import load_manifest, manifest_schema
from pipeline.manifest.schema import Manifest, Training

__all__ = [
    "EvaluationSet",
    "Manifest",
    "SourceSpec",
    "Training",
    "check_entry",
    "check_settings",
    "load_manifest",
    "manifest_schema",
]
