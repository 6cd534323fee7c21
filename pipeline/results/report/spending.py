"""What stages and methods spent, summed over the runs of a report (the ledger of each ``run.json``)."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.results.ledger import LedgerRow, ledger_rows

SUMMED = (
    "calls",
    "images",
    "unit",
    "samples",
    "text_calls",
    "merges",
    "merges_skipped",
    "batches",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class Spending:
    """One stage, for one method where the stage is ``infer``, of one run or several; ``unit`` is B of all together."""

    stage: str
    method: str | None
    image_calls: Mapping[str, int]
    calls: int
    images: int
    unit: int
    samples: int
    text_calls: int
    merges: int
    merges_skipped: int
    batches: int
    seconds: float

    @property
    def cost(self) -> float | None:
        """Image forward calls in units of B; None where nothing ran."""
        return self.calls / self.unit if self.calls else None

    @property
    def per_image(self) -> float | None:
        """Forward passes that an image took part in, on average."""
        return self.images / self.samples if self.samples else None


def spending(run_jsons: Sequence[Mapping[str, Any]]) -> list[Spending]:
    """Sum the ledgers of several runs: stage one first, then methods in the order in which the runs list them."""
    every = [item for run_json in run_jsons for item in spent(run_json)]
    found = sum_by(((item.stage, item.method), item) for item in every)
    return sorted(found.values(), key=lambda item: item.stage != "precompute")


def spent(run_json: Mapping[str, Any]) -> list[Spending]:
    """What a single run spent, by stage and method."""
    return [_of_row(row, _samples(run_json, row)) for row in ledger_rows(run_json)]


def sum_by[Key: Hashable](items: Iterable[tuple[Key, Spending]]) -> dict[Key, Spending]:
    """Sums of what has the same key, which take stage and method of the first."""
    found: dict[Key, Spending] = {}
    for key, item in items:
        found[key] = _add(found[key], item) if key in found else item
    return found


def _add(first: Spending, second: Spending) -> Spending:
    models = dict.fromkeys([*first.image_calls, *second.image_calls])
    calls = {name: first.image_calls.get(name, 0) + second.image_calls.get(name, 0) for name in models}
    return replace(first, image_calls=calls, **{name: getattr(first, name) + getattr(second, name) for name in SUMMED})


def _of_row(row: LedgerRow, samples: int) -> Spending:
    return Spending(
        stage=row.stage,
        method=row.method,
        image_calls=row.image_calls,
        calls=row.calls,
        images=row.images,
        unit=row.unit,
        samples=samples,
        text_calls=row.text_calls,
        merges=row.merges,
        merges_skipped=row.merges_skipped,
        batches=row.batches,
        seconds=row.seconds,
    )


def _samples(run_json: Mapping[str, Any], row: LedgerRow) -> int:
    ledger = run_json.get("ledger", {})
    totals = ledger.get("infer", {}).get(row.method, {}) if row.method else ledger.get(row.stage, {})
    counts = totals.get("counts", {})
    return int(counts.get("samples", 0)) + int(counts.get("rejected", 0))
