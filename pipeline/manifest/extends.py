"""Manifests that extend others: ``extends: other.yaml``, read first, with the file's own keys merged over it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ManifestError

EXTENDS = "extends"
DESCRIPTION = (
    "another manifest, relative to this file, whose settings are read first: mappings merge key by key, anything else "
    "here replaces what is there"
)


def read_extended(path: Path) -> dict[str, Any]:
    """Settings of a manifest merged over those of what it extends, which may extend another itself.

    ``extends`` counts from the file in which it stands; all other paths are left as they are written. Raises
    :class:`ManifestError` for a file that cannot be read, is no YAML mapping, or extends itself; it names ``path``, and
    the file at fault where that is another.
    """
    chain: list[Path] = []
    merged: dict[str, Any] = {}
    current = path
    while True:
        where = f"{path}: {EXTENDS} {current}, which" if chain else f"{path}:"
        settings = _read_mapping(current, where)
        base = settings.pop(EXTENDS, None)
        merged = _merged(settings, merged)
        if base is None:
            return merged
        if not isinstance(base, str) or not base.strip():
            raise ManifestError(f"{where} has {EXTENDS}: {base!r}; it must be the path of a manifest")
        chain.append(current.resolve())
        current = current.parent / Path(base).expanduser()
        if current.resolve() in chain:
            raise ManifestError(
                f"{path}: {EXTENDS} goes in a circle: {chain[-1].name} leads back to {current.name}; "
                "leave one of them out"
            )


def _read_mapping(path: Path, where: str) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"{where} cannot be read ({reason}); give the path of a manifest") from error
    except yaml.YAMLError as error:
        raise ManifestError(f"{where} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise ManifestError(f"{where} must be a mapping of settings, got {type(raw).__name__}")
    return raw


def _merged(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """``over`` merged onto ``base``: mappings key by key, everything else replaced."""
    result = dict(base)
    for key, value in over.items():
        ours = result.get(key)
        result[key] = _merged(ours, value) if isinstance(ours, dict) and isinstance(value, dict) else value
    return result
