"""What answers cost: forward calls of each method, and the accuracy they buy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.results.layout import method_labels
from pipeline.results.report.drawing import GRID, MAIN_METHODS, SMALL, colour, draw, look_of, open_axes, spread, wrapped
from pipeline.results.report.figure import Figure
from pipeline.results.report.places import group_runs, sentences
from pipeline.results.report.spending import Spending, spent, sum_by

STAGE_ONE = "stage one, once per archive"
BAR_INCHES, LINE_INCHES, MARGIN_INCHES, SCATTER_INCHES = 0.19, 0.13, 0.6, 3.6
TICKS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
LINEAR = 2.0
"""Costs up to here stand on a linear axis, further ones on a logarithmic one, with their names to the left."""
LABEL_SHARE = 0.05
"""Distance between labels, as a share of the vertical axis."""


def cost_figures(runs: Sequence[Path], frame: pl.DataFrame) -> list[Figure]:
    """Draw forward calls by method, from the ledger totals of ``run.json``, and accuracy against them.

    ``frame`` is the metrics of all runs (:func:`~pipeline.results.metrics.evaluate_run`); methods that look at labels,
    or lack one of the evaluation sets, are left out of the second figure. No figure without a ledger. ``data``: label,
    method, calls, unit, cost (in B), and accuracy in the second.
    """
    costs = read_costs(runs)
    if not costs:
        return []
    accuracies = mean_accuracies(frame)
    scored = {label: accuracies[label] for label in costs if label in accuracies}
    return [_bars(costs, len(runs)), *([_scatter(costs, scored)] if scored else [])]


def read_costs(runs: Sequence[Path]) -> dict[str, Spending]:
    """What methods spent by their label, all runs together: stage one first, then as the manifest lists them."""
    pairs = [pair for study in group_runs(runs) for pair in zip(study.runs, study.run_jsons, strict=True)]
    return sum_by(named for run, run_json in pairs for named in _by_label(run, run_json))


def _by_label(run: Path, run_json: Mapping[str, Any]) -> list[tuple[str, Spending]]:
    found = spent(run_json)
    labels = method_labels(run, [item.method for item in found if item.method])
    return [(labels[item.method] if item.method else STAGE_ONE, item) for item in found]


def _name_of(item: Spending) -> str:
    return item.method or item.stage


def _passes(item: Spending) -> float:
    return item.cost or 0.0


def mean_accuracies(frame: pl.DataFrame) -> dict[str, float]:
    """Mean accuracy by label over all evaluation sets, each counted once however many seeds it has.

    Only labels that need no labels and have every set.
    """
    keys = [name for name in ("study", "evaluation_set") if name in frame.columns]
    rows = frame.filter(~pl.col("analysis_only"), pl.col("accuracy").is_not_null())
    sets = rows.select(keys).n_unique()
    by_set = rows.group_by("label", *keys, maintain_order=True).agg(pl.col("accuracy").mean())
    means = by_set.group_by("label", maintain_order=True).agg(pl.col("accuracy").mean(), pl.len().alias("sets"))
    return dict(means.filter(pl.col("sets") == sets).select("label", "accuracy").iter_rows())


def _data(costs: Mapping[str, Spending]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "label": list(costs),
            "method": [_name_of(cost) for cost in costs.values()],
            "calls": [cost.calls for cost in costs.values()],
            "unit": [cost.unit for cost in costs.values()],
            "cost": [_passes(cost) for cost in costs.values()],
        }
    )


def _bars(costs: Mapping[str, Spending], runs: int) -> Figure:
    names = [wrapped(label, 28) for label in costs]
    heights = [BAR_INCHES + LINE_INCHES * name.count("\n") for name in names]
    centres = [sum(heights[:index]) + heights[index] / 2 for index in range(len(heights))]

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        passes = [_passes(cost) for cost in costs.values()]
        tints = [colour(look_of(_name_of(cost)).colour) for cost in costs.values()]
        axes.barh(centres, passes, height=0.12, color=tints, linewidth=0)
        for centre, cost in zip(centres, costs.values(), strict=True):
            axes.annotate(
                f"{cost.cost:.2f}" if cost.cost else "0",
                (_passes(cost), centre),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
            )
        axes.set_yticks(centres, names)
        axes.set(ylim=(sum(heights), 0), xlim=(0, 1.12 * max(*passes, 1.0)), xlabel="forward calls, in units of B")
        open_axes(axes)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=GRID, linewidth=0.8)

    return Figure(
        id="costs",
        title="What each method costs",
        caption=sentences(
            "Image forward calls in units of B, what one plain model needs for the same images.",
            "Stage one is paid once per archive and shared by all methods;"
            " plain models and ensemble are then read from its evidence.",
            f"Totals of {runs} runs." if runs > 1 else "",
        ),
        description=_describe(costs),
        svg=draw("costs", MARGIN_INCHES + sum(heights), paint),
        data=_data(costs),
    )


def _describe(costs: Mapping[str, Spending]) -> str:
    """Labels by what they cost, the cheapest first."""
    by_cost: dict[str, list[str]] = {}
    for label, cost in sorted(costs.items(), key=lambda item: _passes(item[1])):
        by_cost.setdefault(f"{cost.cost:.2f} B" if cost.cost else "No forward", []).append(label)
    return " ".join(f"{cost}: {', '.join(labels)}." for cost, labels in by_cost.items())


def _scatter(costs: Mapping[str, Spending], accuracies: Mapping[str, float]) -> Figure:
    """Accuracy against cost; the main methods and the best one carry their names."""
    points = {label: (_passes(costs[label]), accuracy) for label, accuracy in accuracies.items()}
    best = max(accuracies, key=lambda label: accuracies[label])
    named = [label for label in points if costs[label].method in MAIN_METHODS or label == best]
    told = sorted(named, key=lambda label: -accuracies[label])
    low, high = min(accuracies.values()), max(accuracies.values())
    margin = max(0.08 * (high - low), 0.005)

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        for label, (passes, accuracy) in points.items():
            look = look_of(_name_of(costs[label]))
            marks = {"marker": look.marker, "color": colour(look.colour), "markersize": 5}
            axes.plot(passes, accuracy, linestyle="none", zorder=3 if label in named else 2, **marks)
        gap = LABEL_SHARE * (high - low + 2 * margin)
        for column in dict.fromkeys(round(points[label][0], 1) for label in named):
            members = [label for label in named if round(points[label][0], 1) == column]
            for label, height in zip(members, spread([points[label][1] for label in members], gap), strict=True):
                _name(axes, label, points[label], height, leftward=column > LINEAR)
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.2)
        farthest = max(passes for passes, _ in points.values())
        axes.set_xticks([tick for tick in TICKS if tick <= max(farthest, 1)])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set(
            xlim=(-0.15, max(2.0 * farthest, 3.0)),
            ylim=(low - margin, high + margin),
            xlabel="forward calls after stage one, in units of B",
            ylabel="mean accuracy",
        )
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.1f} %")
        open_axes(axes)

    return Figure(
        id="accuracy-against-cost",
        title="Accuracy against cost",
        caption="Mean accuracy over the evaluation sets with labels. The main methods and the best one are named;"
        " methods that look at labels are left out, and so are those that lack a set.",
        description="; ".join(f"{label} {100 * accuracies[label]:.2f} % at {points[label][0]:.2f} B" for label in told)
        + ".",
        svg=draw("accuracy-against-cost", SCATTER_INCHES, paint),
        data=_data({label: costs[label] for label in accuracies}).with_columns(
            pl.Series("accuracy", list(accuracies.values()), pl.Float64)
        ),
    )


def _name(axes: Any, label: str, point: tuple[float, float], height: float, *, leftward: bool) -> None:
    axes.annotate(
        wrapped(label, 24),
        point,
        (-10 if leftward else 10, height),
        textcoords=("offset points", "data"),
        ha="right" if leftward else "left",
        va="center",
        fontsize=SMALL,
        arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
    )
