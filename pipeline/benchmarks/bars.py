"""A benchmark's figures as bars, which the report draws whatever the benchmark was."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.benchmarks.requirements import Requirement


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure: its value, an interval and its confidence, the bound it is held to, and what the paper reports."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    at_least: bool = False
    paper: float | None = None
    confidence: float | None = None

    @classmethod
    def of_ratio(cls, label: str, ratio: dict[str, Any], requirement: Requirement | None = None) -> "Bar":
        """Bar of a ratio as :meth:`~pipeline.benchmarks.turns.Ratio.as_json` gives it."""
        bar = cls(label, ratio["ratio"], ratio["low"], ratio["high"], confidence=ratio["confidence"])
        if requirement is None:
            return bar
        return replace(bar, bound=requirement.bound, at_least=requirement.at_least, paper=requirement.paper)


def chart(title: str, unit: str, bars: Sequence[Bar], note: str = "") -> dict[str, Any]:
    """What a result holds for the report: ``title``, ``unit`` of the values, ``bars``, and what to know about them."""
    return {"title": title, "unit": unit, "bars": [asdict(bar) for bar in bars], "note": note}
