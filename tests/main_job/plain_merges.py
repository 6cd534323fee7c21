"""Static merges of a pair in plain numpy, as papers write them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[np.float64]]


def plain_merge(entry: Mapping[str, Any], generalist: Weights, expert: Weights, lam: float) -> Weights:
    """The merge that an entry of ``methods`` names, in float64; ``lam`` is what mixup drew."""
    match entry["name"]:
        case "soup":
            return on_the_line(generalist, expert, entry.get("alpha", 0.5))
        case "mean":
            return {key: np.mean([generalist[key], expert[key]], axis=0) for key in generalist}
        case "task-arithmetic":
            scale = entry.get("scale", 0.3)
            return {key: value + scale * (expert[key] - value) for key, value in generalist.items()}
        case "slerp":
            return {key: _arc(value, expert[key], entry.get("alpha", 0.5)) for key, value in generalist.items()}
        case "ties":
            return _trimmed_task(generalist, expert, entry.get("density", 0.2), entry.get("scale", 1.0))
        case "mixup":
            return on_the_line(generalist, expert, lam)
    raise AssertionError(entry)


def on_the_line(generalist: Weights, expert: Weights, lam: float) -> Weights:
    return {key: (1 - lam) * value + lam * expert[key] for key, value in generalist.items()}


def _arc(a: NDArray[np.float64], b: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    if a.size == 1 or not a.any() or np.array_equal(a, b):
        return (1 - alpha) * a + alpha * b
    angle = np.arccos(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    return (np.sin((1 - alpha) * angle) * a + np.sin(alpha * angle) * b) / np.sin(angle)


def _trimmed_task(generalist: Weights, expert: Weights, density: float, scale: float) -> Weights:
    """TIES with one expert: the sign election has no effect, and the disjoint mean is the trimmed vector itself."""
    change = {key: np.atleast_1d(expert[key] - value) for key, value in generalist.items()}
    magnitudes = np.sort(np.concatenate([np.abs(value).ravel() for value in change.values()]))
    # Magnitudes are compared in float32; a hair below the smallest that stays keeps exactly those.
    threshold = magnitudes[-round(density * len(magnitudes))] * (1 - 1e-7)
    kept = {key: np.where(np.abs(value) >= threshold, value, 0.0) for key, value in change.items()}
    return {key: value + scale * kept[key].reshape(value.shape) for key, value in generalist.items()}
