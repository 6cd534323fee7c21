"""One merge of flat buffers against the usual loop over state dicts, and of three sources against two, interleaved."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.merging.distances import IMAGE_SIDE
from pipeline.merging.segment import Segment
from pipeline.models.architectures import load_architecture

PERTURBATION = 0.01
MAX_THREE_SOURCES_RATIO = 1.3


def merge_speed(architecture: str, pairs: int, threads: int) -> dict[str, Any]:
    """Seconds per merge of ``architecture`` (random weights and perturbations of them), each way, ``pairs`` times.

    Four ways take turns, so that the machine's noise hits all alike; ratios are medians over the turns.
    ``model``: the whole model through flat buffers. ``image tower``: what stage two merges for a batch, since class
    embeddings come from their curve. ``three sources``: the whole model again, between three ends. ``loop``: what
    published code does, interpolate every entry of two state dicts and ``load_state_dict`` (model soups, WiSE-FT and
    DaWin).

    ``three_sources_ratio`` is the time of ``three sources`` over that of ``model``, divided by the same ratio of bytes
    moved: 1 when every source is read once per merge. It is to be at most 1.3, which is reported, not enforced.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = load_architecture(architecture).build()
    generalist = {key: value.clone() for key, value in model.state_dict().items()}
    expert = _perturbed(generalist)
    whole = Segment(model, [generalist, expert])
    image = Segment(cast("nn.Module", model.visual), [_part(generalist), _part(expert)])
    three = Segment(model, [generalist, expert, _perturbed(generalist)])
    seconds = _take_turns(
        {
            "model": lambda lam: whole.at((1 - lam, lam)),
            "image tower": lambda lam: image.at((1 - lam, lam)),
            "three sources": lambda lam: three.at((1 - lam, lam / 2, lam / 2)),
            "loop": partial(_merge_loop, model, generalist, expert),
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
        "ratio_to_loop": {name: _median_ratio(values, seconds["loop"]) for name, values in seconds.items()},
        "gigabytes_per_second": whole.bytes_per_merge() / statistics.median(seconds["model"]) / 1e9,
        "three_sources_ratio": _median_ratio(seconds["three sources"], seconds["model"]) / bytes_ratio,
        "three_sources_required": MAX_THREE_SOURCES_RATIO,
    }
    result["text"] = _text(result)
    return result


def _median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def _take_turns(ways: Mapping[str, Callable[[float], object]], pairs: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # The first turn touches every page for the first time and is dropped.
    for turn in range(pairs + 1):
        lam = (turn + 1) / (pairs + 2)
        for name, merge in ways.items():
            start = time.perf_counter()
            merge(lam)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def _merge_loop(model: nn.Module, generalist: Mapping[str, Tensor], expert: Mapping[str, Tensor], lam: float) -> None:
    merged = {
        key: (1 - lam) * value + lam * expert[key] if value.is_floating_point() else value
        for key, value in generalist.items()
    }
    model.load_state_dict(merged)


def _perturbed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: value + PERTURBATION * torch.randn_like(value) if value.is_floating_point() else value.clone()
        for key, value in state.items()
    }


def _part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(IMAGE_SIDE): value for key, value in state.items() if key.startswith(IMAGE_SIDE)}


def _text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['architecture']}, {result['parameters'] / 1e6:,.1f} M parameters, {result['threads']} threads, "
        f"{result['pairs']} turns, {result['gigabytes_per_second']:.1f} GB/s read and written"
    ]
    lines += [
        f"  {name:<13} {seconds * 1e3:9.2f} ms   1/{1 / result['ratio_to_loop'][name]:.1f} of the loop"
        for name, seconds in result["seconds"].items()
    ]
    lines.append(
        f"  three sources cost {result['three_sources_ratio']:.2f} of two per byte moved; "
        f"at most {result['three_sources_required']} is required"
    )
    return "\n".join(lines)
