"""The ledger totals of ``run.json`` as rows: forward calls by model, merges, and the cost class they amount to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.results.layout import sort_methods

MODELS = ("generalist", "expert", "merged")


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one stage spent, for one method where the stage is ``infer``; images are counted once per forward."""

    stage: str
    method: str | None
    image_calls: Mapping[str, int]
    image_images: Mapping[str, int]
    text_calls: int
    merges: int
    merges_skipped: int
    images_read: int
    batches: int
    seconds: float
    plain_calls: int

    @property
    def calls(self) -> int:
        """Image forward calls of all models together."""
        return sum(self.image_calls.values())

    @property
    def images(self) -> int:
        """Images put through a forward, of all models together."""
        return sum(self.image_images.values())

    @property
    def unit(self) -> int:
        """B, the image forward calls that one plain model needs for the same images.

        That is what one model needed in stage one; without a stage one, the number of batches.
        """
        return self.plain_calls or self.batches or max(self.image_calls.values(), default=0)

    @property
    def cost(self) -> float | None:
        """Image forward calls in units of B; None where nothing ran."""
        return self.calls / self.unit if self.calls else None


def ledger_rows(run_json: Mapping[str, Any]) -> list[LedgerRow]:
    """Rows of the totals in ``run_json["ledger"]``: stage one first, then the methods in the manifest's order."""
    ledger = run_json.get("ledger", {})
    precompute, methods = ledger.get("precompute", {}), ledger.get("infer", {})
    calls, images = (_of_one_model(precompute, name) for name in ("image_forward_calls", "image_forward_images"))
    rate = calls / images if images else 0.0
    rows = [_row("precompute", None, precompute, rate)] if precompute else []
    rows.extend(_row("infer", name, methods[name], rate) for name in sort_methods(methods, dict(run_json)))
    return rows


def model_names(rows: list[LedgerRow]) -> list[str]:
    """Models that the ledger counts, the usual three first."""
    others = sorted({name for row in rows for name in row.image_calls} - set(MODELS))
    return [*MODELS, *others]


def cost_text(row: LedgerRow) -> str:
    """Cost class of one row as text, such as ``1.00 B``."""
    return "no forward" if row.cost is None else f"{row.cost:.2f} B"


def _of_one_model(totals: Mapping[str, Any], count: str) -> int:
    by_model: Mapping[str, int] = totals.get("counts", {}).get(count, {})
    return max(by_model.values(), default=0)


def _row(stage: str, method: str | None, totals: Mapping[str, Any], plain_calls_per_image: float) -> LedgerRow:
    counts = totals.get("counts", {})
    return LedgerRow(
        stage=stage,
        method=method,
        image_calls=dict(counts.get("image_forward_calls", {})),
        image_images=dict(counts.get("image_forward_images", {})),
        text_calls=sum(counts.get("text_forward_calls", {}).values()),
        merges=counts.get("merges", 0),
        merges_skipped=counts.get("merges_skipped", 0),
        images_read=counts.get("images_read", 0),
        batches=counts.get("batches", 0) if method else 0,
        seconds=sum(totals.get("seconds", {}).values()),
        plain_calls=round((counts.get("samples", 0) + counts.get("rejected", 0)) * plain_calls_per_image),
    )
