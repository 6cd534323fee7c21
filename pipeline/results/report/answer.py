"""The answer of a report in words: which method, how sure, at which cost, and what must not be concluded.

*Clearly* has one meaning throughout: the 95 % interval of the difference excludes 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.methods import METHODS
from pipeline.results.report.results import EXPERT, IN_DOMAIN, RESCALED, Results, best_method
from pipeline.results.report.spending import Spending
from pipeline.results.tables import decimal, percent, whole

FEW_CLUSTERS = 200
"""Below this many independent images one image is worth half a percentage point or more."""
T3_METHODS = ("t3", "t3-batch")
COLLAPSE = "majority-collapse"
NAMED = 6


class Verdict(Enum):
    """What an interval of a difference says."""

    BETTER = "clearly better than"
    WORSE = "clearly worse than"
    UNCLEAR = "not clearly different from"
    UNKNOWN = "not yet comparable with"


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference in accuracy, as fractions, with its 95 % interval where there is one."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """Better or worse only where the interval excludes 0."""
        if self.value is None or self.low is None or self.high is None:
            return Verdict.UNKNOWN
        return Verdict.BETTER if self.low > 0 else Verdict.WORSE if self.high < 0 else Verdict.UNCLEAR

    @property
    def text(self) -> str:
        """Such as ``+4.20 points, 95 % interval +2.10 to +6.30``."""
        if self.value is None:
            return "not scored"
        if self.low is None or self.high is None:
            return f"{_points(self.value)} points, no interval"
        return f"{_points(self.value)} points, 95 % interval {_points(self.low)} to {_points(self.high)}"


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One of the few figures beside the headline."""

    title: str
    value: str
    remark: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A question that the answer goes into, with one statement for each line."""

    title: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The first screen of a report; ``method`` is None where nothing is labelled."""

    method: str | None
    headline: str
    figures: tuple[KeyFigure, ...]
    passages: tuple[Passage, ...]


def find_answer(results: Results, costs: Sequence[Spending], set_marks: Iterable[str] = ()) -> Answer:
    """Say which method has the best mean accuracy and what the intervals allow to be said about it.

    ``costs`` is what stages and methods spent; ``set_marks`` are sentences about leaks and labels, repeated as warnings.
    """
    best = best_method(results.methods)
    if best is None:
        return Answer(None, "No evaluation set has labels, so no accuracy can be given.", (), ())
    row = _row(results, best)
    spent = {cost.method: cost for cost in costs if cost.method}
    passages = (
        Passage("How sure", tuple(_sureness(results, row))),
        Passage("Where T³ wins, and where it does not", tuple(_t3(results))),
        Passage("Whether another rule does better than T³", tuple(_other_rules(results))),
        Passage("At which cost", tuple(_cost(results, row, spent, costs))),
        Passage("What not to conclude", (*set_marks, *_cautions(results, row))),
    )
    return Answer(
        method=best,
        headline=_headline(results, row),
        figures=tuple(_figures(results, row, spent.get(best))),
        passages=tuple(passage for passage in passages if passage.statements),
    )


def difference_to(row: dict[str, Any], reference: str) -> Difference:
    """Difference of a method's mean accuracy to the generalist's or the expert's, from a row of ``Results.methods``."""
    name = f"difference_{reference}"
    return Difference(row[name], row[f"{name}_low"], row[f"{name}_high"])


def per_set_verdicts(results: Results, method: str, reference: str) -> dict[str, Verdict]:
    """Verdict on every evaluation set where the two were compared; over several seeds all of them must agree."""
    found: dict[str, set[Verdict]] = {}
    rows = results.comparisons.filter((pl.col("method") == method) & (pl.col("reference") == reference))
    for row in rows.iter_rows(named=True):
        verdict = Difference(row["difference"], row["difference_low"], row["difference_high"]).verdict
        found.setdefault(results.name_of(row["study"], row["evaluation_set"]), set()).add(verdict)
    return {name: verdicts.pop() if len(verdicts) == 1 else Verdict.UNCLEAR for name, verdicts in found.items()}


