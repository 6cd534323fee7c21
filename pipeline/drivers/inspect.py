"""``pipeline inspect``: what a run or an archive holds, what is missing, and from what it was made."""

from pathlib import Path
from typing import Any

from pipeline.archives.archive import RECORD_NAME, Archive
from pipeline.errors import ArchiveError, RunDirectoryError
from pipeline.store.run_directory import RunDirectory, part_numbers
from pipeline.store.tables import read_metadata


def inspect(path: Path) -> dict[str, Any]:
    """Describe the run or archive at ``path``; :class:`RunDirectoryError` when it is neither."""
    if (path / RECORD_NAME).exists():
        return inspect_archive(Archive.open(path))
    directory = RunDirectory(path)
    if directory.record_path.exists():
        return inspect_run(directory)
    raise RunDirectoryError(f"{path}: is neither a run (no run.json) nor an archive (no {RECORD_NAME})")


def inspect_archive(archive: Archive) -> dict[str, Any]:
    """Class names, geometry, segments, accepted and rejected images, and missing parts."""
    missing = archive.missing_parts()
    written = [part for part in range(archive.parts) if part not in set(missing)]
    return {
        "kind": "archive",
        "path": str(archive.path),
        "class_names": list(archive.class_names),
        "geometry": archive.geometry.as_json(),
        "part_rows": archive.part_rows,
        "segments": [
            dict(segment.source) | {"rows": segment.rows, "parts": segment.parts} for segment in archive.segments
        ],
        "parts": {"written": len(written), "missing": missing},
        "samples": sum(len(archive.samples(part)) for part in written),
        "rejected": sum(len(archive.rejects(part)) for part in written),
        "digests": {f"part-{part:05d}": archive.part_digest(part) for part in written},
    }


def inspect_run(directory: RunDirectory) -> dict[str, Any]:
    """State, provenance and, for every table, its parts, rows, missing parts and what it was made from."""
    record = directory.read_record()
    if "manifest" not in record:
        raise RunDirectoryError(f"{directory.record_path}: holds no manifest; run `pipeline precompute` again")
    manifest = record["manifest"]
    expected = {item["name"]: _archive_parts(manifest, item["name"]) for item in manifest["evaluation_sets"]}
    root = directory.root
    tables = {}
    for folder in sorted({path.parent for path in root.rglob("part-*.parquet")}):
        table = folder.relative_to(root).parts
        parts_expected = _expected_parts(table, expected)
        tables["/".join(table)] = _describe_table(folder, parts_expected)
    return {
        "kind": "run",
        "path": str(root),
        "name": manifest["name"],
        "state": record.get("state"),
        "numeric_kind": record.get("numeric_kind"),
        "fingerprints": record.get("fingerprints"),
        "versions": record.get("versions"),
        "methods": manifest["methods"],
        "absent": [
            f"predictions/{method}/{name}"
            for method in record.get("variants", manifest["methods"])
            for name in expected
            if f"predictions/{method}/{name}" not in tables
        ]
        + [f"evidence/{name}" for name in expected if f"evidence/{name}" not in tables],
        "tables": tables,
    }


def _archive_parts(manifest: dict[str, Any], name: str) -> int | None:
    try:
        return Archive.open(Path(manifest["archives"]) / name).parts
    except ArchiveError:
        return None


def _expected_parts(table: tuple[str, ...], expected: dict[str, int | None]) -> int | None:
    """Parts that a table must have: one per archive part for evidence, samples and predictions, else not known."""
    if table[0] in {"evidence", "predictions", "grid"}:
        return expected.get(table[-1])
    if table[0] == "coefficients" and table[-1] == "samples":
        return expected.get(table[-2])
    return None


def _describe_table(folder: Path, expected: int | None) -> dict[str, Any]:
    numbers = part_numbers(folder)
    rows, unreadable, fingerprints = 0, [], []
    for number in numbers:
        metadata = read_metadata(folder / f"part-{number:05d}.parquet")
        if metadata is None:
            unreadable.append(number)
            continue
        rows += metadata.rows
        fingerprints.append(metadata.fingerprint)
    return {
        "parts": len(numbers),
        "rows": rows,
        "missing": [] if expected is None else sorted(set(range(expected)) - set(numbers)),
        "unreadable": unreadable,
        "fingerprint": fingerprints[0] if fingerprints else None,
    }
