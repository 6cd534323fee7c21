"""How many merges a tolerance leaves: batches sorted by λ, for several bounds on the distance to a batch's own λ."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.drivers.planning.batches import BatchPlans
from pipeline.drivers.planning.counts import method_items
from pipeline.drivers.planning.stages import Pricing
from pipeline.drivers.planning.subjects import Subject
from pipeline.manifest.entries import check_entry
from pipeline.manifest.schema import Manifest
from pipeline.methods import GROUPINGS, GroupingKind
from pipeline.stages.context import EXACT, RunContext
from pipeline.stages.selection import Selected, own_method, select


@dataclass(frozen=True, slots=True)
class Compared:
    """A rule's methods: images by their own λ, batches as they arrive, and batches within each tolerance."""

    sample: Selected
    arrival: Selected
    tolerances: Sequence[Selected]

    @property
    def methods(self) -> list[Selected]:
        """All of them."""
        return [self.sample, self.arrival, *self.tolerances]


def compared_methods(manifest: Manifest, selected: Sequence[Selected], tolerances: Sequence[float]) -> list[Compared]:
    """For the manifest's own rule, and for each rule among ``selected`` that groups by λ; none without a pair."""
    if not manifest.is_pair:
        return []
    bases = [own_method(manifest), *(item for item in selected if item.method.grouping == "lambda")]
    rules = {item.rule.folder: item for item in bases if item.rule is not None}
    return [
        Compared(
            _regrouped(manifest, base, "sample"),
            _regrouped(manifest, base, "arrival"),
            [_regrouped(manifest, base, "lambda", tolerance=tolerance) for tolerance in tolerances],
        )
        for base in rules.values()
    ]


def tolerance_table(
    context: RunContext, plans: BatchPlans, subjects: Sequence[Subject], pricing: Pricing, compared: Compared
) -> list[dict[str, Any]]:
    """One row for each tolerance, over all sets: batches, merges, λ, and seconds of reading and scoring on one worker.

    ``reached`` is the largest distance of an image's λ from its batch's. Ratios are to the same rule's other methods.
    """
    sample, arrival = (
        _cost(context, plans, subjects, pricing, item)[0] for item in (compared.sample, compared.arrival)
    )
    rows = []
    for item in compared.tolerances:
        seconds, merges, batches = _cost(context, plans, subjects, pricing, item)
        tables = [
            plans.batches(subject, window, item) for subject in subjects for window in context.windows(subject.archive)
        ]
        table = pa.concat_tables(tables)
        lam, low, high = (table[name].to_numpy().astype(np.float64) for name in ("lambda", "lambda_min", "lambda_max"))
        sizes = table["size"].to_pylist()
        rows.append(
            {
                "rule": compared.sample.method.name,
                "tolerance": item.number("tolerance"),
                "batches": batches,
                "merges": merges,
                "size_min": min(sizes),
                "size_median": median(sizes),
                "size_max": max(sizes),
                "reached": float(np.maximum(lam - low, high - lam).max()),
                "seconds": seconds,
                "ratio_to_batch": seconds / arrival,
                "ratio_to_sample": seconds / sample,
            }
        )
    return rows


def _cost(
    context: RunContext, plans: BatchPlans, subjects: Sequence[Subject], pricing: Pricing, selected: Selected
) -> tuple[float, int, int]:
    """Seconds, merges and batches of a method whose answers are not written."""
    items = method_items(context, plans, subjects, selected)
    exact = context.implementation(selected) == EXACT
    counter = pricing.counter()
    worked = pricing.inference(items, {subject.name: () for subject in subjects}, counter, exact=exact)
    return (
        sum(item.seconds.elapsed for item in worked),
        sum(item.merges for item in worked),
        sum(item.item.batches for item in worked),
    )


def _regrouped(manifest: Manifest, base: Selected, kind: GroupingKind, **settings: float) -> Selected:
    assert base.method.rule is not None
    assert base.rule is not None
    method, _ = check_entry(base.method.rule + GROUPINGS[kind].suffix, manifest.checkpoints)
    return select(manifest, method, {**base.rule.settings, **settings})
