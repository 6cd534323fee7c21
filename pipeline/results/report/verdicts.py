"""What a difference with its interval allows to be said, and how it is said.

*Clearly* has one meaning throughout the report: the 95 % interval of the difference excludes 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.report.results import EXPERT, Results

NAMED = 6
"""Names that a sentence lists before it says how many more there are."""


class Verdict(Enum):
    """What an interval of a difference says, and in words."""

    BETTER = "clearly better"
    WORSE = "clearly worse"
    UNCLEAR = "no clear difference"
    UNKNOWN = "no interval"


MEANING = {
    Verdict.BETTER: "The interval excludes 0: other images of the same kind would very likely show the same direction.",
    Verdict.WORSE: "The interval excludes 0: other images of the same kind would very likely show the same direction.",
    Verdict.UNCLEAR: "The interval includes 0: on these images either of the two may be the better one.",
    Verdict.UNKNOWN: "Without an interval nothing can be said about how sure that is.",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference in accuracy, as fractions, with its 95 % interval where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the interval excludes 0."""
        if self.value is None or self.low is None or self.high is None:
            return Verdict.UNKNOWN
        return Verdict.BETTER if self.low > 0 else Verdict.WORSE if self.high < 0 else Verdict.UNCLEAR

    @property
    def interval(self) -> str:
        """Such as ``95 % interval +2.10 to +6.30``."""
        if self.low is None or self.high is None:
            return Verdict.UNKNOWN.value
        return f"95 % interval {points(self.low)} to {points(self.high)}"

    def against(self, reference: str) -> str:
        """Predicate of a sentence, such as ``clearly better than the expert``."""
        match self.verdict:
            case Verdict.BETTER | Verdict.WORSE:
                return f"{self.verdict.value} than the {reference}"
            case Verdict.UNCLEAR:
                return f"not clearly different from the {reference}"
            case Verdict.UNKNOWN:
                side = "below" if (self.value or 0.0) < 0 else "above"
                return f"{100 * abs(self.value or 0.0):.2f} points {side} the {reference} (no interval)"


def difference_to(row: Mapping[str, Any], reference: str) -> Difference:
    """Difference in accuracy to the generalist or the expert, from a row of ``Results.methods`` or ``Results.sets``."""
    name = f"difference_{reference}"
    return Difference(row[name], row[f"{name}_low"], row[f"{name}_high"])


def per_set_verdicts(results: Results, method: str, reference: str) -> dict[str, Verdict]:
    """Verdict on every evaluation set where a method was compared with ``reference``.

    Against generalist and expert by the interval of the mean over seeds; against other methods all seeds must agree.
    """
    if reference in {GENERALIST, EXPERT}:
        rows = results.labelled.filter(pl.col("method") == method)
        return {
            results.name_of(row["study"], row["evaluation_set"]): difference_to(row, reference).verdict
            for row in rows.iter_rows(named=True)
            if row[f"difference_{reference}"] is not None
        }
    found: dict[str, set[Verdict]] = {}
    rows = results.comparisons.filter((pl.col("method") == method) & (pl.col("reference") == reference))
    for row in rows.iter_rows(named=True):
        verdict = Difference(row["difference"], row["difference_low"], row["difference_high"]).verdict
        found.setdefault(results.name_of(row["study"], row["evaluation_set"]), set()).add(verdict)
    return {name: verdicts.pop() if len(verdicts) == 1 else Verdict.UNCLEAR for name, verdicts in found.items()}


def points(value: float) -> str:
    """A fraction as percentage points with its sign."""
    return f"{100 * value:+.2f}".replace("-", "−")


def times(value: float | None) -> str:
    """A factor with no more decimals than it needs, two at most."""
    return "–" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def count_sets(count: int) -> str:
    """A number of evaluation sets."""
    return f"{count} evaluation set{'' if count == 1 else 's'}"


def passes(value: float | None) -> str:
    """A number of forward passes."""
    return f"{times(value)} forward pass{'' if value == 1 else 'es'}"


def some_of(names: Sequence[str], everything: Sequence[str]) -> str:
    """How many of the evaluation sets, and which; of a single one its name alone."""
    if not names:
        return f"none of {count_sets(len(everything))}" if len(everything) > 1 else "no set"
    if len(everything) == 1:
        return names[0]
    if len(names) == len(everything):
        return f"all {count_sets(len(everything))}"
    return f"{len(names)} of {count_sets(len(everything))} ({listed(names)})"


def listed(names: Sequence[str]) -> str:
    """The first names, then how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
