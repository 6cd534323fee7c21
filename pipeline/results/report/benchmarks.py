"""The figures of benchmarks, from the results that `pipeline bench` kept in a folder: one chart of bars for each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import RunDirectoryError
from pipeline.results.report.drawing import GRID, INK, SMALL, colour, draw, look_of, open_axes, wrapped
from pipeline.results.report.figure import Figure, counted, slug
from pipeline.results.report.places import sentences

BAR_INCHES, MARGIN_INCHES = 0.24, 0.75
# Beyond this, small values would have no length on a linear axis.
LOGARITHMIC = 20.0
CONFIDENCE = 0.95
SCHEMA = {
    "label": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "bound": pl.Float64,
    "at_least": pl.Boolean,
    "paper": pl.Float64,
    "confidence": pl.Float64,
}


def benchmark_figures(folder: Path) -> list[Figure]:
    """Draw every result in ``folder``, by name of file; :class:`RunDirectoryError` for one without, or another file."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise RunDirectoryError(f"{folder}: holds no results of benchmarks; run `pipeline bench --folder {folder}`")
    return [_figure(path, _read(path)) for path in paths]


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        required = {key: result[key] for key in ("title", "unit", "bars", "note", "command", "date", "machine")}
        pl.DataFrame(required["bars"], schema=SCHEMA)
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise RunDirectoryError(
            f"{path}: is no result of a benchmark ({type(error).__name__}: {error}); make it again or delete it"
        ) from error
    return required


def _figure(path: Path, result: Mapping[str, Any]) -> Figure:
    data = pl.DataFrame(result["bars"], schema=SCHEMA)
    machine = result["machine"]
    cores = ", ".join(
        counted(machine[name], name.removesuffix("s")) for name in ("cores", "threads") if name in machine
    )
    has_bound, has_paper = data["bound"].null_count() < len(data), data["paper"].null_count() < len(data)
    name, height = slug("bench", path.stem), MARGIN_INCHES + BAR_INCHES * len(data)
    return Figure(
        id=name,
        title=result["title"],
        caption=sentences(
            f"{result['unit'][:1].upper()}{result['unit'][1:]}.",
            _whiskers(data),
            "A bar across marks the bound that a figure is held to." if has_bound else "",
            "A diamond is what the T³ paper reports, on another machine." if has_paper else "",
            result["note"],
            f"{result['command']}, {result['date']}, {machine.get('processor')}, {cores}, {machine.get('device')}.",
        ),
        description=_describe(data),
        svg=draw(name, height, lambda figure: _paint(figure, result["unit"], data)),
        data=data,
    )


def _whiskers(data: pl.DataFrame) -> str:
    """What the whiskers are: too few turns give no 95 % interval (:func:`pipeline.benchmarks.turns.median_ratio`)."""
    with_whiskers = data.filter(pl.col("low").is_not_null())
    if with_whiskers.is_empty():
        return ""
    if (with_whiskers["confidence"].fill_null(0.0) >= CONFIDENCE).all():
        return "Whiskers: 95 % interval."
    return "Whiskers: smallest and largest of the turns, which are too few for a 95 % interval."


def _paint(figure: Any, unit: str, data: pl.DataFrame) -> None:
    axes = figure.add_subplot()
    shown = [
        value
        for name in ("value", "high", "bound", "paper")
        for value in data[name].drop_nulls().to_list()
        if value > 0
    ]
    logarithmic = bool(shown) and max(shown) > LOGARITHMIC * min(shown)
    start = min(shown) / 2 if logarithmic else 0.0
    for place, bar in enumerate(data.iter_rows(named=True)):
        tint = colour(look_of(bar["label"]).colour)
        axes.barh(place, max(bar["value"] - start, 0), left=start, height=0.5, color=tint, linewidth=0)
        if bar["low"] is not None and bar["high"] is not None:
            axes.plot([max(bar["low"], start), bar["high"]], [place, place], color=INK, linewidth=1.2)
        if bar["bound"] is not None:
            axes.plot([bar["bound"]] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2.0)
        if bar["paper"] is not None:
            axes.plot([bar["paper"]], [place], marker="D", markersize=4.5, color=INK, markerfacecolor="none")
        end = max(value for value in (bar["value"], bar["high"], bar["bound"]) if value is not None)
        axes.annotate(
            _short(bar["value"]), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=SMALL
        )
    axes.set_yticks(range(len(data)), [wrapped(label, 28) for label in data["label"]])
    axes.set(ylim=(len(data) - 0.4, -0.6), xlabel=unit)
    if logarithmic:
        axes.set_xscale("log")
        # The usual labels are powers in markup, which figures do not parse.
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter("")
    if shown:
        axes.set_xlim(start, max(shown) * (3.0 if logarithmic else 1.2))
    open_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def _describe(data: pl.DataFrame) -> str:
    parts = []
    for bar in data.iter_rows(named=True):
        bound = (
            "" if bar["bound"] is None else f" ({'at least' if bar['at_least'] else 'at most'} {_short(bar['bound'])})"
        )
        parts.append(f"{bar['label']} {_short(bar['value'])}{bound}")
    return "; ".join(parts) + "."


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