def _headline(results: Results, row: dict[str, Any]) -> str:
    accuracy = f"{percent(row['accuracy'])} %"
    over = _sets(row["sets"])
    if row["method"] == GENERALIST:
        return f"No method is better than the generalist, which has {accuracy} mean accuracy over {over}."
    against = [
        f"{difference_to(row, reference).verdict.value} the {reference}"
        for reference in (GENERALIST, EXPERT)
        if reference != row["method"] and difference_to(row, reference).value is not None
    ]
    subject = "The expert alone" if row["method"] == EXPERT else row["label"]
    sure = f" It is {' and '.join(against)}." if against else ""
    return f"{subject} has the best mean accuracy, {accuracy} over {over}.{sure}"


def _figures(results: Results, row: dict[str, Any], spent: Spending | None) -> list[KeyFigure]:
    equals = [
        other["label"]
        for other in results.methods.iter_rows(named=True)
        if other["method"] != row["method"]
        and not other["analysis_only"]
        and percent(other["accuracy"]) == percent(row["accuracy"])
    ]
    shared = f"; equal to two decimals: {_listed(equals)}" if equals else ""
    interval = (
        f"95 % interval {percent(row['accuracy_low'])} to {percent(row['accuracy_high'])}"
        if row["accuracy_low"] is not None
        else "no interval"
    )
    figures = [KeyFigure("Mean accuracy", f"{percent(row['accuracy'])} %", f"{row['label']}; {interval}{shared}")]
    for reference in (GENERALIST, EXPERT):
        if reference != row["method"]:
            difference = difference_to(row, reference)
            value = "–" if difference.value is None else f"{_points(difference.value)} points"
            figures.append(KeyFigure(f"Against the {reference}", value, _remark(difference)))
    if row["method"] in {GENERALIST, EXPERT}:
        runner = _best_merge(results)
        if runner is not None:
            text = f"{runner['label']}, {_points(runner['accuracy'] - row['accuracy'])} points"
            figures.append(KeyFigure("Best merging method", f"{percent(runner['accuracy'])} %", text))
    if spent is None or spent.cost is None:
        figures.append(KeyFigure("Cost of scoring", "0", "read from stage one, no forward pass of its own"))
    else:
        remark = f"{decimal(spent.per_image)} forward passes per image; one plain model needs 1"
        figures.append(KeyFigure("Cost of scoring", f"{decimal(spent.cost)} B", remark))
    return figures


def _sureness(results: Results, row: dict[str, Any]) -> Iterable[str]:
    for reference in (GENERALIST, EXPERT):
        difference = difference_to(row, reference)
        if reference == row["method"] or difference.value is None:
            continue
        meaning = {
            Verdict.BETTER: "The interval excludes 0: images drawn anew would very likely show the same direction.",
            Verdict.WORSE: "The interval excludes 0: images drawn anew would very likely show the same direction.",
            Verdict.UNCLEAR: "The interval includes 0: with these images either of the two may be the better one.",
            Verdict.UNKNOWN: "Without an interval nothing is said about how sure that is.",
        }[difference.verdict]
        yield f"{row['label']} against the {reference}: {difference.text}. {meaning}"
    balanced = results.methods.filter(~pl.col("analysis_only") & pl.col("balanced_accuracy").is_not_null())
    if balanced.height:
        top = balanced.row(int(balanced["balanced_accuracy"].round(9).arg_max() or 0), named=True)
        own = percent(row["balanced_accuracy"])
        if percent(top["balanced_accuracy"]) == own:
            yield f"Its mean balanced accuracy, {own} %, is the best as well."
        else:
            yield (
                f"By balanced accuracy, which counts every class alike, {top['label']} is ahead: "
                f"{percent(top['balanced_accuracy'])} % against {own} %."
            )


