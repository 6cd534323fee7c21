"""Histograms of λ, one figure for each evaluation set: where the rule puts its samples, and by which branch of Eq. 11.

T³'s paper (arXiv 2510.27265) shows such distributions in its Figures 1 and 8.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.results.layout import parts, read_run, rule_folders, settings
from pipeline.results.report.drawing import INK, PALETTE, SMALL, colour, draw, open_axes, wrapped
from pipeline.results.report.figure import Figure, counted
from pipeline.results.report.places import Place, places, sentences, setting_labels
from pipeline.store.tables import read_table

BINS = 40
RULE = "t3"
BRANCHES = ("none", "expert-confident", "generalist-confident")
LEGEND = {
    "none": "as Eq. 10 gives it",
    "expert-confident": "raised: expert confident",
    "generalist-confident": "lowered: generalist confident",
}
PANEL_INCHES, MARGIN_INCHES = 1.7, 0.9


def histogram_figures(runs: Sequence[Path]) -> list[Figure]:
    """Draw λ of rule ``t3``, and of ``t3`` with ``mapping: rescaled`` where the run has it, for each evaluation set.

    Of several runs of one manifest the first seed is drawn. ``data``: rule, label, branch, lambda_low, lambda_high,
    count.
    """
    return [_figure(place) for place in places(runs, lambda run, name: bool(_folders(run, name)))]


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


def describe(counts: Mapping[str, NDArray[np.int64]]) -> str:
    """Say in words where the samples of a histogram lie, for readers who cannot see it."""
    total = sum(int(found.sum()) for found in counts.values())
    if not total:
        return "no samples"
    shares = [f"{100 * int(found.sum()) / total:.1f} % {branch}" for branch, found in counts.items()]
    by_half = np.array([found.reshape(2, BINS // 2).sum(axis=1) for found in counts.values()]).sum(axis=0)
    below, above = (100 * int(count) / total for count in by_half)
    halves = f"{below:.1f} % with λ below 0.5, {above:.1f} % at 0.5 or above"
    return f"{counted(total, 'sample')}: {halves}. By branch: {', '.join(shares)}."


def lambda_histogram(panels: Mapping[str, Mapping[str, NDArray[np.int64]]], prefix: str) -> str:
    """Draw stacked counts of λ by branch, a panel for each label, as an ``<svg>`` whose ids begin with ``prefix``."""
    from matplotlib.patches import Patch

    branches = list(dict.fromkeys(branch for counts in panels.values() for branch in counts))

    def paint(figure: Any) -> None:
        panes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, counts) in zip(panes, panels.items(), strict=True):
            _stack(axes, counts)
            axes.set_title(wrapped(label))
        panes[-1].set(xlim=(0, 1), xlabel="λ, weight of the expert")
        handles = [Patch(label=LEGEND.get(branch, branch), **_fill(branch)) for branch in branches]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL)

    legend_rows = -(-len(branches) // 2)
    return draw(prefix, PANEL_INCHES * len(panels) + MARGIN_INCHES + 0.15 * legend_rows, paint)


def branch_class(branch: str) -> str:
    """CSS name of a branch's colour: the page defines ``--branch-<name>``."""
    return branch if f"branch-{branch}" in PALETTE else "other"


def _folders(run: Path, evaluation_set: str) -> list[Path]:
    """Folders of rule t3, then of t3 rescaled, that have λ for the evaluation set."""
    root = run / "coefficients"
    found = [root / name for name in rule_folders(run, read_run(run)) if name.split("@", maxsplit=1)[0] == RULE]
    found = [folder for folder in found if parts(folder / evaluation_set / "samples")]
    mapping = {folder: (settings(folder) or {}).get("settings", {}).get("mapping") for folder in found}
    plain = [folder for folder in found if mapping[folder] != "rescaled"]
    return plain[:1] + [folder for folder in found if mapping[folder] == "rescaled"][:1]


def _figure(place: Place) -> Figure:
    folders = _folders(place.run, place.evaluation_set)
    counts = [lambda_counts(folder / place.evaluation_set / "samples") for folder in folders]
    labels = setting_labels(folders)
    identifier = f"lambda-{place.slug}"
    panels = dict(zip(labels, counts, strict=True))
    return Figure(
        id=identifier,
        title=f"λ on {place.title}",
        caption=sentences(
            "Samples by the weight λ that the expert gets: at 0 the generalist alone answers, at 1 the expert alone.",
            place.note,
        ),
        description=" ".join(f"Rule {label}: {describe(found)}" for label, found in panels.items()),
        svg=lambda_histogram(panels, identifier),
        data=pl.concat(
            [_data(folder.name, label, found) for folder, (label, found) in zip(folders, panels.items(), strict=True)]
        ),
    )


def _data(rule: str, label: str, counts: Mapping[str, NDArray[np.int64]]) -> pl.DataFrame:
    edges = np.linspace(0.0, 1.0, BINS + 1)
    frames = [
        pl.DataFrame({"lambda_low": edges[:-1], "lambda_high": edges[1:], "count": found}).select(
            pl.lit(rule).alias("rule"), pl.lit(label).alias("label"), pl.lit(branch).alias("branch"), pl.all()
        )
        for branch, found in counts.items()
    ]
    return pl.concat(frames)


def _stack(axes: Any, counts: Mapping[str, NDArray[np.int64]]) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = np.linspace(0.0, 1.0, BINS + 1)
    base = np.zeros(BINS, np.int64)
    for branch, found in counts.items():
        axes.stairs(base + found, edges, baseline=base, fill=True, **_fill(branch))
        base = base + found
    axes.set(ylim=(0, max(1.0, 1.05 * base.max())), ylabel="samples")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    open_axes(axes)


def _fill(branch: str) -> dict[str, Any]:
    """Colour of a branch; the one that lowers λ is hatched too, so that no colour is needed to tell it."""
    hatch = {"hatch": "////", "edgecolor": INK} if branch == "generalist-confident" else {}
    return {"facecolor": colour(f"branch-{branch_class(branch)}"), "linewidth": 0, **hatch}
