"""On what a benchmark ran, and where its result is kept: figures without that say nothing."""

import platform
import shlex
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.errors import PipelineError
from pipeline.store.files import write_json


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Kind of processor, cores, memory, device, torch and threads; no host names."""
    described = {
        "processor": _processor(),
        "cores": len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": round(psutil.getloadavg()[0], 2),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    return described | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def require_folder(folder: Path) -> None:
    """Make ``folder``, before anything is measured; :class:`PipelineError` where results cannot be kept in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PipelineError(f"--folder {folder}: cannot be written to ({error.strerror}); name another") from error


def keep_result(name: str, result: Mapping[str, Any], folder: Path, *, device: str = "cpu") -> dict[str, Any]:
    """The result with its name, command, time and machine, kept as ``<name>.json`` in ``folder`` for the report."""
    kept = {
        "benchmark": name,
        "command": shlex.join(["pipeline", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe_machine(device),
        **result,
    }
    write_json(folder / f"{name}.json", kept)
    return kept


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
