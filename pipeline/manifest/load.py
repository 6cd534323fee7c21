"""Reading a manifest: YAML, environment variables, paths, and errors that say file, key, value and remedy."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ProblemsError
from pipeline.manifest.entries import did_you_mean
from pipeline.manifest.extends import DESCRIPTION, EXTENDS, read_extended
from pipeline.manifest.images import (
    CorruptSource,
    FolderSource,
    MedIMetaSource,
    MedMNISTCSource,
    MedMNISTSource,
    NpzSource,
    SyntheticSource,
)
from pipeline.manifest.schema import Manifest
from pipeline.manifest.section import Section
from pipeline.references import is_file_reference

# In paths of the run and of checkpoints.
SEED = "{seed}"
ROOT_VARIABLE = "PIPELINE_DATA_ROOT"
VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
SOURCE_KINDS: Mapping[str, type[Section]] = {
    "medmnist": MedMNISTSource,
    "npz": NpzSource,
    "synthetic": SyntheticSource,
    "medmnist-c": MedMNISTCSource,
    "corrupt": CorruptSource,
    "medimeta": MedIMetaSource,
    "folder": FolderSource,
}
SOURCE_PATHS = ("path", "root", "labels")
BOUNDS = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge"), "less_than_equal": ("<=", "le")}


def load_manifest(
    path: Path, *, output: Path | None = None, data_root: Path | None = None, seed: int | None = None
) -> Manifest:
    """Read, resolve and validate a manifest; ``output`` and ``data_root`` replace what it says, ``seed`` all its seeds.

    ``data_root`` and the environment variable PIPELINE_DATA_ROOT are relative to the working directory, everything in
    the file, and in what it extends, is relative to the file.

    Raises
    ------
    ManifestError
        When the file or one that it extends is absent or no YAML mapping.
    ProblemsError
        With one line per wrong setting: file, key path, value and remedy.
    """
    resolved = read_extended(path)
    variables = dict(os.environ)
    root = data_root or os.environ.get(ROOT_VARIABLE)
    if root:
        variables[ROOT_VARIABLE] = str(Path(root).expanduser().resolve())
    problems: list[str] = []
    resolved = _replace_variables(resolved, "", variables, problems)
    if problems:
        raise ProblemsError([f"{path}: {problem}" for problem in problems])
    if root and (data_root or not resolved.get("data_root")):
        resolved["data_root"] = variables[ROOT_VARIABLE]
    if output:
        resolved["output"] = str(output.expanduser().resolve())
    try:
        manifest = Manifest.model_validate(resolved)
    except ValidationError as error:
        lines = [line for detail in error.errors() for line in _explain(path, detail).splitlines()]
        raise ProblemsError(lines) from None
    if seed is not None:
        seeds = manifest.seeds.model_copy(update={"training": seed, "merging": seed, "order": seed})
        manifest = manifest.model_copy(update={"seeds": seeds})
    return _with_absolute_paths(manifest, path.resolve().parent)


def manifest_schema() -> dict[str, Any]:
    """JSON Schema of the manifest file, which may extend another and then lack what that one has."""
    schema = Manifest.model_json_schema()
    schema["properties"][EXTENDS] = {"type": "string", "minLength": 1, "title": "Extends", "description": DESCRIPTION}
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": [EXTENDS]}]
    return schema


def _replace_variables(value: Any, key: str, variables: Mapping[str, str], problems: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _replace_variables(item, f"{key}.{name}" if key else str(name), variables, problems)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_replace_variables(item, f"{key}[{i}]", variables, problems) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def substitute(match: re.Match[str]) -> str:
        found = variables.get(match["name"]) or match["default"]
        if found is None:
            problems.append(f"{key}: environment variable {match['name']} is not set; set it or write the value")
            return ""
        return found

    return VARIABLE.sub(substitute, value)


def _explain(path: Path, detail: ErrorDetails) -> str:
    key = _key_path(detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        *section, unknown = detail["loc"]
        known = _known_keys(section)
        key = ".".join(filter(None, (_key_path(section), str(unknown))))
        return f"{path}: unknown key {key}{did_you_mean(str(unknown), known)}; known: {', '.join(known)}"
    if kind == "missing":
        return f"{path}: {key} is required"
    if kind in BOUNDS:
        sign, name = BOUNDS[kind]
        return f"{path}: {key} must be {sign} {str(context[name]).removesuffix('.0')}, got {detail['input']!r}"
    if kind == "union_tag_invalid":
        found = context["tag"]
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        return f"{path}: {key}.kind: unknown source {found!r}{did_you_mean(found, known)}; known: {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = "" if kind == "value_error" else f", got {_shortened(detail['input'])}"
    if message.startswith("["):
        return "\n".join(f"{path}: {key}{line}{shown}" for line in message.splitlines())
    return f"{path}: {key}: {message}{shown}" if key else f"{path}: {message}{shown}"


def _key_path(location: Sequence[str | int]) -> str:
    """Location as written in YAML; the steps that pydantic adds for unions are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in SOURCE_KINDS and part.isidentifier():
            text += f".{part}" if text else part
    return text


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """Keys that the section at ``location`` has, found by walking the models as the location does."""
    section: type[Section] = Manifest
    for part in location:
        if isinstance(part, int):
            continue
        if part in SOURCE_KINDS:
            section = SOURCE_KINDS[part]
        elif part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return [*section.model_fields, EXTENDS] if section is Manifest else list(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = [_section_of(argument) for argument in getattr(annotation, "__args__", ())]
    return next((section for section in found if section is not None), None)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _with_absolute_paths(manifest: Manifest, folder: Path) -> Manifest:
    def absolute(value: str) -> str:
        return str((folder / Path(value.replace(SEED, str(manifest.seeds.training))).expanduser()).resolve())

    def checkpoint(value: str | None) -> str | None:
        return absolute(value) if value is not None and is_file_reference(value) else value

    data = manifest.model_dump()
    for key in ("output", "archives"):
        data[key] = absolute(data[key])
    data["data_root"] = absolute(data["data_root"]) if data["data_root"] else None
    models = data["pair"] or data["sources"]
    if models["architecture"].endswith(".json"):
        models["architecture"] = absolute(models["architecture"])
    if data["pair"]:
        models["generalist"], models["expert"] = checkpoint(models["generalist"]), checkpoint(models["expert"])
    else:
        models["models"] = {name: checkpoint(value) for name, value in models["models"].items()}
    sets = list(data["evaluation_sets"])
    for training in data["finetune"].values():
        training["init"] = checkpoint(training["init"])
        sets += training["train"] + training["validation"]
    for item in sets:
        for source in item["source"]:
            _make_absolute(source, absolute)
    return Manifest.model_validate(data)


def _make_absolute(source: dict[str, Any], absolute: Callable[[str], str]) -> None:
    """Replace the paths of one source, and of the source inside it."""
    for key in SOURCE_PATHS:
        if source.get(key) is not None:
            source[key] = absolute(source[key])
    if "of" in source:
        _make_absolute(source["of"], absolute)
