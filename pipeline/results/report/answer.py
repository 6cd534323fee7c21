"""The answer of a report in words: which method, how sure, at which cost, and what must not be concluded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.methods import METHODS
from pipeline.results.report.cautions import cautions
from pipeline.results.report.results import EXPERT, RESCALED, Results, best_method
from pipeline.results.report.spending import Spending
from pipeline.results.report.verdicts import (
    MEANING,
    Verdict,
    count_sets,
    difference_to,
    listed,
    passes,
    per_set_verdicts,
    points,
    some_of,
    times,
)
from pipeline.results.tables import percent, whole

T3_METHODS = ("t3", "t3-batch")


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
    figures: tuple[KeyFigure, ...] = ()
    passages: tuple[Passage, ...] = ()


def find_answer(results: Results, costs: Sequence[Spending]) -> Answer:
    """Say which method has the best mean accuracy, what the intervals allow to be said about it, and what not."""
    best = best_method(results.methods)
    if best is None:
        return Answer(None, "No evaluation set has labels, so no accuracy can be given.")
    row = results.methods.row(by_predicate=pl.col("method") == best, named=True)
    spent = {cost.method: cost for cost in costs}
    passages = (
        Passage("How sure", tuple(_sureness(results, row))),
        Passage("Where T³ wins, and where it does not", tuple(_t3(results))),
        Passage("Whether another rule does better than T³", tuple(_other_rules(results))),
        Passage("At which cost", tuple(_cost(results, row, spent))),
        Passage("What not to conclude", tuple(cautions(results, row))),
    )
    return Answer(
        method=best,
        headline=_headline(row),
        figures=tuple(_figures(results, row, spent)),
        passages=tuple(passage for passage in passages if passage.statements),
    )


def _headline(row: Mapping[str, Any]) -> str:
    accuracy = f"{percent(row['accuracy'])} %"
    over = f"over {count_sets(row['evaluation_sets'])}"
    if row["method"] == GENERALIST:
        return f"No method is better than the generalist, which has {accuracy} mean accuracy {over}."
    against = [
        difference_to(row, reference).against(reference)
        for reference in (GENERALIST, EXPERT)
        if reference != row["method"] and difference_to(row, reference).value is not None
    ]
    subject = "The expert alone" if row["method"] == EXPERT else row["label"]
    sure = f" It is {' and '.join(against)}." if against else ""
    return f"{subject} has the best mean accuracy, {accuracy} {over}.{sure}"


def _figures(results: Results, row: Mapping[str, Any], spent: Mapping[str | None, Spending]) -> Iterable[KeyFigure]:
    others = [other for other in _ranked(results) if other["method"] != row["method"]]
    equals = [other["label"] for other in others if percent(other["accuracy"]) == percent(row["accuracy"])]
    remarks = [row["label"]]
    if row["accuracy_low"] is not None:
        remarks.append(f"95 % interval {percent(row['accuracy_low'])} to {percent(row['accuracy_high'])}")
    if equals:
        remarks.append(f"equal to two decimals: {listed(equals)}")
    yield KeyFigure("Mean accuracy", f"{percent(row['accuracy'])} %", "; ".join(remarks))
    for reference in (GENERALIST, EXPERT):
        difference = difference_to(row, reference)
        if reference == row["method"]:
            continue
        if difference.value is None:
            yield KeyFigure(f"Against the {reference}", "–", f"the {reference} was not scored")
            continue
        sure = [difference.verdict.value] * (difference.verdict is not Verdict.UNKNOWN)
        remark = "; ".join([*sure, difference.interval])
        yield KeyFigure(f"Against the {reference}", f"{points(difference.value)} points", remark)
    merges = [other for other in others if other["method"] not in {GENERALIST, EXPERT}]
    if row["method"] in {GENERALIST, EXPERT} and merges:
        runner = max(merges, key=lambda other: other["accuracy"])
        remark = f"{runner['label']}, {points(runner['accuracy'] - row['accuracy'])} points"
        yield KeyFigure("Best merging method", f"{percent(runner['accuracy'])} %", remark)
    cost = spent.get(row["method"])
    if not spent:
        yield KeyFigure("Cost of scoring", "–", "the run has no ledger")
    elif cost is None or cost.cost is None:
        yield KeyFigure("Cost of scoring", "0 B", "read from stage one, no forward pass of its own")
    else:
        remark = f"B is the price of one plain model; {passes(cost.per_image)} per image"
        yield KeyFigure("Cost of scoring", f"{times(cost.cost)} B", remark)


def _sureness(results: Results, row: Mapping[str, Any]) -> Iterable[str]:
    for reference in (GENERALIST, EXPERT):
        difference = difference_to(row, reference)
        if reference == row["method"] or difference.value is None:
            continue
        gain = f"{points(difference.value)} points, {difference.interval}"
        yield f"{row['label']} against the {reference}: {gain}. {MEANING[difference.verdict]}"
    balanced = [other for other in _ranked(results) if other["balanced_accuracy"] is not None]
    if not balanced or row["balanced_accuracy"] is None:
        return
    top = max(balanced, key=lambda other: other["balanced_accuracy"])
    own = percent(row["balanced_accuracy"])
    if percent(top["balanced_accuracy"]) == own:
        yield f"Its mean balanced accuracy, {own} %, is the best as well."
    else:
        yield (
            f"By balanced accuracy, which counts every class alike, {top['label']} is ahead: "
            f"{percent(top['balanced_accuracy'])} % against {own} %."
        )


def _t3(results: Results) -> Iterable[str]:
    compared = False
    for row in results.methods.iter_rows(named=True):
        method, label = row["method"], row["label"]
        if method not in T3_METHODS:
            continue
        generalist, expert = (per_set_verdicts(results, method, name) for name in (GENERALIST, EXPERT))
        both = [
            name
            for name, found in generalist.items()
            if Verdict.UNKNOWN not in {found, expert.get(name, Verdict.UNKNOWN)}
        ]
        if len(both) < len(generalist) or not both:
            lacking = count_sets(len(generalist) - len(both)) if generalist else "every evaluation set"
            yield f"{label} cannot be compared with generalist and expert on {lacking}: there is no interval."
        if not both:
            continue
        wins = [name for name in both if generalist[name] is expert[name] is Verdict.BETTER]
        to_expert = [name for name in both if expert[name] is Verdict.WORSE]
        to_generalist = [name for name in both if generalist[name] is Verdict.WORSE]
        rest = [name for name in both if name not in {*wins, *to_expert, *to_generalist}]
        yield f"{label} wins, clearly better than both generalist and expert, on {some_of(wins, both)}."
        losses = f"to the expert on {some_of(to_expert, both)}, to the generalist on {some_of(to_generalist, both)}"
        yield f"{label} loses clearly {losses}."
        if rest:
            yield f"{label} neither wins nor loses clearly on {some_of(rest, both)}."
        compared = True
    if compared:
        yield (
            "Clearly: the 95 % interval of the difference excludes 0, one comparison at a time. The paired tests below "
            "are corrected for the number of comparisons."
        )


def _other_rules(results: Results) -> Iterable[str]:
    reference = next((row for row in _ranked(results) if row["method"] == "t3"), None)
    if reference is None:
        return
    rows = [row for row in _ranked(results) if _is_rule(row) and row["method"] != "t3"]
    rescaled = [row for row in rows if _name(row) in T3_METHODS and RESCALED in row["label"]]
    if not rescaled:
        yield "The rescaled mapping, an option of ours that lets λ span its bounds, was not run."
    for row in rescaled:
        yield _against_t3(results, row, reference)
    others = [row for row in rows if _rule(row) != "t3"]
    if others:
        best = max(others, key=lambda row: row["accuracy"])
        yield f"Of the other rules, the best by mean accuracy is {_against_t3(results, best, reference)}"
    relatives = [row for row in rows if _rule(row) == "t3" and row not in rescaled]
    if relatives:
        best = max(relatives, key=lambda row: row["accuracy"])
        yield f"Of T³'s other groupings and settings, the best is {_against_t3(results, best, reference)}"


def _against_t3(results: Results, row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    gain = f"{row['label']}: {points(row['accuracy'] - reference['accuracy'])} points on the mean against t3"
    verdicts = list(per_set_verdicts(results, row["method"], "t3").values())
    if not verdicts:
        return f"{gain}, without a paired test."
    better, worse = (verdicts.count(verdict) for verdict in (Verdict.BETTER, Verdict.WORSE))
    return f"{gain}; clearly better on {better}, clearly worse on {worse} of {count_sets(len(verdicts))}."


def _cost(results: Results, row: Mapping[str, Any], spent: Mapping[str | None, Spending]) -> Iterable[str]:
    stage_one = spent.get(None)
    if stage_one is not None:
        yield (
            f"Stage one put every image through {passes(stage_one.per_image)}, one by each model; "
            f"that is paid once ({whole(stage_one.calls)} forward calls) and kept."
        )
    labels = dict(results.methods.select("method", "label").iter_rows())
    for method in dict.fromkeys((row["method"], *T3_METHODS)):
        cost = spent.get(method)
        if not spent or method not in labels:
            continue
        if cost is None or cost.cost is None:
            yield f"{labels[method]} is read from stage one and costs nothing more."
        else:
            yield (
                f"{labels[method]} then costs {times(cost.cost)} B, {whole(cost.calls)} forward calls in all, and puts "
                f"every image through {passes(cost.per_image)}; one plain model needs 1 B and one pass."
            )


def _ranked(results: Results) -> list[dict[str, Any]]:
    """Methods that compete: they need no labels and have a mean over all labelled evaluation sets."""
    return [
        row for row in results.methods.iter_rows(named=True) if not row["analysis_only"] and row["accuracy"] is not None
    ]


def _name(row: Mapping[str, Any]) -> str:
    return str(row["method"]).split("@", maxsplit=1)[0]


def _is_rule(row: Mapping[str, Any]) -> bool:
    """Whether λ comes from a rule; a name that the table of methods does not know is a rule of the user's own."""
    known = METHODS.get(_name(row))
    return known is None or known.rule is not None


def _rule(row: Mapping[str, Any]) -> str | None:
    known = METHODS.get(_name(row))
    return known.rule if known else None
