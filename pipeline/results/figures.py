"""Histograms of λ as SVG, equal bytes for equal counts, coloured by the page they stand in (light, dark or paper)."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.results.layout import parts
from pipeline.store.tables import read_table

BINS = 40
BRANCHES = ("none", "expert-confident", "generalist-confident")

INK, GRID = "#010203", "#010204"
SERIES = {"none": "#5b7083", "expert-confident": "#0f8b8d", "generalist-confident": "#c98a1b"}
OTHER = "#8a5a9e"
"""Colours that matplotlib draws with; each is then replaced by a CSS variable of which it is the fallback."""


def lambda_counts(folder: Path) -> dict[str, NDArray[np.int64]]:
    """Count λ in 40 bins over [0, 1] for each branch of Eq. 11, from ``samples/part-*.parquet`` in ``folder``.

    One part is in memory at a time. The last bin includes 1. Branches that occur come in the order of :data:`BRANCHES`.
    """
    counts: dict[str, NDArray[np.int64]] = {}
    for path in parts(folder).values():
        part = pl.DataFrame(read_table(path, ["lambda", "branch"]))
        for (branch,), rows in part.group_by(pl.col("branch").fill_null("none")):
            found, _ = np.histogram(rows["lambda"].to_numpy(), bins=BINS, range=(0.0, 1.0))
            counts[str(branch)] = counts.get(str(branch), 0) + found
    known = [name for name in BRANCHES if name in counts]
    return {name: counts[name] for name in [*known, *sorted(counts.keys() - set(known))]}


def lambda_histogram(counts: Mapping[str, NDArray[np.int64]], prefix: str) -> str:
    """Draw stacked counts of λ as an ``<svg>`` element for an HTML page; its ids begin with ``prefix``.

    Text stays text, takes the page's colour, and holds nothing but axis labels and figures.
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: Any = {"svg.hashsalt": prefix, "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10}
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with style.context(["default", settings]):
        figure = Figure(figsize=(4.2, 2.4), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        edges = np.linspace(0.0, 1.0, BINS + 1)
        base = np.zeros(BINS, np.int64)
        for branch, found in counts.items():
            axes.stairs(base + found, edges, baseline=base, fill=True, color=SERIES.get(branch, OTHER), linewidth=0)
            base = base + found
        axes.set(xlim=(0, 1), ylim=(0, max(1.0, 1.05 * base.max())), xlabel="λ, weight of the expert", ylabel="samples")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(file.getvalue(), prefix)


def branch_class(branch: str) -> str:
    """CSS name of a branch's colour: the page defines ``--branch-<name>``."""
    return branch if branch in SERIES else "other"


def _for_page(document: str, prefix: str) -> str:
    """Cut the ``<svg>`` out of its XML document, make its ids unique on the page and its colours the page's."""
    svg = document[document.index("<svg") :].strip()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = (
        re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", svg[: svg.index(">")])
        + svg[svg.index(">") :]
    )
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg).replace("xlink:href", "href")
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    variables = {INK: "currentColor", GRID: "var(--grid, #d5dbe1)", OTHER: f"var(--branch-other, {OTHER})"}
    variables |= {colour: f"var(--branch-{branch}, {colour})" for branch, colour in SERIES.items()}
    for colour, variable in variables.items():
        svg = svg.replace(colour, variable)
    return svg
