"""``pipeline bench``: what every way of merging costs against one plain model, on the same images, side by side."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.random_pair import short_name
from pipeline.benchmarks.requirements import METHOD_RATIOS
from pipeline.benchmarks.turns import interval_name, median_ratio, take_turns
from pipeline.benchmarks.ways import PLAIN, Way, Workload
from pipeline.costs import CostModel, fit_costs
from pipeline.errors import PipelineError
from pipeline.progress import work_progress
from pipeline.stages.peak_memory import PeakMemory

# Two implementations of one method, whose logits must agree: largest difference over the largest logit.
AGREEMENTS = (("t3", "t3-loop"), ("t3-online", "t3-loop-online"))


@dataclass(frozen=True, slots=True)
class Setting:
    """What the benchmark runs on. ``samples`` images in batches of ``batch_size``, which is the tile too.

    ``only`` names the rows to measure beside the plain model's; empty means all.
    """

    architecture: str = "ViT-B-16"
    samples: int = 32
    batch_size: int = 32
    classes: int = 8
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1
    pairs: int = 8
    tolerances: tuple[float, ...] = (0.01,)
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """One way: seconds of every turn, counts of one turn, and bytes that it grew by at its peak."""

    way: Way
    seconds: list[float]
    counts: Mapping[str, int]
    image_forwards: int
    merges: int
    growth_bytes: int


def method_costs(setting: Setting) -> dict[str, Any]:
    """Measure all rows of ``setting`` in one process: interleaved turns after one that warms up and measures memory.

    Every row is given by the median of its ratios to the plain model's turn beside it, with a 95 % interval. ``rows``
    hold ``name``, ``ratio``, ``low``, ``high``, ``seconds`` (median of a turn), ``image_forwards`` and ``merges`` of a
    turn, ``text_forwards`` (once per run, before the clock: the class-embedding curve), ``bytes_moved`` (pixels to the
    device, weights read and written by merges), ``peak_bytes`` (weights that the row needs, and what the process grew
    by), ``predicted_seconds`` (by a cost model fitted to the *other* rows), ``required`` and ``paper``.
    """
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    work = Workload.make(
        setting.architecture,
        samples=setting.samples,
        batch_size=setting.batch_size,
        classes=setting.classes,
        device=device,
        precision=setting.precision,
    )
    measured, logits = _measure(work, setting)
    plain = measured[PLAIN].seconds
    rows = [_row(item, plain, _predict_from_others(item, measured.values()), work) for item in measured.values()]
    result: dict[str, Any] = {
        **{name: getattr(setting, name) for name in ("architecture", "samples", "batch_size", "classes", "precision")},
        "pairs": setting.pairs,
        "device": device.type,
        "per_sample": "exact" if work.exact else "merge loop",
        "rows": rows,
        "agreement": _agreement(logits),
        "cost_model": dict(_fit(measured.values()).seconds),
    }
    bars = [Bar.of_ratio(row["name"], row, METHOD_RATIOS.get(row["name"])) for row in rows]
    images = f"{setting.samples} images in batches of {setting.batch_size}"
    title = f"Price of one plain {short_name(setting.architecture)}: {images}"
    note = "Bounds and the paper's figures are for ViT-B/16, batches of 32, 8 classes."
    result |= chart(title, "time over that of one plain model", bars, note)
    result["text"] = _text(result)
    return result


def _measure(work: Workload, setting: Setting) -> tuple[dict[str, Measured], dict[str, NDArray[np.float32]]]:
    ways = _chosen(work.ways(setting.tolerances), setting.only)
    logits: dict[str, NDArray[np.float32]] = {}
    counted: dict[str, tuple[Counter[str], int, int, int]] = {}
    with work_progress("bench", len(ways) * (setting.pairs + 1), "turns") as progress:

        def go(way: Way, turn: int) -> None:
            # What a turn merged last may be what the next one begins with, since every other turn goes backwards.
            work.scorer.segment.forget()
            if turn:
                way.run()
            else:
                work.counts.clear()
                images, merges = _spent(work)
                with PeakMemory(work.device) as peak:
                    logits[way.name] = way.run()
                images_after, merges_after = _spent(work)
                counted[way.name] = (Counter(work.counts), images_after - images, merges_after - merges, peak.bytes)
            progress.advance(1)

        seconds = take_turns({name: partial(go, way) for name, way in ways.items()}, setting.pairs)
    return {name: Measured(way, seconds[name], *counted[name]) for name, way in ways.items()}, logits


def _chosen(ways: Mapping[str, Way], only: Sequence[str]) -> dict[str, Way]:
    """The plain model and those that are asked for; :class:`PipelineError` for a name that is none."""
    if unknown := [name for name in only if name not in ways]:
        raise PipelineError(f"--only {', '.join(unknown)}: no such row; the rows are {', '.join(ways)}")
    return {name: way for name, way in ways.items() if not only or name == PLAIN or name in only}


def _spent(work: Workload) -> tuple[int, int]:
    return sum(work.scorer.forward_images.values()), work.scorer.segment.merges


def _row(item: Measured, plain: Sequence[float], predicted: float | None, work: Workload) -> dict[str, Any]:
    requirement = METHOD_RATIOS.get(item.way.name)
    segment = work.scorer.segment
    return {
        "name": item.way.name,
        **median_ratio(item.seconds, plain).as_json(),
        "seconds": statistics.median(item.seconds),
        "turns": item.seconds,
        "image_forwards": item.image_forwards,
        "text_forwards": item.way.text_forwards,
        "merges": item.merges,
        "bytes_moved": item.counts["bytes"] + item.merges * segment.bytes_per_merge(),
        "peak_bytes": item.way.weights * work.weight_bytes + item.growth_bytes,
        "predicted_seconds": predicted,
        "required": None if requirement is None else requirement.bound,
        "paper": None if requirement is None else requirement.paper,
    }


def _operations(item: Measured) -> dict[str, float]:
    counts: dict[str, float] = {name: float(count) for name, count in item.counts.items() if name != "bytes"}
    return counts | {"merge": float(item.merges)}


def _fit(measured: Iterable[Measured]) -> CostModel:
    return fit_costs([(_operations(item), statistics.median(item.seconds)) for item in measured])


def _predict_from_others(item: Measured, measured: Iterable[Measured]) -> float | None:
    """Seconds of a row by the prices that all other rows show; None where these say nothing of what it does."""
    try:
        # Nothing is what work costs whose operations the other rows do not tell apart from theirs.
        return _fit([other for other in measured if other is not item]).predict(_operations(item)) or None
    except ValueError:
        return None


def _agreement(logits: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    return {
        f"{one} and {other}": float(np.abs(logits[one] - logits[other]).max() / np.abs(logits[other]).max())
        for one, other in AGREEMENTS
        if one in logits and other in logits
    }


def _text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['architecture']}, {result['samples']} images in batches of {result['batch_size']}, "
        f"{result['classes']} classes, {result['precision']}, {result['pairs']} turns; ratios to one plain model, "
        f"{interval_name(result['rows'][0]['confidence'])}",
        f"  {'':<18}{'ratio':>8} {'interval':>17} {'seconds':>9} {'predicted':>10} {'images':>7} {'merges':>7} "
        f"{'moved MB':>9} {'peak MB':>8}   required (paper)",
    ]
    for row in result["rows"]:
        predicted = "" if row["predicted_seconds"] is None else f"{row['predicted_seconds']:.3f}"
        requirement = METHOD_RATIOS.get(row["name"])
        judged = "" if requirement is None else f"{requirement.text(row['ratio'])} ({requirement.paper})"
        lines.append(
            f"  {row['name']:<18}{row['ratio']:>8.3f} {row['low']:>8.3f}-{row['high']:<8.3f} {row['seconds']:>9.3f} "
            f"{predicted:>10} {row['image_forwards']:>7} {row['merges']:>7} {row['bytes_moved'] / 1e6:>9,.0f} "
            f"{row['peak_bytes'] / 1e6:>8,.0f}   {judged}"
        )
    curve = result["rows"][-1]["text_forwards"]
    lines.append(f"  text: {curve} prompt-set forwards for the class-embedding curve, once per run, not in these times")
    if any(row["name"] == "dawin" for row in result["rows"]):
        lines.append("  dawin: its λ are cached, and every image is scored by its own, as t3's are")
    lines.append("  what is required and the paper's figures are for ViT-B/16, batches of 32, 8 classes")
    lines += [f"  {pair} agree to {value:.1e} of the largest logit" for pair, value in result["agreement"].items()]
    if result["per_sample"] != "exact":
        lines.append("  this tower has layers whose per-sample form is not known: a λ for every image merges for each")
    prices = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in result["cost_model"].items())
    return "\n".join([*lines, f"  cost model: {prices}"])