def _t3(results: Results) -> Iterable[str]:
    known = set(results.methods["method"])
    for method in T3_METHODS:
        if method not in known:
            continue
        generalist, expert = (per_set_verdicts(results, method, name) for name in (GENERALIST, EXPERT))
        both = [name for name in generalist if name in expert]
        if not both:
            yield f"{method}: not compared with generalist and expert on any evaluation set."
            continue
        wins = [name for name in both if generalist[name] is expert[name] is Verdict.BETTER]
        losses = [name for name in both if Verdict.WORSE in {generalist[name], expert[name]}]
        to_expert = [name for name in losses if expert[name] is Verdict.WORSE]
        to_generalist = [name for name in losses if generalist[name] is Verdict.WORSE]
        yield f"{method} is clearly better than both generalist and expert on {_of(wins, both)}."
        detail = [
            f"to the {reference} on {_of(names, both)}"
            for reference, names in (("expert", to_expert), ("generalist", to_generalist))
        ]
        yield f"{method} clearly loses {', and '.join(detail)}."
        rest = [name for name in both if name not in wins and name not in losses]
        if rest:
            yield f"On the other {_sets(len(rest))} {method} does not clearly lose to either, nor clearly beat both."


def _other_rules(results: Results) -> Iterable[str]:
    reference = next((row for row in results.methods.iter_rows(named=True) if row["method"] == "t3"), None)
    if reference is None or reference["accuracy"] is None:
        return
    rows = [row for row in results.methods.iter_rows(named=True) if _is_rule(row) and not row["analysis_only"]]
    rescaled = [row for row in rows if row["method"].split("@")[0] in T3_METHODS and RESCALED in row["label"]]
    if not rescaled:
        yield "The rescaled mapping (an option of ours that lets λ span its bounds) was not run."
    for row in rescaled:
        yield _against_t3(results, row, reference)
    others = [row for row in rows if row["method"].split("@")[0] not in METHODS or _rule(row) != "t3"]
    if others:
        best = max(others, key=lambda row: row["accuracy"] or 0.0)
        yield f"Of the other rules, the best by mean accuracy is {_against_t3(results, best, reference)}"
    relatives = [row for row in rows if _rule(row) == "t3" and row not in rescaled and row["method"] != "t3"]
    if relatives:
        best = max(relatives, key=lambda row: row["accuracy"] or 0.0)
        yield f"Of T³'s other groupings and settings, the best is {_against_t3(results, best, reference)}"


def _against_t3(results: Results, row: dict[str, Any], reference: dict[str, Any]) -> str:
    gain = f"{row['label']}: {_points((row['accuracy'] or 0.0) - reference['accuracy'])} points on the mean against t3"
    verdicts = per_set_verdicts(results, row["method"], "t3")
    if not verdicts:
        return f"{gain}, no paired test."
    count = {verdict: sum(found is verdict for found in verdicts.values()) for verdict in Verdict}
    return (
        f"{gain}; clearly better on {count[Verdict.BETTER]}, clearly worse on {count[Verdict.WORSE]} "
        f"of {_sets(len(verdicts))}."
    )


def _cost(
    results: Results, row: dict[str, Any], spent: dict[str, Spending], costs: Sequence[Spending]
) -> Iterable[str]:
    stage_one = next((cost for cost in costs if cost.method is None), None)
    if stage_one is None:
        yield "The run has no ledger, so nothing is known about its cost."
        return
    yield (
        f"Stage one looked at every image {decimal(stage_one.per_image)} times, once with each model: "
        f"{whole(stage_one.calls)} forward calls, paid once and kept."
    )
    for method in dict.fromkeys((row["method"], *T3_METHODS)):
        label = next((found["label"] for found in results.methods.iter_rows(named=True) if found["method"] == method), "")
        cost = spent.get(method)
        if not label:
            continue
        if cost is None or cost.cost is None:
            yield f"{label} is then read from stage one and costs nothing more."
        else:
            yield f"{label} then costs {decimal(cost.cost)} B: {decimal(cost.per_image)} forward passes per image."


