"""Peak memory of both stages as the archive grows: the largest unique set size of any process, by stage."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import save_file

from pipeline.errors import PipelineError
from pipeline.models.architectures import load_architecture

SAMPLE_SECONDS = 0.5
STAGES = ("precompute", "infer")
PERTURBATION = 0.02


@dataclass(slots=True)
class _Peak:
    unique_bytes: int = 0
    process: str = ""
    object_store_bytes: int = 0
    samples: int = field(default=0)


def memory_growth(images: Sequence[int], folder: Path) -> dict[str, Any]:
    """Run ingest, precompute and infer (``t3-batch``) on synthetic archives of each size, and watch every process.

    Unique set size is what a process alone occupies; the object store's shared memory is reported apart. ``growth``
    compares the largest archive with the smallest.
    """
    if len(images) < 2:
        raise PipelineError(f"--images must be given at least twice to show growth, got {list(images)}")
    folder.mkdir(parents=True, exist_ok=True)
    _write_pair(folder)
    rows = [_measure(count, folder / str(count)) for count in sorted(images)]
    first, last = (max(row[stage]["unique_bytes"] for stage in STAGES) for row in (rows[0], rows[-1]))
    result: dict[str, Any] = {"rows": rows, "growth": last / first - 1}
    lines = [
        f"{row['images']:>10,} images: "
        + "; ".join(
            f"{stage} {row[stage]['unique_bytes'] / 2**20:,.0f} MiB in {row[stage]['process']} "
            f"(object store {row[stage]['object_store_bytes'] / 2**20:,.0f} MiB, {row[stage]['seconds']:,.0f} s)"
            for stage in STAGES
        )
        for row in rows
    ]
    result["text"] = "\n".join([*lines, f"largest unique set size grows by {result['growth']:+.1%}"])
    return result


def _write_pair(folder: Path) -> None:
    source = resources.files("pipeline.demo").joinpath("tiny.json")
    (folder / "tiny.json").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    torch.manual_seed(0)
    state = load_architecture(str(folder / "tiny.json")).build().state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "generalist.safetensors")
    moved = {key: value + PERTURBATION * torch.randn_like(value) for key, value in state.items()}
    save_file(moved, folder / "expert.safetensors")


def _measure(count: int, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    manifest = folder / "manifest.yaml"
    settings = {
        "name": f"memory-{count}",
        "output": "run",
        "archives": "archives",
        "pair": {
            "architecture": "../tiny.json",
            "generalist": "../generalist.safetensors",
            "expert": "../expert.safetensors",
        },
        "methods": ["t3-batch"],
        "compute": {"device": "cpu"},
        "evaluation_sets": [{"name": "cells", "source": {"kind": "synthetic", "count": count}}],
    }
    manifest.write_text(yaml.safe_dump(settings), encoding="utf-8")
    _watch(["ingest", str(manifest)])
    row: dict[str, Any] = {"images": count}
    for stage in STAGES:
        start = time.monotonic()
        peak = _watch([stage, str(manifest), "--json"])
        row[stage] = {
            "unique_bytes": peak.unique_bytes,
            "process": peak.process,
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
            unique, name = process.memory_full_info().uss, " ".join(process.cmdline()[:1])
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if unique > peak.unique_bytes:
            peak.unique_bytes, peak.process = unique, _label(name, driver=process.pid == root.pid)


def _label(name: str, *, driver: bool) -> str:
    if driver:
        return "the driver"
    return "a worker" if name.startswith("ray::") else Path(name.split(" ", maxsplit=1)[0]).name


def _shared_memory_bytes() -> int:
    return int(psutil.disk_usage("/dev/shm").used)  # noqa: S108 - where Ray's object store lies
