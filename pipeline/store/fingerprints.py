"""What a result depends on, as named inputs and one SHA-256 over them (DESIGN rule 5: a stale cache is an error).

Keeping the inputs by name beside the digest lets a refusal say *which* of them changed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20


def digest_json(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON value in canonical form: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's bytes, in hex digits, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Named inputs of a result. Values are short strings: a digest, or a setting spelled out."""

    inputs: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over all inputs and their names, 64 hex digits."""
        return digest_json(dict(self.inputs))

    def changed_inputs(self, cached: Mapping[str, str]) -> list[str]:
        """Names of the inputs that differ from ``cached``, in alphabetical order."""
        names = self.inputs.keys() | cached.keys()
        return sorted(name for name in names if self.inputs.get(name) != cached.get(name))