def _cautions(results: Results, row: dict[str, Any]) -> Iterable[str]:
    labelled = results.labelled
    ranked = results.methods.filter(~pl.col("analysis_only") & pl.col("accuracy").is_not_null()).height
    if ranked > 2:
        yield (
            f"{row['label']} is the largest of {ranked} means on these same images. The largest of many is partly luck; "
            "the intervals do not take that choice into account."
        )
    yield from _in_domain(results, row)
    collapsed = labelled.filter(pl.col("marks").list.contains(COLLAPSE) & ~pl.col("analysis_only"))
    if collapsed.height:
        pairs = [
            f"{found['label']} on {results.name_of(found['study'], found['evaluation_set'])}"
            for found in collapsed.iter_rows(named=True)
        ]
        yield f"Some methods give one answer for every image, whatever their accuracy says: {_listed(pairs)}."
    few = labelled.with_columns(pl.coalesce("clusters", "samples").alias("count"))
    few = few.group_by("study", "evaluation_set", maintain_order=True).agg(pl.col("count").first())
    for study, name, count in few.filter(pl.col("count") < FEW_CLUSTERS).iter_rows():
        yield (
            f"{results.name_of(study, name)} has {whole(count)} independent images: one image is "
            f"{decimal(100 / count)} points, so small differences there mean nothing."
        )
    if max(map(len, results.seeds.values()), default=1) == 1:
        yield "One training seed: nothing here says how much another training of the expert would change."
    yield "This is research software, not a medical device; accuracy on public test sets is no evidence of benefit to patients."


def _in_domain(results: Results, row: dict[str, Any]) -> Iterable[str]:
    """Name the in-domain sets on which the expert, whose field they are, is at least as good as the best method."""
    if row["method"] in {EXPERT, GENERALIST}:
        return
    inside = results.labelled.filter(pl.col("condition") == IN_DOMAIN)
    own, expert = (
        {
            results.name_of(found["study"], found["evaluation_set"]): found["accuracy"]
            for found in inside.filter(pl.col("method") == method).iter_rows(named=True)
        }
        for method in (row["method"], EXPERT)
    )
    ahead = [name for name, accuracy in expert.items() if accuracy is not None and accuracy >= (own.get(name) or 0.0)]
    if ahead:
        yield f"In-domain the expert alone is at least as good on {_of(ahead, list(expert))}."


def _best_merge(results: Results) -> dict[str, Any] | None:
    rows = [
        row
        for row in results.methods.iter_rows(named=True)
        if not row["analysis_only"] and row["accuracy"] is not None and row["method"] not in {GENERALIST, EXPERT}
    ]
    return max(rows, key=lambda row: row["accuracy"]) if rows else None


def _is_rule(row: dict[str, Any]) -> bool:
    known = METHODS.get(row["method"].split("@", maxsplit=1)[0])
    return known is None or known.rule is not None


def _rule(row: dict[str, Any]) -> str | None:
    known = METHODS.get(row["method"].split("@", maxsplit=1)[0])
    return known.rule if known else None


def _row(results: Results, method: str) -> dict[str, Any]:
    return results.methods.row(by_predicate=pl.col("method") == method, named=True)


def _remark(difference: Difference) -> str:
    if difference.value is None:
        return "was not scored"
    if difference.low is None or difference.high is None:
        return "no interval"
    sure = {Verdict.BETTER: "clearly better", Verdict.WORSE: "clearly worse"}.get(difference.verdict, "no clear difference")
    return f"{sure}; 95 % interval {_points(difference.low)} to {_points(difference.high)}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def _sets(count: int) -> str:
    return f"{count} evaluation set{'' if count == 1 else 's'}"


def _of(names: list[str], everything: list[str]) -> str:
    if not names:
        return f"none of {_sets(len(everything))}"
    return f"{len(names)} of {_sets(len(everything))} ({_listed(names)})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
