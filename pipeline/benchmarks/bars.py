"""A benchmark's figures as bars, which the report draws whatever the benchmark was."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.benchmarks.requirements import Requirement


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure: its value, an interval where there is one, the bound it is held to, and what the paper reports."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    at_least: bool = False
    paper: float | None = None

    @classmethod
    def of_ratio(cls, label: str, ratio: dict[str, Any], requirement: Requirement | None = None) -> "Bar":
        """Bar of a ratio as :meth:`~pipeline.benchmarks.turns.Ratio.as_json` gives it."""
        value, low, high = ratio["ratio"], ratio["low"], ratio["high"]
        if requirement is None:
            return cls(label, value, low, high)
        return cls(label, value, low, high, requirement.bound, requirement.at_least, requirement.paper)


def chart(title: str, unit: str, bars: Sequence[Bar]) -> dict[str, Any]:
    """What a result holds for the report: ``title``, ``unit`` of the values, and ``bars``."""
    return {"title": title, "unit": unit, "bars": [asdict(bar) for bar in bars]}
