"""What each stage and method of a report spent, as a table."""

from collections.abc import Sequence

import polars as pl

from pipeline.results.ledger import MODELS
from pipeline.results.report.result_tables import LOOKS_AT_LABELS
from pipeline.results.report.results import Results
from pipeline.results.report.spending import Spending
from pipeline.results.report.table import Cell, Column, Row, Table


def costs_table(results: Results, costs: Sequence[Spending]) -> Table | None:
    """What each stage and method spent (the paper's Table 3, counted instead of estimated); None without a ledger."""
    if not costs:
        return None
    labels = dict(results.sets.select("method", "label").unique(maintain_order=True).iter_rows())
    analysis = set(results.sets.filter(pl.col("analysis_only"))["method"])
    main = set(results.main_methods())
    models = [name for name in _models(costs) if any(cost.image_calls.get(name) for cost in costs)]
    rows = [
        Row(
            name=labels.get(cost.method, cost.method) if cost.method else "stage one: precompute",
            cells=(
                Cell(cost.cost or 0.0),
                Cell(cost.per_image),
                *(Cell(cost.image_calls.get(model, 0)) for model in models),
                *(
                    Cell(count)
                    for count in (cost.calls, cost.images, cost.text_calls, cost.merges, cost.merges_skipped)
                ),
                Cell(cost.batches or None),
                Cell(cost.seconds),
            ),
            ranked=cost.method not in analysis,
            main=cost.method is None or cost.method in main,
            note=LOOKS_AT_LABELS if cost.method in analysis else "",
        )
        for cost in costs
    ]
    return Table(
        id="cost",
        title="Forward passes",
        caption=(
            "Counted while running, not estimated, and summed over runs and evaluation sets. B is the number of image "
            "forward calls that one plain model needs for the same images. Seconds are summed over workers."
        ),
        heading="Stage, method",
        columns=(
            Column("cost", "Cost", "cost"),
            Column("per_image", "Passes per image"),
            *(Column(f"calls_{model}", f"{model}", "count", "Image forward calls") for model in models),
            Column("calls", "all", "count", "Image forward calls"),
            Column("images", "Images", "count"),
            Column("text_calls", "Text forwards", "count"),
            Column("merges", "Merges", "count"),
            Column("merges_skipped", "Skipped", "count"),
            Column("batches", "Batches", "count"),
            Column("seconds", "Seconds", digits=1),
        ),
        rows=tuple(rows),
    )


def _models(costs: Sequence[Spending]) -> list[str]:
    others = sorted({name for cost in costs for name in cost.image_calls} - set(MODELS))
    return [*MODELS, *others]
