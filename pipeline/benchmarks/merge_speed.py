"""One merge of flat buffers against the usual loop over state dicts, interleaved in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.merging.segment import Segment
from pipeline.models.architectures import load_architecture
from pipeline.models.scorer import IMAGE_TOWER

PERTURBATION = 0.01


def merge_speed(architecture: str, pairs: int, threads: int) -> dict[str, Any]:
    """Seconds per merge of ``architecture`` (random weights and a perturbation of them), each way, ``pairs`` times.

    Three ways take turns, so that the machine's noise hits all alike; ratios are medians over the turns.
    ``model``: the whole model through flat buffers. ``image tower``: what stage two merges for a batch, since class
    embeddings come from their curve. ``loop``: what published code does, interpolate every entry of two state dicts and
    ``load_state_dict`` (model soups, WiSE-FT and DaWin).
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = load_architecture(architecture).build()
    generalist = {key: value.clone() for key, value in model.state_dict().items()}
    expert = {key: _perturbed(value) for key, value in generalist.items()}
    tower = cast("nn.Module", model.visual)
    whole = Segment(model, generalist, expert)
    image = Segment(tower, _part(generalist), _part(expert))
    ways: dict[str, Callable[[float], object]] = {
        "model": whole.at,
        "image tower": image.at,
        "loop": partial(_merge_loop, model, generalist, expert),
    }
    seconds = _take_turns(ways, pairs)
    result: dict[str, Any] = {
        "architecture": architecture,
        "parameters": sum(value.numel() for value in generalist.values() if value.is_floating_point()),
        "pairs": pairs,
        "threads": threads,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio_to_loop": {
            name: statistics.median(a / b for a, b in zip(values, seconds["loop"], strict=True))
            for name, values in seconds.items()
        },
        "gigabytes_per_second": whole.bytes_per_merge / statistics.median(seconds["model"]) / 1e9,
    }
    result["text"] = _text(result)
    return result


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


def _perturbed(value: Tensor) -> Tensor:
    return value + PERTURBATION * torch.randn_like(value) if value.is_floating_point() else value.clone()


def _part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(IMAGE_TOWER): value for key, value in state.items() if key.startswith(IMAGE_TOWER)}


def _text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['architecture']}, {result['parameters'] / 1e6:,.1f} M parameters, {result['threads']} threads, "
        f"{result['pairs']} turns, {result['gigabytes_per_second']:.1f} GB/s read and written"
    ]
    lines += [
        f"  {name:<12} {seconds * 1e3:9.2f} ms   1/{1 / result['ratio_to_loop'][name]:.1f} of the loop"
        for name, seconds in result["seconds"].items()
    ]
    return "\n".join(lines)
