"""The answer of a report in words: which method, how sure, at which cost, and what must not be concluded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.marks import MARKS
from pipeline.results.report.cautions import cautions
from pipeline.results.report.collapse import collapse_statement
from pipeline.results.report.results import EXPERT, Results, best_method
from pipeline.results.report.rules import T3_METHODS, rule_statements, t3_statements
from pipeline.results.report.spending import Spending
from pipeline.results.report.verdicts import (
    MEANING,
    Verdict,
    count_seeds,
    count_sets,
    difference_to,
    listed,
    passes,
    points,
    some_of,
    times,
)
from pipeline.results.tables import percent, whole

REFERENCES = (GENERALIST, EXPERT)
LEAKS = ("leak", "near-duplicates")


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
    """The first screen of a report; ``method`` is None where nothing is labelled.

    ``warnings`` stand below the headline: what makes the figures in it worth less than they seem.
    """

    method: str | None
    headline: str
    warnings: tuple[str, ...] = ()
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
        Passage("Where T³ wins, and where it does not", tuple(t3_statements(results))),
        Passage("Whether another rule does better than T³", tuple(rule_statements(results))),
        Passage("At which cost", tuple(_cost(results, row, spent))),
        Passage("What not to conclude", tuple(cautions(results, row))),
    )
    return Answer(
        method=best,
        headline=_headline(results, row),
        warnings=tuple(_warnings(results, row)),
        figures=tuple(_figures(results, row, spent)),
        passages=tuple(passage for passage in passages if passage.statements),
    )


def _headline(results: Results, row: Mapping[str, Any]) -> str:
    accuracy = f"{percent(row['accuracy'])} %"
    seeds = count_seeds(results)
    over = f"over {count_sets(row['evaluation_sets'])}" + (f" and {seeds}" if seeds else "")
    if row["method"] == GENERALIST:
        return f"No method has a better mean than the generalist: {accuracy} accuracy {over}."
    against = [difference_to(row, reference).against(reference) for reference in _compared(row)]
    subject = "The expert alone" if row["method"] == EXPERT else row["label"]
    sure = f" It is {' and '.join(against)}." if against else " That was compared with no other method."
    return f"{subject} has the best mean accuracy, {accuracy} {over}.{sure}"


def _warnings(results: Results, row: Mapping[str, Any]) -> Iterable[str]:
    """Leaks, and collapse of the best method or of one that it is compared with."""
    labelled = results.labelled.filter(pl.col("method") == row["method"])
    every = [results.name_of(*place) for place in labelled.select("study", "evaluation_set").rows()]
    for code in LEAKS:
        rows = labelled.filter(pl.col("marks").list.contains(code))
        seen = [results.name_of(*place) for place in rows.select("study", "evaluation_set").rows()]
        if seen:
            where = some_of(seen, every) + _share(results, code)
            yield f"{MARKS[code].symbol} {MARKS[code].title.capitalize()}: {where}."
    if found := collapse_statement(results, row["method"]):
        yield f"{found}: its accuracy there is the share of that class, no matter what the images show."
    for reference in REFERENCES:
        if reference != row["method"] and (found := collapse_statement(results, reference)):
            ratios = ", and Err, mCE, BE and rBE, which are ratios to it, say as little" * (reference == GENERALIST)
            yield f"{found}: a difference to it is one to the share of that class, not to a model at work{ratios}."


def _share(results: Results, code: str) -> str:
    """How much of a set was found again at most, by what `pipeline check` counted; empty where it kept no counts."""
    shares = [overlap.count / overlap.images for _, overlap in results.overlaps if overlap.code == code]
    if not shares:
        return ""
    return f", at most {percent(max(shares))} % of a set's images in any one training or validation set"


def _compared(row: Mapping[str, Any]) -> list[str]:
    """The references that a method's mean was compared with."""
    return [name for name in REFERENCES if name != row["method"] and difference_to(row, name).value is not None]


def _figures(results: Results, row: Mapping[str, Any], spent: Mapping[str | None, Spending]) -> Iterable[KeyFigure]:
    others = [other for other in results.ranked if other["method"] != row["method"]]
    equals = [other["label"] for other in others if percent(other["accuracy"]) == percent(row["accuracy"])]
    remarks = [row["label"]]
    if row["accuracy_low"] is not None:
        remarks.append(f"95 % interval {percent(row['accuracy_low'])} to {percent(row['accuracy_high'])}")
    if equals:
        remarks.append(f"equal to two decimals: {listed(equals)}")
    yield KeyFigure("Mean accuracy", f"{percent(row['accuracy'])} %", "; ".join(remarks))
    for reference in REFERENCES:
        difference = difference_to(row, reference)
        if reference == row["method"]:
            continue
        if difference.value is None:
            yield KeyFigure(f"Against the {reference}", "–", f"the {reference} was not scored on all sets")
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
    compared = _compared(row)
    for reference in compared:
        difference = difference_to(row, reference)
        gain = f"{points(difference.value or 0.0)} points, {difference.interval}"
        yield f"{row['label']} against the {reference}: {gain}. {MEANING[difference.verdict]}"
    if not compared:
        yield (
            f"The mean of {row['label']} was compared with no other: comparisons are with generalist and expert, and "
            f"set by set with t3 and t3-batch. {_runner_up(results, row)}"
        )
    balanced = [other for other in results.ranked if other["balanced_accuracy"] is not None]
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


def _runner_up(results: Results, row: Mapping[str, Any]) -> str:
    others = [other for other in results.ranked if other["method"] != row["method"]]
    if not others:
        return "No other method was scored."
    second = max(others, key=lambda other: other["accuracy"])
    ahead = 100 * (row["accuracy"] - second["accuracy"])
    return f"That it is {ahead:.2f} points ahead of the next, {second['label']}, may be chance."


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
