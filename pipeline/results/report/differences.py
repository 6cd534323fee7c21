"""Differences of the main methods to the generalist and to the expert, with intervals: the answer as a picture."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.report.drawing import INK, draw, look_of, open_axes
from pipeline.results.report.drawing import colour as colour_of
from pipeline.results.report.figure import Figure
from pipeline.results.report.results import EXPERT, Results
from pipeline.results.report.verdicts import difference_to, points

REFERENCES = (GENERALIST, EXPERT)
ROW_INCHES, MARGIN_INCHES = 0.24, 0.75


def difference_figures(results: Results) -> list[Figure]:
    """Draw the mean differences of the main methods; no figure where no method was compared with either model.

    ``data``: reference, method, label, difference, difference_low, difference_high, as fractions.
    """
    main = results.main_methods()
    rows = [row for row in results.methods.iter_rows(named=True) if row["method"] in main]
    records = [
        {"reference": reference, "method": row["method"], "label": row["label"]}
        | {"difference": found.value, "difference_low": found.low, "difference_high": found.high}
        for reference in REFERENCES
        for row in rows
        if row["method"] != reference and (found := difference_to(row, reference)).value is not None
    ]
    if not records:
        return []
    sentences = [
        f"{row['label']} to the {reference}: {points(found.value)} points, {found.interval}."
        for reference in REFERENCES
        for row in rows
        if row["method"] != reference and (found := difference_to(row, reference)).value is not None
    ]
    return [
        Figure(
            id="differences",
            title="Difference to either model alone",
            caption="Mean accuracy over evaluation sets, percentage points; bars are 95 % intervals, which cover the "
            "images, not the training. Where a bar crosses the line at 0, either of the two may be the better one. A "
            "bar that does not is a hint, no test; a point without a bar has no interval.",
            description=" ".join(sentences),
            svg=_draw([row["label"] for row in rows], records),
            data=pl.DataFrame(records),
        )
    ]


def _draw(labels: Sequence[str], records: Sequence[dict[str, Any]]) -> str:
    used = [label for label in labels if any(record["label"] == label for record in records)]
    heights = {label: len(used) - place for place, label in enumerate(used)}

    def paint(figure: Any) -> None:
        panes = figure.subplots(1, len(REFERENCES), sharey=True)
        for axes, reference in zip(panes, REFERENCES, strict=True):
            open_axes(axes)
            axes.grid(visible=False, axis="y")
            axes.axvline(0, color=INK, linewidth=0.8)
            for record in records:
                if record["reference"] == reference:
                    _bar(axes, record, heights[record["label"]])
            axes.set_title(f"to the {reference}")
            axes.set(ylim=(0.4, len(used) + 0.6), yticks=list(heights.values()), yticklabels=list(heights))
            axes.margins(x=0.08)
        figure.supxlabel("percentage points", fontsize=9, color=INK)

    return draw("differences", ROW_INCHES * len(used) + MARGIN_INCHES, paint)


def _bar(axes: Any, record: dict[str, Any], height: int) -> None:
    look = look_of(record["method"])
    colour = colour_of(look.colour)
    if record["difference_low"] is not None:
        ends = [100 * record["difference_low"], 100 * record["difference_high"]]
        axes.plot(ends, [height, height], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([100 * record["difference"]], [height], color=colour, marker=look.marker, markersize=5, linestyle="none")
