"""Streams: the order in which the rows of an archive arrive, from independent to heavily skewed by class.

Test-time methods that adapt per batch are judged by how they bear batches that do not look like the whole: streams
skewed by class as in NOTE (arXiv 2208.05117) and LAME (arXiv 2201.05718), or one class after another. The
Dirichlet shares that skew a stream in time also split a training set into skewed sites (Hsu et al., arXiv 1909.06335).

Shapes: N samples. Labels are class numbers [N], -1 where a sample has none. All is deterministic in the seed.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

type StreamKind = Literal["arrival", "iid", "dirichlet", "temporal"]

BY_LABEL = frozenset({"dirichlet", "temporal"})
"""Streams that are made from labels."""

ACCEPTED = "arrival, iid, temporal or dirichlet(ALPHA) with ALPHA > 0, such as dirichlet(0.05)"


@dataclass(frozen=True, slots=True)
class Order:
    """A kind of stream; ``alpha`` is the Dirichlet concentration, None for the other kinds."""

    kind: StreamKind
    alpha: float | None = None


def parse_order(text: str) -> Order:
    """Order from how a manifest spells it: ``arrival``, ``iid``, ``temporal``, ``dirichlet(0.05)``; or ValueError."""
    match text:
        case "arrival" | "iid" | "temporal":
            return Order(text)
    skewed = re.fullmatch(r"dirichlet\(\s*([0-9.eE+-]+)\s*\)", text)
    alpha = _number(skewed[1]) if skewed else math.nan
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"order must be {ACCEPTED}, got {text!r}")
    return Order("dirichlet", alpha)


def stream_order(
    kind: StreamKind,
    labels: NDArray[np.int64],
    *,
    batch_size: int,
    seed: int | Sequence[int],
    alpha: float | None = None,
) -> NDArray[np.int64]:
    """Permutation [N] of the positions 0..N-1: which sample arrives first, second, and so on.

    ``arrival``: as they are. ``iid``: all permutations alike. ``temporal``: one class after another, the order of
    classes and that inside a class drawn. ``dirichlet``: ⌈N/batch_size⌉ slots of time over which each class spreads by
    its own Dirichlet(α) draw, one slot after another, shuffled inside: the smaller α, the more skewed a batch.

    ValueError when ``temporal`` or ``dirichlet`` meets a sample without label, or ``dirichlet`` an α that is not > 0.
    """
    generator = np.random.default_rng(seed)
    match kind:
        case "arrival":
            return np.arange(len(labels), dtype=np.int64)
        case "iid":
            return generator.permutation(len(labels))
        case "temporal":
            members = [np.flatnonzero(labels == label) for label in _classes(labels)]
            groups = [members[index] for index in generator.permutation(len(members))]
        case "dirichlet":
            if alpha is None:
                raise ValueError(f"order dirichlet needs an alpha: {ACCEPTED}")
            groups = dirichlet_shares(labels, math.ceil(len(labels) / batch_size), alpha, generator)
    return np.concatenate([np.empty(0, np.int64), *(generator.permutation(group) for group in groups)])


def dirichlet_shares(
    labels: NDArray[np.int64], parts: int, alpha: float, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Split the positions 0..N-1 into ``parts`` arrays, ascending, each position in exactly one; some may be empty.

    Each class's samples, in random order, are dealt out by shares drawn from a symmetric Dirichlet(α): near equal for
    a large α, nearly all to one part for a small one. The shares are drawn first: label sets of the same classes, such
    as the splits of one data set, get the same shares from generators in the same state. ValueError unless α > 0 and
    every sample has a label.
    """
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"alpha must be > 0 and finite, got {alpha}")
    dealt: list[list[NDArray[np.int64]]] = [[] for _ in range(parts)]
    classes = _classes(labels)
    for label, shares in zip(classes, generator.dirichlet(np.full(parts, alpha), size=len(classes)), strict=True):
        members = generator.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(shares)[:-1] * len(members)
        for part, share in zip(dealt, np.split(members, np.rint(ends).astype(np.int64)), strict=True):
            part.append(share)
    return [np.sort(np.concatenate([np.empty(0, np.int64), *shares])) for shares in dealt]


def _classes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    missing = np.flatnonzero(labels < 0)
    if len(missing):
        raise ValueError(
            f"a stream by class needs the label of every sample: {len(missing)} of {len(labels)} have none"
        )
    return np.unique(labels)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
