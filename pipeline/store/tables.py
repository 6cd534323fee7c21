"""Parquet parts that carry their fingerprint: written atomically, deterministic in every byte, refused when stale."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StaleCacheError, one_line
from pipeline.store.files import write_atomically
from pipeline.store.fingerprints import Fingerprint

FINGERPRINT_KEY = b"pipeline.fingerprint"
INPUTS_KEY = b"pipeline.inputs"
# Footer entry for the digest of the rows that a table covers, which only the work itself finds out: an image may
# prove unreadable.
ROWS = "rows"
EXTRA_PREFIX = "pipeline."


class PartState(Enum):
    """What lies at a part's path."""

    ABSENT = "absent"
    COMMITTED = "committed"
    UNREADABLE = "unreadable"
    OUTDATED = "outdated"


@dataclass(frozen=True, slots=True)
class PartMetadata:
    """A committed part as its Parquet footer tells it; ``extra`` is what the work found out, such as a digest."""

    fingerprint: str
    inputs: dict[str, str]
    rows: int
    extra: dict[str, str] = field(default_factory=dict)


def write_table(path: Path, table: pa.Table, fingerprint: Fingerprint, extra: Mapping[str, str] | None = None) -> None:
    """Commit ``table`` at ``path`` with its fingerprint; equal tables and fingerprints give equal bytes.

    ``extra`` holds short strings known only once the work is done; each lies in the footer as ``pipeline.<name>``.
    """
    metadata = {
        **{(EXTRA_PREFIX + name).encode(): value.encode() for name, value in sorted((extra or {}).items())},
        FINGERPRINT_KEY: fingerprint.digest.encode(),
        INPUTS_KEY: json.dumps(dict(fingerprint.inputs), sort_keys=True, ensure_ascii=False).encode(),
    }
    labelled = table.combine_chunks().replace_schema_metadata(metadata)

    def write(temporary: Path) -> None:
        pq.write_table(labelled, temporary, compression="zstd", write_page_checksum=True, store_schema=True)

    write_atomically(path, write)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part, page checksums verified; :class:`StaleCacheError` names a file that cannot be read."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read(
            columns=None if columns is None else [*columns]
        )
    except (OSError, pa.ArrowException) as error:
        msg = f"{path}: cannot be read ({one_line(error)}); delete this file and run the stage again"
        raise StaleCacheError(msg) from error


def read_metadata(path: Path) -> PartMetadata | None:
    """Footer of the part at ``path``; None when the file is torn.

    A whole Parquet file without our metadata is somebody else's: :class:`StaleCacheError`, never overwritten.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata.metadata or {}
            return PartMetadata(
                fingerprint=metadata[FINGERPRINT_KEY].decode(),
                inputs=json.loads(metadata[INPUTS_KEY]),
                rows=file.metadata.num_rows,
                extra=_extra(metadata),
            )
    except KeyError as error:
        raise StaleCacheError(
            f"{path}: was not written by this project; move it away or give another 'output'"
        ) from error
    except (OSError, ValueError, pa.ArrowException):
        return None


def part_state(path: Path, fingerprint: Fingerprint, *, rows: str | None = None) -> PartState:
    """Say whether the part at ``path`` may be reused.

    A torn file is UNREADABLE, and one whose footer names other ``rows`` than these, because what it was derived from
    was made again, is OUTDATED: the stage redoes both. A readable file made from other inputs raises
    :class:`StaleCacheError` naming what changed (DESIGN rule 5): results are never silently mixed.
    """
    if not path.exists():
        return PartState.ABSENT
    metadata = read_metadata(path)
    if metadata is None:
        return PartState.UNREADABLE
    if metadata.fingerprint == fingerprint.digest:
        return PartState.COMMITTED if rows in {None, metadata.extra.get(ROWS)} else PartState.OUTDATED
    changed = fingerprint.changed_inputs(metadata.inputs)
    details = "; ".join(
        f"{name} changed (cached {_short(metadata.inputs.get(name))}, now {_short(fingerprint.inputs.get(name))})"
        for name in changed
    )
    raise StaleCacheError(f"{path}: {details}; give another 'output', or delete what is cached there")


def _extra(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    own = {key: value for key, value in metadata.items() if key not in (FINGERPRINT_KEY, INPUTS_KEY)}
    prefix = EXTRA_PREFIX.encode()
    return {key.removeprefix(prefix).decode(): value.decode() for key, value in own.items() if key.startswith(prefix)}


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value[:12] if len(value) == 64 else value
