"""Text for ``pipeline inspect``: a run or an archive explained to a person."""

from collections.abc import Mapping
from typing import Any


def inspection_text(found: Mapping[str, Any]) -> str:
    """Lines that describe what :func:`pipeline.drivers.inspect.inspect` found."""
    return "\n".join(_archive_lines(found) if found["kind"] == "archive" else _run_lines(found))


def _archive_lines(found: Mapping[str, Any]) -> list[str]:
    geometry, parts = found["geometry"], found["parts"]
    lines = [
        f"archive {found['path']}",
        f"  classes   {', '.join(found['class_names'])}",
        f"  images    {found['samples']:,} accepted, {found['rejected']:,} rejected, "
        f"{geometry['height']}x{geometry['width']} pixels ({geometry['resize_mode']}, {geometry['interpolation']})",
        f"  parts     {parts['written']} written, {_numbers(parts['missing'])} missing, "
        f"{found['part_rows']:,} rows each",
    ]
    for position, segment in enumerate(found["segments"]):
        described = ", ".join(f"{name} {value}" for name, value in segment.items() if name not in {"rows", "parts"})
        lines.append(f"  source {position}  {segment['rows']:,} images in {segment['parts']} parts: {described}")
    lines += [f"  {name}  {digest}" for name, digest in found["digests"].items()]
    return lines


def _run_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"run {found['path']} ({found['name']}), {found['state']}",
        f"  methods   {', '.join(found['methods'])}",
        f"  kind      {', '.join(f'{name} {value}' for name, value in (found['numeric_kind'] or {}).items())}",
    ]
    lines += [f"  {name:<14} {digest}" for name, digest in (found["fingerprints"] or {}).items()]
    lines += [f"  {name}: absent" for name in found["absent"]]
    for name, table in found["tables"].items():
        faults = f", missing {_numbers(table['missing'])}" if table["missing"] else ""
        faults += f", unreadable {_numbers(table['unreadable'])}" if table["unreadable"] else ""
        mark = (table["fingerprint"] or "none")[:12]
        lines.append(f"  {name}: {table['parts']} parts, {table['rows']:,} rows, fingerprint {mark}{faults}")
    return lines


def _numbers(parts: list[int]) -> str:
    if not parts:
        return "none"
    return ", ".join(str(part) for part in parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")
