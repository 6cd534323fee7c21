"""Accuracy by severity of a corruption, from the clean images on: a figure for each corrupted evaluation set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.results.report.drawing import MAIN_METHODS, SMALL, colour, draw, look_of, open_axes, wrapped
from pipeline.results.report.figure import Figure
from pipeline.results.report.places import Place, places, sentences

BY_SEVERITY = "metrics_by_severity.parquet"
COLUMNS = 2
ROW_INCHES, MARGIN_INCHES, LEGEND_INCHES = 1.9, 0.6, 0.17
APART = 0.06
"""Distance between methods at the same severity, so that their whiskers can be told apart."""
INTERVAL = ("accuracy_low", "accuracy_high")
DRAWN = ("method", "label", "corruption", "severity", "samples", "accuracy", *INTERVAL)


def severity_figures(runs: Sequence[Path]) -> list[Figure]:
    """Draw accuracy by severity for the main methods, a panel for each corruption; severity 0 is the clean images.

    Reads ``metrics_by_severity.parquet`` of each run; runs without it have no figure. Whiskers are the 95 % intervals
    of one run; of several seeds, lines are means over seeds and whiskers reach from the lowest seed to the highest.
    ``data``: method, label, corruption, severity, samples, accuracy, accuracy_low, accuracy_high, seeds.
    """
    tables = {run: pl.read_parquet(run / BY_SEVERITY) for run in runs if (run / BY_SEVERITY).is_file()}
    sets = {run: set(table["evaluation_set"]) for run, table in tables.items()}
    figures = []
    for place in places(runs, lambda run, name: name in sets.get(run, ())):
        seeds = [_main_rows(tables[run], place.evaluation_set) for run in place.study.runs if run in tables]
        data = _over_seeds([seed for seed in seeds if seed.height])
        if data.height:
            figures.append(_figure(place, data))
    return figures


def _main_rows(table: pl.DataFrame, evaluation_set: str) -> pl.DataFrame:
    """Rows of one evaluation set: each main method, at its first settings, at every severity."""
    rows = table.filter(pl.col("evaluation_set") == evaluation_set, pl.col("accuracy").is_not_null())
    name = pl.col("method").str.split("@").list.first()
    rows = rows.filter(name.is_in(MAIN_METHODS)).select(*DRAWN)
    first = rows.group_by(name.alias("name"), maintain_order=True).agg(pl.col("method").first())["method"]
    return rows.filter(pl.col("method").is_in(first.to_list()))


def _over_seeds(seeds: Sequence[pl.DataFrame]) -> pl.DataFrame:
    if not seeds:
        return pl.DataFrame()
    if len(seeds) == 1:
        means = seeds[0].with_columns(pl.lit(1, pl.Int64).alias("seeds"))
    else:
        means = (
            pl.concat(seeds)
            .group_by("label", "corruption", "severity", maintain_order=True)
            .agg(
                pl.col("method").first(),
                pl.col("samples").first(),
                pl.col("accuracy").mean(),
                pl.col("accuracy").min().alias("accuracy_low"),
                pl.col("accuracy").max().alias("accuracy_high"),
                pl.len().cast(pl.Int64).alias("seeds"),
            )
        )
    place = {name: index for index, name in enumerate(MAIN_METHODS)}
    order = pl.col("method").str.split("@").list.first().replace_strict(place, return_dtype=pl.Int64)
    return means.select(*DRAWN, "seeds").sort(order, "method", "corruption", "severity", maintain_order=True)


def _figure(place: Place, data: pl.DataFrame) -> Figure:
    identifier = f"severity-{place.slug}"
    seeds = max(data["seeds"].to_list())
    has_intervals = bool(data["accuracy_low"].is_not_null().any())
    whiskers = f"Means of {seeds} training seeds; whiskers reach from the lowest seed to the highest."
    if seeds == 1:
        whiskers = "Whiskers: 95 % intervals." if has_intervals else ""
    has_clean = bool((data["severity"] == 0).any())
    before = "Severity 0 is the same images before they were corrupted."
    start = before if has_clean else "The clean images were not scored."
    return Figure(
        id=identifier,
        title=f"Accuracy by severity on {place.title}",
        caption=sentences(start, whiskers),
        description=_describe(data),
        svg=_draw(identifier, data),
        data=data,
    )


def _describe(data: pl.DataFrame) -> str:
    texts = []
    for (corruption,), rows in data.group_by("corruption", maintain_order=True):
        severities = sorted(rows["severity"].to_list())
        ends = rows.group_by("label", maintain_order=True).agg(
            pl.col("accuracy").first().alias("first"), pl.col("accuracy").last().alias("last")
        )
        changes = [f"{label} {100 * start:.1f} to {100 * end:.1f} %" for label, start, end in ends.iter_rows()]
        span = f"accuracy from severity {severities[0]} to {severities[-1]}"
        texts.append(f"{corruption or 'Corrupted'}, {span}: {', '.join(changes)}.")
    return " ".join(texts)


def _draw(identifier: str, data: pl.DataFrame) -> str:
    corruptions = data["corruption"].unique(maintain_order=True).sort().to_list()
    methods = dict(data.select("method", "label").unique(maintain_order=True).iter_rows())
    columns = min(COLUMNS, len(corruptions))
    rows = -(-len(corruptions) // columns)

    def paint(figure: Any) -> None:
        panes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for place, (axes, corruption) in enumerate(zip(panes.flat[: len(corruptions)], corruptions, strict=True)):
            shown = data.filter(pl.col("corruption").eq_missing(corruption))
            lines = [
                _line(axes, method, shown.filter(pl.col("method") == method), APART * (index - (len(methods) - 1) / 2))
                for index, method in enumerate(methods)
            ]
            axes.set_title(wrapped(corruption or "all corruptions", 26), fontsize=SMALL)
            axes.set_xticks(sorted(data["severity"].unique()))
            axes.tick_params(labelbottom=place + columns >= len(corruptions))
            open_axes(axes)
        for axes in panes.flat[len(corruptions) :]:
            axes.set_visible(False)
        panes[0, 0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        figure.supxlabel("severity", fontsize=SMALL)
        figure.supylabel("accuracy", fontsize=SMALL)
        names = [wrapped(label, 40) for label in methods.values()]
        figure.legend(
            lines, names, loc="outside upper left", ncols=COLUMNS, frameon=False, fontsize=SMALL, handlelength=4
        )

    height = ROW_INCHES * rows * (1.25 if columns == 1 else 1) + MARGIN_INCHES
    return draw(identifier, height + LEGEND_INCHES * -(-len(methods) // COLUMNS), paint)


def _line(axes: Any, method: str, rows: pl.DataFrame, aside: float) -> Any:
    """Draw one method, a little to the side of the others; the line stays whole where an interval is absent."""
    look = look_of(method)
    bounded = rows.drop_nulls(INTERVAL)
    bounds = (bounded[bound] for bound in INTERVAL)
    axes.vlines(bounded["severity"] + aside, *bounds, color=colour(look.colour), linewidth=0.9)
    (line,) = axes.plot(
        rows["severity"] + aside,
        rows["accuracy"],
        color=colour(look.colour),
        linestyle=look.dash,
        marker=look.marker,
        markersize=4,
        linewidth=1.4,
    )
    return line
