"""Peak memory of both stages as the archive grows: the largest unique set size of any process, by stage and kind."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.requirements import MEMORY_GROWTH
from pipeline.benchmarks.synthetic_run import write_archive, write_manifest, write_pair
from pipeline.errors import PipelineError
from pipeline.manifest import load_manifest

SAMPLE_SECONDS = 0.5
STAGES = ("precompute", "infer")
DRIVER, WORKER, RAY = "driver", "worker", "Ray"


@dataclass(slots=True)
class _Peak:
    """Largest unique set size by kind of process, in bytes."""

    unique_bytes: dict[str, int] = field(default_factory=dict)
    object_store_bytes: int = 0
    samples: int = 0


def memory_growth(images: Sequence[int], folder: Path) -> dict[str, Any]:
    """Run precompute and infer (``t3-batch``) on synthetic archives of each size, and watch every process.

    Unique set size is what a process alone occupies; the object store's shared memory is reported apart. ``growth``
    compares the largest process of the largest archive with that of the smallest; Ray's own processes count too. An
    archive in ``folder`` is used again, a run is not.
    """
    if len(set(images)) < 2:
        raise PipelineError(f"--images must be given at least two different sizes to show growth, got {list(images)}")
    write_pair(folder)
    rows = [_measure(count, folder) for count in sorted(set(images))]
    peaks = [max(max(row[stage]["unique_bytes"].values()) for stage in STAGES) for row in rows]
    result: dict[str, Any] = {"rows": rows, "growth": peaks[-1] / peaks[0] - 1, "required": MEMORY_GROWTH.bound}
    result["growth_by_process"] = {
        f"{stage}, {kind}": rows[-1][stage]["unique_bytes"][kind] / peak - 1
        for stage in STAGES
        for kind, peak in rows[0][stage]["unique_bytes"].items()
    }
    bars = [
        Bar(f"{row['images']:,} images, {stage}, {kind}", peak / 2**20)
        for row in rows
        for stage in STAGES
        for kind, peak in row[stage]["unique_bytes"].items()
    ]
    result |= chart("Memory as the archive grows", "largest unique set size, MiB", bars)
    growth = result["growth"]
    lines = [_line(row, stage) for row in rows for stage in STAGES]
    lines.append(f"largest unique set size grows by {growth:+.1%}; {MEMORY_GROWTH.text(growth)}")
    alike = ", ".join(f"{name} {value:+.1%}" for name, value in result["growth_by_process"].items())
    lines.append(f"each kind of process by itself: {alike}")
    result["text"] = "\n".join(lines)
    return result


def _line(row: Mapping[str, Any], stage: str) -> str:
    measured = row[stage]
    kinds = ", ".join(f"{kind} {peak / 2**20:,.0f} MiB" for kind, peak in measured["unique_bytes"].items())
    store = measured["object_store_bytes"] / 2**20
    where = f"{row['images']:>10,} images, {stage}"
    return f"{where}: {kinds} (object store {store:,.0f} MiB, {measured['seconds']:,.0f} s)"


def _measure(count: int, folder: Path) -> dict[str, Any]:
    path = write_manifest(folder / str(count), folder, count)
    manifest = load_manifest(path)
    write_archive(manifest, count)
    shutil.rmtree(manifest.output, ignore_errors=True)
    row: dict[str, Any] = {"images": count}
    for stage in STAGES:
        start = time.monotonic()
        peak = _watch([stage, str(path), "--json"])
        row[stage] = {
            "unique_bytes": peak.unique_bytes,
            "object_store_bytes": peak.object_store_bytes,
            "memory_samples": peak.samples,
            "seconds": round(time.monotonic() - start, 1),
        }
    return row


def _watch(arguments: list[str]) -> _Peak:
    """Run a command of ours and sample its whole process tree until it ends."""
    peak = _Peak()
    before = _shared_memory_bytes()
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "120"}) as child:  # noqa: S603 - our own
        while child.poll() is None:
            _sample(psutil.Process(child.pid), peak, before)
            time.sleep(SAMPLE_SECONDS)
    if child.returncode != 0:
        raise PipelineError(f"{json.dumps(arguments)} ended with exit code {child.returncode}; see its message above")
    return peak


def _sample(root: psutil.Process, peak: _Peak, shared_before: int) -> None:
    peak.samples += 1
    peak.object_store_bytes = max(peak.object_store_bytes, _shared_memory_bytes() - shared_before)
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            unique, command = process.memory_full_info().uss, " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        kind = DRIVER if process.pid == root.pid else _kind(command)
        peak.unique_bytes[kind] = max(peak.unique_bytes.get(kind, 0), unique)


def _kind(command: str) -> str:
    """Workers bear the name of the actor that works through items; all else below the driver is Ray's."""
    return WORKER if command.startswith("ray::") and "MapWorker" in command else RAY


def _shared_memory_bytes() -> int:
    return int(psutil.disk_usage("/dev/shm").used)  # noqa: S108 - where Ray's object store lies
