"""A plan for people: stages, tolerances, storage and memory, and what to know about the figures."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

SHOWN_AS = {"left": "left to do", "total": "all of it"}


def plan_tables(plan: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What to print, in order; see :mod:`pipeline.drivers.plan` for what ``plan`` holds. Fits into 100 columns."""
    yield Text(
        f"{plan['manifest']}: {plan['images']:,} images, {plan['device']}, {plan['precision']}, tile {plan['tile']}, "
        f"{plan['threads']} thread{'s' * (plan['threads'] > 1)} a worker; in {plan['run']}"
    )
    yield _stages(plan)
    if plan["tolerance"]:
        yield _tolerances(plan)
    yield _storage(plan)
    held = plan["memory"]
    parts = ", ".join(f"{name} {size(value)}" for name, value in held.items() if name != "total")
    yield Text(f"memory of a worker: {size(held['total'])} ({parts})")
    if plan["gpu_memory"]:
        held = plan["gpu_memory"]
        yield Text(f"and on its GPU: weights {size(held['models'])}, activations {size(held['activations'])}")
    for note in plan["notes"]:
        yield Text(f"note: {note}")


def duration(seconds: float) -> str:
    """Seconds as people say them, to two or three digits."""
    if seconds < 0.01:
        return "0 s" if seconds == 0 else "<0.01 s"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in the largest decimal unit that leaves a whole number before the point."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _stages(plan: Mapping[str, Any]) -> Table:
    hours = "GPU-h" if plan["device"].startswith("cuda") else "core-h"
    table = _table("left to do")
    table.add_column("stage")
    for heading in ("images", "forwards", "text", "merges"):
        table.add_column(heading, justify="right")
    for workers in plan["workers"]:
        table.add_column(f"{workers} worker{'s' * (workers > 1)}", justify="right")
    table.add_column(hours, justify="right")
    table.add_column("read/dev/write %")
    for stage in plan["stages"]:
        table.add_row(*_stage(stage, plan["workers"]))
    for which in ("left", "total"):
        times = plan["times"][which]
        shown = [duration(times[str(workers)]["seconds"]) for workers in plan["workers"]]
        spent = times[str(plan["workers"][0])]["device_hours"]
        table.add_row(SHOWN_AS[which], "", "", "", "", *shown, _hours(spent), "", style="bold")
    return table


def _stage(stage: Mapping[str, Any], workers: list[int]) -> list[str]:
    left = stage["left"]
    name = stage["method"] or stage["stage"]
    if not left["parts"]:
        return [name, *["-"] * 4, *["done"] * len(workers), "", ""]
    counts = (left["images"], left["image_forward_images"], left["text_forward_calls"], left["merges"])
    times = [duration(left["times"][str(count)]["seconds"]) for count in workers]
    spent = left["times"][str(workers[0])]["device_hours"]
    whole = sum(left["seconds_by"].values()) or 1.0
    shares = "/".join(f"{100 * value / whole:.0f}" for value in left["seconds_by"].values())
    waits = f"{left['bottleneck']} {shares}" if left["images"] else ""
    return [name, *(f"{count:,}" if count else "-" for count in counts), *times, _hours(spent), waits]


def _hours(count: float) -> str:
    return "<0.01" if 0 < count < 0.01 else f"{count:.2f}" if count < 100 else f"{count:,.0f}"


def _tolerances(plan: Mapping[str, Any]) -> Table:
    table = Table(
        title="images sorted by λ, in batches within ±ε", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("rule")
    headings = ("ε", "reached", "batches", "merges", "min / median / max", "1 worker", "/ batch", "/ exact")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in plan["tolerance"]:
        table.add_row(
            row["rule"],
            f"{row['tolerance']:g}",
            f"{row['reached']:.3g}",
            f"{row['batches']:,}",
            f"{row['merges']:,}",
            f"{row['size_min']:,} / {row['size_median']:,.0f} / {row['size_max']:,}",
            duration(row["seconds"]),
            f"{row['ratio_to_batch']:.2f}",
            f"{row['ratio_to_sample']:.2f}",
        )
    return table


def _storage(plan: Mapping[str, Any]) -> Table:
    table = _table("storage")
    table.add_column("what")
    table.add_column("left", justify="right")
    table.add_column("total", justify="right")
    for row in plan["storage"]:
        table.add_row(row["what"], size(row["left"]), size(row["total"]))
    sums = [sum(row[which] for row in plan["storage"]) for which in ("left", "total")]
    table.add_row("all", *map(size, sums), style="bold")
    return table
