"""What stages and methods spent, summed over the runs of a report (the ledger of each ``run.json``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.results.ledger import LedgerRow, ledger_rows


@dataclass(frozen=True, slots=True)
class Spending:
    """One stage, for one method where the stage is ``infer``, over all runs; ``unit`` is B of all runs together."""

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
    found: dict[tuple[str, str | None], list[tuple[LedgerRow, int]]] = {}
    for run_json in run_jsons:
        for row in ledger_rows(run_json):
            found.setdefault((row.stage, row.method), []).append((row, _samples(run_json, row)))
    ordered = sorted(found.items(), key=lambda item: item[0][0] != "precompute")
    return [_total(stage, method, rows) for (stage, method), rows in ordered]


def _total(stage: str, method: str | None, rows: list[tuple[LedgerRow, int]]) -> Spending:
    models = dict.fromkeys(name for row, _ in rows for name in row.image_calls)
    return Spending(
        stage=stage,
        method=method,
        image_calls={name: sum(row.image_calls.get(name, 0) for row, _ in rows) for name in models},
        calls=sum(row.calls for row, _ in rows),
        images=sum(row.images for row, _ in rows),
        unit=sum(row.unit for row, _ in rows),
        samples=sum(samples for _, samples in rows),
        text_calls=sum(row.text_calls for row, _ in rows),
        merges=sum(row.merges for row, _ in rows),
        merges_skipped=sum(row.merges_skipped for row, _ in rows),
        batches=sum(row.batches for row, _ in rows),
        seconds=sum(row.seconds for row, _ in rows),
    )


def _samples(run_json: Mapping[str, Any], row: LedgerRow) -> int:
    ledger = run_json.get("ledger", {})
    totals = ledger.get("infer", {}).get(row.method, {}) if row.method else ledger.get(row.stage, {})
    counts = totals.get("counts", {})
    return int(counts.get("samples", 0)) + int(counts.get("rejected", 0))
