"""What a difference with its interval allows to be said, and how it is said.

*Clearly* has one meaning throughout the report: the 95 % interval of the difference excludes 0, and the paired test,
corrected for the number of methods, gives p < 0.05; over several seeds, for each of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.report.results import EXPERT, Results
from pipeline.results.report.table import SIGNIFICANT

NAMED = 6
"""Names that a sentence lists before it says how many more there are."""


class Verdict(Enum):
    """What an interval of a difference and its test say, and in words.

    ``UNCONFIRMED``: the interval excludes 0, the test does not confirm it. ``UNTESTED``: it excludes 0, and there is no
    test, as for a mean over several sets.
    """

    BETTER = "clearly better"
    WORSE = "clearly worse"
    UNCONFIRMED = "not confirmed by the test"
    UNTESTED = "interval excludes 0"
    UNCLEAR = "no clear difference"
    UNKNOWN = "no interval"


CONFIRMED = (
    "The interval excludes 0 and the paired test confirms it: which images happened to be drawn hardly explains the "
    "difference."
)
MEANING = {
    Verdict.BETTER: CONFIRMED,
    Verdict.WORSE: CONFIRMED,
    Verdict.UNCONFIRMED: "The interval excludes 0, but the paired test, corrected for the number of methods, does not "
    "confirm it: chance remains an explanation.",
    Verdict.UNTESTED: "The interval excludes 0. There is no test of a mean over sets, and the interval is not "
    "corrected for the number of methods, so one of many may exclude 0 by chance.",
    Verdict.UNCLEAR: "The interval includes 0: on these images either of the two may be the better one.",
    Verdict.UNKNOWN: "Without an interval nothing can be said about how sure that is.",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference in accuracy, as fractions, with its 95 % interval and the adjusted p, each where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the interval excludes 0 and the test confirms it."""
        if self.value is None or self.low is None or self.high is None:
            return Verdict.UNKNOWN
        if self.low <= 0 <= self.high:
            return Verdict.UNCLEAR
        if self.p is None:
            return Verdict.UNTESTED
        if self.p >= SIGNIFICANT:
            return Verdict.UNCONFIRMED
        return Verdict.BETTER if self.low > 0 else Verdict.WORSE

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
            case Verdict.UNCONFIRMED:
                return f"{self._apart(reference)} (the interval excludes 0, the test does not confirm it)"
            case Verdict.UNTESTED:
                return f"{self._apart(reference)} (95 % interval excludes 0)"
            case Verdict.UNKNOWN:
                return f"{self._apart(reference)} (no interval)"

    def _apart(self, reference: str) -> str:
        value = self.value or 0.0
        return f"{100 * abs(value):.2f} points {'below' if value < 0 else 'above'} the {reference}"


def difference_to(row: Mapping[str, Any], reference: str) -> Difference:
    """Difference in accuracy to the generalist or the expert, from a row of ``Results.methods`` or ``Results.sets``."""
    name = f"difference_{reference}"
    return Difference(row[name], row[f"{name}_low"], row[f"{name}_high"], row[f"p_adjusted_{reference}"])


def per_set_verdicts(results: Results, method: str, reference: str) -> dict[str, Verdict]:
    """Verdict on every evaluation set where a method was compared with ``reference``.

    Against generalist and expert by the interval of the mean over seeds and the largest p; against other methods all
    seeds must agree.
    """
    if reference in {GENERALIST, EXPERT}:
        rows = results.labelled.filter(pl.col("method") == method)
        return {
            results.name_of(row["study"], row["evaluation_set"]): difference_to(row, reference).verdict
            for row in rows.iter_rows(named=True)
            if row[f"difference_{reference}"] is not None
        }
    found: dict[str, list[Difference]] = {}
    rows = results.comparisons.filter((pl.col("method") == method) & (pl.col("reference") == reference))
    for row in rows.iter_rows(named=True):
        values = (row["difference"], row["difference_low"], row["difference_high"], row["p_adjusted"])
        found.setdefault(results.name_of(row["study"], row["evaluation_set"]), []).append(Difference(*values))
    return {name: _of_all_seeds(differences) for name, differences in found.items()}


def _of_all_seeds(differences: Sequence[Difference]) -> Verdict:
    """The verdict that all seeds share; where only their direction is the same, the test has not confirmed it."""
    verdicts = {difference.verdict for difference in differences}
    if Verdict.UNKNOWN in verdicts:
        return Verdict.UNKNOWN
    directions = {(difference.low or 0.0) > 0 for difference in differences}
    if Verdict.UNCLEAR in verdicts or len(directions) > 1:
        return Verdict.UNCLEAR
    return verdicts.pop() if len(verdicts) == 1 else Verdict.UNCONFIRMED


def points(value: float) -> str:
    """A fraction as percentage points with its sign."""
    return f"{100 * value:+.2f}".replace("-", "−")


def times(value: float | None) -> str:
    """A factor with no more decimals than it needs, two at most."""
    return "–" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def count_sets(count: int) -> str:
    """A number of evaluation sets."""
    return f"{count} evaluation set{'' if count == 1 else 's'}"


def count_seeds(results: Results) -> str:
    """A number of training seeds where some study has several, else nothing."""
    counts = sorted({len(seeds) for seeds in results.seeds.values()})
    if not counts or counts[-1] == 1:
        return ""
    return f"{counts[0]} training seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} training seeds"


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
