"""One merge of flat buffers against a pass over as much memory, and against what published code does, interleaved."""

import statistics
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.random_pair import perturbed, random_pair, short_name
from pipeline.benchmarks.requirements import MERGE_TO_LOOP, MERGE_TO_MEMORY_PASS, THREE_SOURCES
from pipeline.benchmarks.turns import median_ratio, take_turns
from pipeline.merging.distances import IMAGE_SIDE
from pipeline.merging.segment import Segment

MODEL, IMAGE_TOWER, THREE, PASS = "model", "image tower", "three sources", "memory pass"
LOOP, PUBLISHED = "loop", "published loop"
BOUNDS = {f"{MODEL} to {PASS}": MERGE_TO_MEMORY_PASS, f"{MODEL} to {LOOP}": MERGE_TO_LOOP}


def merge_speed(architecture: str, pairs: int, threads: int) -> dict[str, Any]:
    """Seconds per merge of ``architecture`` (random weights and perturbations of them), each way, ``pairs`` times.

    All ways take turns, so that the machine's noise hits all alike; ratios are medians over the turns, with 95 %
    intervals.

    ``model``: the whole model through flat buffers. ``image tower``: what stage two merges for a batch, since class
    embeddings come from their curve. ``three sources``: the whole model again, between three ends. ``memory pass``: the
    sum of two buffers of the model's size written to a third, in one call: what reading twice and writing once costs.
    ``loop``: interpolate every entry of two state dicts and ``load_state_dict``, as model soups and WiSE-FT do once.
    ``published loop``: what DaWin's released code does for every merge, by which it is slower still: the same loop
    loaded into a fresh deep copy of the model.

    ``three_sources_ratio`` is the time of ``three sources`` over that of ``model``, divided by the same ratio of bytes
    moved: 1 when every source is read once per merge.
    """
    torch.set_num_threads(threads)
    models = random_pair(architecture)
    generalist, expert = models.states["generalist"], models.states["expert"]
    whole = Segment(models.model, [generalist, expert])
    image = Segment(cast("nn.Module", models.model.visual), [_image_side(generalist), _image_side(expert)])
    three = Segment(models.model, [generalist, expert, perturbed(generalist)])
    elements = whole.bytes_per_merge(ends=0) // 4
    one, other, third = torch.ones(elements), torch.ones(elements), torch.ones(elements)
    loaded = deepcopy(models.model)
    seconds = take_turns(
        {
            MODEL: lambda turn: whole.at(_weights(turn, pairs)),
            PASS: lambda turn: torch.add(one, other, out=third),  # noqa: ARG005 - every way is told its turn
            IMAGE_TOWER: lambda turn: image.at(_weights(turn, pairs)),
            THREE: lambda turn: three.at(_halved(*_weights(turn, pairs))),
            LOOP: lambda turn: _merge_loop(loaded, generalist, expert, _weights(turn, pairs)[1]),
            PUBLISHED: lambda turn: _merge_loop(deepcopy(models.model), generalist, expert, _weights(turn, pairs)[1]),
        },
        pairs,
    )
    bytes_ratio = three.bytes_per_merge() / whole.bytes_per_merge()
    result: dict[str, Any] = {
        "architecture": architecture,
        "parameters": sum(value.numel() for value in generalist.values() if value.is_floating_point()),
        "pairs": pairs,
        "threads": threads,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "turns": seconds,
        "ratios": {
            f"{MODEL} to {other}": median_ratio(seconds[MODEL], seconds[other]).as_json()
            for other in (PASS, LOOP, PUBLISHED)
        }
        | {f"{IMAGE_TOWER} to {PUBLISHED}": median_ratio(seconds[IMAGE_TOWER], seconds[PUBLISHED]).as_json()},
        "gigabytes_per_second": whole.bytes_per_merge() / statistics.median(seconds[MODEL]) / 1e9,
        "three_sources_ratio": median_ratio(seconds[THREE], seconds[MODEL]).median / bytes_ratio,
        "required": {**{name: bound.bound for name, bound in BOUNDS.items()}, THREE: THREE_SOURCES.bound},
    }
    bars = [Bar.of_ratio(name, ratio, BOUNDS.get(name)) for name, ratio in result["ratios"].items()]
    result |= chart(f"A merge of {short_name(architecture)}", "time over that of the other", bars)
    result["text"] = _text(result)
    return result


def _weights(turn: int, pairs: int) -> tuple[float, float]:
    """Another λ for every turn: an unchanged one would cost no merge."""
    lam = (turn + 1) / (pairs + 2)
    return 1 - lam, lam


def _halved(generalist: float, expert: float) -> tuple[float, float, float]:
    return generalist, expert / 2, expert / 2


def _merge_loop(model: nn.Module, generalist: Mapping[str, Tensor], expert: Mapping[str, Tensor], lam: float) -> None:
    merged = {
        key: (1 - lam) * value + lam * expert[key] if value.is_floating_point() else value
        for key, value in generalist.items()
    }
    model.load_state_dict(merged)


def _image_side(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(IMAGE_SIDE): value for key, value in state.items() if key.startswith(IMAGE_SIDE)}


def _text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['architecture']}, {result['parameters'] / 1e6:,.1f} M parameters, {result['threads']} threads, "
        f"{result['pairs']} turns, {result['gigabytes_per_second']:.1f} GB/s read and written"
    ]
    lines += [f"  {name:<15} {seconds * 1e3:9.2f} ms" for name, seconds in result["seconds"].items()]
    for name, ratio in result["ratios"].items():
        value = ratio["ratio"]
        shown = f"{value:.2f}" if value > 0.5 else f"1/{1 / value:.1f}"
        interval = f"{ratio['low']:.3g} to {ratio['high']:.3g}"
        bound = f"; {BOUNDS[name].text(value)}" if name in BOUNDS else ""
        lines.append(f"  {name}: {shown} ({interval}){bound}")
    third = result["three_sources_ratio"]
    lines.append(f"  three sources cost {third:.2f} of two per byte moved; {THREE_SOURCES.text(third)}")
    return "\n".join(lines)
