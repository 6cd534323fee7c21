"""A plan's prices, totals and notes, as they are told."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from pipeline.drivers.planning.work import RunPlan


def describe_prices(planned: RunPlan) -> dict[str, Any]:
    """Seconds per operation, and how many images they were measured on."""
    device, costs = planned.pricing.device, planned.costs
    return {
        "images": {name: len(table) for name, table in planned.plans.first.items()},
        "load": costs.opening + costs.scorer,
        "read": dict(device.read.seconds),
        "sources": device.sources,
        "merge": dict(device.merge),
        "merged": dict(device.merged),
        "per_sample": dict(device.per_sample),
        "text": {name: price.per_call for name, price in costs.heads.items()},
        "ingest": {
            name: {"decode": price.decode, "store": price.store, "bytes": price.bytes, "images": price.images}
            for name, price in costs.ingest.items()
        },
    }


def total_times(stages: Sequence[Mapping[str, Any]], workers: Sequence[int]) -> dict[str, Any]:
    """Seconds and device hours of all stages, one after another, by workers."""
    return {
        which: {
            str(count): {
                figure: sum(stage[which]["times"][str(count)][figure] for stage in stages)
                for figure in ("seconds", "device_hours")
            }
            for count in workers
        }
        for which in ("left", "total")
    }


def plan_notes(
    planned: RunPlan, stages: Sequence[Mapping[str, Any]], workers: Sequence[int], memory: int, *, on_gpu: bool
) -> list[str]:
    """What to know about the figures."""
    notes = []
    if planned.costs.ingest:
        listed = ", ".join(f"{name} ({price.images} images)" for name, price in planned.costs.ingest.items())
        notes.append(f"not ingested yet, measured on first images stored aside: {listed}")
    if not planned.plans.is_known(planned.subjects):
        images = sum(map(len, planned.plans.first.values()))
        notes.append(
            f"batches and merges are scaled from the first {images:,} images: their evidence is not cached yet"
        )
    return notes + _limits(stages, workers) + _machine(planned, workers, memory, on_gpu=on_gpu)


def _limits(stages: Sequence[Mapping[str, Any]], workers: Sequence[int]) -> list[str]:
    """Where more workers than parts do not help."""
    most = max(workers)
    short = [
        f"{stage['method'] or stage['stage']} {stage['left']['parts']}"
        for stage in stages
        if stage["parallel"]
        and stage["left"]["images"]
        and 0 < stage["left"]["times"][str(most)]["workers"] < most
        and stage["left"]["parts"] > 1
    ]
    if not short:
        return []
    return [f"{most} workers are more than there are parts ({', '.join(short)}): set a smaller part_rows, or use fewer"]


def _machine(planned: RunPlan, workers: Sequence[int], memory: int, *, on_gpu: bool) -> list[str]:
    compute, most = planned.context.manifest.compute, max(workers)
    notes = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not on_gpu and cores < most * compute.threads:
        notes.append(
            f"this machine has {cores} cores, fewer than {most} workers x {compute.threads} threads: "
            "times suppose workers with cores of their own"
        )
    available = psutil.virtual_memory().total
    if not on_gpu and memory * most > available:
        notes.append(f"{most} workers need {memory * most / 1e9:.1f} GB, this machine has {available / 1e9:.1f} GB")
    if on_gpu:
        notes.append("times suppose a GPU like this one for every worker")
    compiling = ", and compiling the towers in every worker" * compute.compile
    notes.append(f"not in the times: starting Python and Ray, some seconds for each command{compiling}")
    return notes
