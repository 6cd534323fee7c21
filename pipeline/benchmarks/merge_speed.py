"""One merge of flat buffers against the usual loop over state dicts, interleaved in one process."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.merging.segment import Segment
from pipeline.models.architectures import load_architecture

PERTURBATION = 0.01


def merge_speed(architecture: str, pairs: int) -> dict[str, Any]:
    """Seconds per merge of ``architecture`` (random weights and a perturbation of them), each way, ``pairs`` times.

    The loop is what published code does: interpolate every entry of two state dicts, then ``load_state_dict``. The
    machine's noise hits both ways alike because they alternate; the ratio is the median over pairs.
    """
    torch.manual_seed(0)
    model = load_architecture(architecture).build()
    generalist = {key: value.clone() for key, value in model.state_dict().items()}
    expert = {key: _perturbed(value) for key, value in generalist.items()}
    segment = Segment(model, generalist, expert)
    fused, loop = [], []
    # The first pair touches every page for the first time and is dropped.
    for step in range(pairs + 1):
        lam = (step + 1) / (pairs + 2)
        fused.append(_seconds(partial(segment.at, lam)))
        loop.append(_seconds(partial(_merge_loop, model, generalist, expert, lam)))
    ratios = [a / b for a, b in zip(fused[1:], loop[1:], strict=True)]
    result: dict[str, Any] = {
        "architecture": architecture,
        "parameters": sum(value.numel() for value in generalist.values() if value.is_floating_point()),
        "pairs": pairs,
        "threads": torch.get_num_threads(),
        "fused_seconds": statistics.median(fused[1:]),
        "loop_seconds": statistics.median(loop[1:]),
        "ratio": statistics.median(ratios),
        "gigabytes_per_second": segment.bytes_per_merge / statistics.median(fused[1:]) / 1e9,
    }
    result["text"] = (
        f"{architecture}, {result['parameters'] / 1e6:,.1f} M parameters, {result['threads']} threads, {pairs} pairs\n"
        f"  merge through flat buffers  {result['fused_seconds'] * 1e3:9.2f} ms "
        f"({result['gigabytes_per_second']:.1f} GB/s read and written)\n"
        f"  loop over state dicts       {result['loop_seconds'] * 1e3:9.2f} ms\n"
        f"  ratio (median of pairs)     1/{1 / result['ratio']:.1f}"
    )
    return result


def _perturbed(value: Tensor) -> Tensor:
    return value + PERTURBATION * torch.randn_like(value) if value.is_floating_point() else value.clone()


def _merge_loop(model: nn.Module, generalist: dict[str, Tensor], expert: dict[str, Tensor], lam: float) -> None:
    merged = {
        key: (1 - lam) * value + lam * expert[key] if value.is_floating_point() else value
        for key, value in generalist.items()
    }
    model.load_state_dict(merged)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
