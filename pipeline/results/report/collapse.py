"""Methods that answer one class for every image: their intervals have no width, and that is not certainty.

However the images are drawn, such a method is right on as many of them as are of its class: the bootstrap, which keeps
the classes' shares, gives intervals of no width, and between two such methods a difference that never changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.marks import COLLAPSE
from pipeline.results.report.results import EXPERT, Results
from pipeline.results.report.verdicts import count_sets, listed, some_of

REFERENCES = (GENERALIST, EXPERT)
SET = ("study", "evaluation_set")
PLACE = (*SET, "method")
ACCURACY = ("accuracy_low", "accuracy_high", "balanced_accuracy_low", "balanced_accuracy_high")


def without_false_certainty(results: Results) -> Results:
    """Leave out intervals of collapsed methods, and intervals and tests between two methods that have collapsed.

    A mean over sets is without where one of its sets is.
    """
    collapsed = set(_collapsed(results).select(PLACE).rows())
    sets = results.sets
    alone = [place in collapsed for place in sets.select(PLACE).rows()]
    sets = _blank(sets, alone, ACCURACY)
    for reference in REFERENCES:
        columns = [*_of_difference(reference), *(("err_low", "err_high") if reference == GENERALIST else ())]
        both = [
            own and (*place, reference) in collapsed for own, place in zip(alone, sets.select(SET).rows(), strict=True)
        ]
        sets = _blank(sets, both, columns)
    pairs = results.comparisons.select(*PLACE, "reference").rows()
    both = [{(*place, method), (*place, reference)} <= collapsed for *place, method, reference in pairs]
    severities = results.severities
    return replace(
        results,
        sets=sets,
        methods=_means_without(results, collapsed),
        comparisons=_blank(results.comparisons, both, ("difference_low", "difference_high", "p_value", "p_adjusted")),
        severities=_blank(severities, [place in collapsed for place in severities.select(PLACE).rows()], ACCURACY[:2]),
    )


def collapsed_on(results: Results, method: str) -> list[str]:
    """Names of the labelled evaluation sets on which a method answers one class for every image."""
    rows = _collapsed(results).filter(pl.col("method") == method)
    return [results.name_of(*place) for place in rows.select(SET).rows()]


def collapse_statement(results: Results, method: str) -> str | None:
    """One sentence about a method that has collapsed somewhere; None where it has not."""
    where = collapsed_on(results, method)
    if not where:
        return None
    rows = results.labelled.filter(pl.col("method") == method)
    every = [results.name_of(*place) for place in rows.select(SET).rows()]
    label = f"The {method}" if method in REFERENCES else rows["label"][0]
    return f"{label} answers one class for every image on {some_of(where, every)}"


def collapsed_methods(results: Results) -> Iterable[str]:
    """Who has collapsed where: main methods by name, then how many others; sets with the same methods together."""
    rows = _collapsed(results).filter(~pl.col("analysis_only"))
    main = set(results.main_methods())
    together: dict[str, list[str]] = {}
    for place, here in rows.group_by(SET, maintain_order=True):
        named = here.filter(pl.col("method").is_in(main))["label"].to_list()
        others = here.height - len(named)
        more = [f"{others} {'other' if named else ''} method{'' if others == 1 else 's'}".replace("  ", " ")]
        who = _joined(named + more * bool(others))
        together.setdefault(who, []).append(results.name_of(str(place[0]), str(place[1])))
    for who, names in together.items():
        every = len(names) == len(results.labelled.select(SET).unique()) > 1
        yield f"{who} on {f'all {count_sets(len(names))}' if every else listed(names)}"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _collapsed(results: Results) -> pl.DataFrame:
    return results.labelled.filter(pl.col("marks").list.contains(COLLAPSE))


def _means_without(results: Results, collapsed: set[tuple[str, ...]]) -> pl.DataFrame:
    where: dict[str, set[tuple[str, ...]]] = {}
    for *place, method in collapsed:
        where.setdefault(method, set()).add(tuple(place))
    names = results.methods["method"].to_list()
    methods = _blank(results.methods, [name in where for name in names], ACCURACY)
    for reference in REFERENCES:
        both = [bool(where.get(name, set()) & where.get(reference, set())) for name in names]
        methods = _blank(methods, both, _of_difference(reference))
    return methods


def _of_difference(reference: str) -> tuple[str, ...]:
    name = f"difference_{reference}"
    return f"{name}_low", f"{name}_high", f"p_adjusted_{reference}"


def _blank(frame: pl.DataFrame, hit: Sequence[bool], columns: Iterable[str]) -> pl.DataFrame:
    keep = ~pl.Series("hit", hit, dtype=pl.Boolean)
    return frame.with_columns(pl.when(keep).then(pl.col(name)).alias(name) for name in columns)
