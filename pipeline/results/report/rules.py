"""How T³ and the other rules compare with the two models and with one another, evaluation set by evaluation set."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.coefficients.evidence import GENERALIST
from pipeline.methods import METHODS
from pipeline.results.report.collapse import collapse_statement
from pipeline.results.report.results import EXPERT, RESCALED, Results
from pipeline.results.report.table import SIGNIFICANT
from pipeline.results.report.verdicts import (
    Verdict,
    count_seeds,
    count_sets,
    per_set_verdicts,
    points,
    some_of,
)

T3, T3_BATCH = T3_METHODS = ("t3", "t3-batch")


def t3_statements(results: Results) -> Iterable[str]:
    """Where T³ is clearly better than both models, and where clearly worse than one of them."""
    compared = False
    for row in results.methods.iter_rows(named=True):
        if row["method"] in T3_METHODS:
            statements = list(_wins_and_losses(results, row))
            compared = compared or len(statements) > 1
            yield from statements
    if compared:
        seeds = " for every training seed" if count_seeds(results) else ""
        yield (
            "Clearly: the 95 % interval of the difference excludes 0 and the paired test, corrected by Holm's method "
            f"for the number of methods tested on the set, gives p < {SIGNIFICANT}{seeds}."
        )


def rule_statements(results: Results) -> Iterable[str]:
    """Whether another mapping, rule or grouping does better than T³: each against T³ of its own grouping."""
    rows = {row["method"]: row for row in results.ranked if _is_rule(row)}
    if T3 not in rows:
        return
    rescaled = [row for name, row in rows.items() if name not in T3_METHODS and _is_rescaled(row)]
    if not rescaled:
        yield "The rescaled mapping, an option of ours that lets λ span its bounds, was not run."
    for row in rescaled:
        yield _against(results, row, rows[T3_BATCH] if _name(row) == T3_BATCH in rows else rows[T3])
    others = [row for row in rows.values() if _rule(row) != "t3"]
    if others:
        best = max(others, key=lambda row: row["accuracy"])
        alike = T3_BATCH in rows and _grouping(best) == METHODS[T3_BATCH].grouping
        found = _against(results, best, rows[T3_BATCH] if alike else rows[T3])
        yield f"Of the other rules, the best by mean accuracy is {found}"
    relatives = [row for name, row in rows.items() if _rule(row) == "t3" and name != T3 and row not in rescaled]
    if relatives:
        best = max(relatives, key=lambda row: row["accuracy"])
        yield f"Of T³'s other groupings and settings, the best is {_against(results, best, rows[T3])}"


def _wins_and_losses(results: Results, row: Mapping[str, Any]) -> Iterable[str]:
    method, label = row["method"], row["label"]
    generalist, expert = (per_set_verdicts(results, method, name) for name in (GENERALIST, EXPERT))
    both = [
        name for name, found in generalist.items() if Verdict.UNKNOWN not in {found, expert.get(name, Verdict.UNKNOWN)}
    ]
    if len(both) < len(generalist) or not both:
        lacking = count_sets(len(generalist) - len(both)) if generalist else "every evaluation set"
        yield (
            f"{label} cannot be compared with generalist and expert on {lacking}: there is no interval, or both answer "
            "one class for all images."
        )
    if not both:
        return
    wins = [name for name in both if generalist[name] is expert[name] is Verdict.BETTER]
    to_expert = [name for name in both if expert[name] is Verdict.WORSE]
    to_generalist = [name for name in both if generalist[name] is Verdict.WORSE]
    rest = [name for name in both if name not in {*wins, *to_expert, *to_generalist}]
    hints = [name for name in rest if _UNSURE & {generalist[name], expert[name]}]
    yield f"{label} wins, clearly better than both generalist and expert, on {some_of(wins, both)}."
    losses = f"to the expert on {some_of(to_expert, both)}, to the generalist on {some_of(to_generalist, both)}"
    yield f"{label} loses clearly {losses}."
    if rest:
        yield f"{label} neither wins nor loses clearly on {some_of(rest, both)}."
    if hints:
        yield f"Of these, an interval excludes 0 but no test confirms it on {some_of(hints, both)}."


_UNSURE = {Verdict.UNCONFIRMED, Verdict.UNTESTED}


def _against(results: Results, row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    difference = points(row["accuracy"] - reference["accuracy"])
    gain = f"{row['label']}: {difference} points on the mean against {reference['label']}"
    verdicts = list(per_set_verdicts(results, row["method"], reference["method"]).values())
    collapsed = [found for name in (row, reference) if (found := collapse_statement(results, name["method"]))]
    warning = "".join(f" {found}: what that accuracy says of the rule is nothing." for found in collapsed)
    if not verdicts:
        return f"{gain}, without a paired test.{warning}"
    better, worse = (verdicts.count(verdict) for verdict in (Verdict.BETTER, Verdict.WORSE))
    counts = [f"clearly better on {better}", f"clearly worse on {worse}"]
    if hints := sum(verdict in _UNSURE for verdict in verdicts):
        counts.append(f"not confirmed by the test on {hints}")
    if unknown := verdicts.count(Verdict.UNKNOWN):
        counts.append(f"without a verdict on {unknown}")
    return f"{gain}; {', '.join(counts)} of {count_sets(len(verdicts))}.{warning}"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["method"]).split("@", maxsplit=1)[0]


def _is_rescaled(row: Mapping[str, Any]) -> bool:
    return _name(row) in T3_METHODS and RESCALED in row["label"]


def _is_rule(row: Mapping[str, Any]) -> bool:
    """Whether λ comes from a rule; a name that the table of methods does not know is a rule of the user's own."""
    known = METHODS.get(_name(row))
    return known is None or known.rule is not None


def _rule(row: Mapping[str, Any]) -> str | None:
    known = METHODS.get(_name(row))
    return known.rule if known else None


def _grouping(row: Mapping[str, Any]) -> str | None:
    known = METHODS.get(_name(row))
    return known.grouping if known else None
