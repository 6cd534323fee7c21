"""Ways of doing one thing that take turns, so that the machine's noise hits all alike, and ratios between them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from scipy.stats import binom

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median over pairs of turns, and an interval that holds the true median with at least 95 % probability.

    The interval is between two order statistics (the sign test's), so it supposes nothing about the noise. With fewer
    than six pairs no such interval exists: ``low`` and ``high`` are then the extremes, and ``confidence`` says what
    they are worth.
    """

    median: float
    low: float
    high: float
    confidence: float

    def as_json(self) -> dict[str, float]:
        """The figures by name."""
        return {"ratio": self.median, "low": self.low, "high": self.high, "confidence": self.confidence}

    def text(self) -> str:
        """The figures for people."""
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def interval_name(confidence: float) -> str:
    """What to call the interval of a :class:`Ratio` with this ``confidence``."""
    if confidence >= CONFIDENCE:
        return f"{CONFIDENCE * 100:.0f} % interval"
    return f"smallest and largest of the turns, which are too few for a {CONFIDENCE * 100:.0f} % interval"


def take_turns(ways: Mapping[str, Callable[[int], object]], pairs: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Wall seconds of every way in each of ``pairs`` turns; see :func:`collect_turns`."""
    return collect_turns({name: partial(_timed, way) for name, way in ways.items()}, pairs, warm=warm)


def collect_turns(ways: Mapping[str, Callable[[int], float]], pairs: int, *, warm: int = 1) -> dict[str, list[float]]:
    """What every way returns in each of ``pairs`` turns; all ways go once per turn, and every other turn backwards.

    A way is called with the number of its turn. The first ``warm`` turns touch pages and caches for the first time and
    are dropped.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(pairs + warm):
        order = list(ways.items())
        for name, way in reversed(order) if turn % 2 else order:
            found[name].append(way(turn))
    return {name: values[warm:] for name, values in found.items()}


def _timed(way: Callable[[int], object], turn: int) -> float:
    start = time.perf_counter()
    way(turn)
    return time.perf_counter() - start


def median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Ratio of two ways that took turns, pair by pair."""
    ratios = sorted(a / b for a, b in zip(seconds, reference, strict=True))
    count = len(ratios)
    left_out, confidence = 0, 1 - 2 * float(binom.cdf(0, count, 0.5))
    while 1 - 2 * float(binom.cdf(left_out + 1, count, 0.5)) >= CONFIDENCE:
        left_out += 1
        confidence = 1 - 2 * float(binom.cdf(left_out, count, 0.5))
    return Ratio(statistics.median(ratios), ratios[left_out], ratios[count - 1 - left_out], max(confidence, 0.0))
