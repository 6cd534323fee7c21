"""A sweep as a picture: accuracy against the setting with the most values, one panel for each evaluation set."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

INK, GRID, PAPER = "#1f2933", "#d5dbe1", "#ffffff"
COLOURS = ("#5b7083", "#0f8b8d", "#c98a1b", "#8a5a9e", "#b3483f", "#4a7a3c")
MARKERS = ("o", "s", "^", "D", "v", "P")
PLAIN = {"accuracy_generalist": ("generalist", ":"), "accuracy_expert": ("expert", "--")}
SYMBOLS = {
    "gamma": "γ",
    "delta": "δ",
    "tau_expert": "τ_ft",
    "tau_generalist": "τ_pt",
    "lambda_min": "λ_min",
    "lambda_max": "λ_max",
    "batch_size": "batch size",
}
PANEL_INCHES, ROW_INCHES, LEGEND_INCHES = 3.4, 2.6, 0.24
METHOD = "method"


def sweep_figure(frame: pl.DataFrame, varied: Sequence[str]) -> str:
    """Draw a sweep's accuracies as an SVG document: a column of panels for each evaluation set, text kept as text.

    Across: the varied setting with the most values, evenly spaced. Lines: the varied setting with the next most. Rows
    of panels: all combinations of the others. A method without the setting across is a level line, as are generalist
    (dotted) and expert (dashed). Equal frames give equal bytes.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    across, along, others = _roles(frame, varied)
    sets = frame["evaluation_set"].unique(maintain_order=True).to_list()
    rows = frame.select(others).unique(maintain_order=True).to_dicts() if others else [{}]
    looks = _looks(frame, along)
    settings: Any = {"svg.hashsalt": "sweep", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10}
    settings |= {"text.parse_math": False, "figure.facecolor": PAPER, "axes.titlesize": 10}
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK)
    with style.context(["default", settings]):
        height = ROW_INCHES * len(rows) + LEGEND_INCHES * (len(looks) + len(PLAIN))
        figure = Figure(figsize=(PANEL_INCHES * len(sets) + 0.6, height), layout="constrained")
        panels = figure.subplots(len(rows), len(sets), squeeze=False, sharex=True, sharey="col")
        for line, row in zip(panels, rows, strict=True):
            for axes, name in zip(line, sets, strict=True):
                chosen = frame.filter(evaluation_set=name)
                for other, value in row.items():
                    chosen = chosen.filter(pl.col(other).eq_missing(pl.lit(value)))
                _draw(axes, chosen, across, along, looks, _values(frame, across))
                axes.set_title("\n".join([str(name), *(_named(other, value) for other, value in row.items())]))
            line[0].set_ylabel("accuracy, %")
        for axes in panels[-1]:
            axes.set_xlabel("" if across == METHOD else setting_symbol(across))
        handles, labels = _legend(panels[0][0], along, looks)
        figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=min(len(labels), 2 * len(sets)))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return file.getvalue()


def setting_symbol(name: str) -> str:
    """A setting as the papers write it, ft being the expert and pt the generalist."""
    return SYMBOLS.get(name, name.replace("_", " "))


def _roles(frame: pl.DataFrame, varied: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """What goes across, what the lines are, and what is left for rows of panels; methods go across only if alone."""
    ranked = sorted(varied, key=lambda name: (name == METHOD, -len(_values(frame, name)), varied.index(name)))
    across = ranked[0] if ranked else METHOD
    left = [name for name in varied if name != across]
    along = METHOD if METHOD in left else next((name for name in ranked if name in left), None)
    return across, along, [name for name in left if name != along]


def _values(frame: pl.DataFrame, name: str) -> list[Any]:
    """Distinct values of a setting, numbers ascending, others as the grid has them."""
    values = frame[name].drop_nulls().unique(maintain_order=True)
    return (values.sort() if values.dtype.is_numeric() else values).to_list()


def _looks(frame: pl.DataFrame, along: str | None) -> dict[Any, dict[str, Any]]:
    """Colour and marker of each line by its value; None stands for methods without such a setting."""
    values = [None] if along is None else frame[along].unique(maintain_order=True).to_list()
    return {
        value: {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        for place, value in enumerate(values)
    }


def _draw(
    axes: Any,
    rows: pl.DataFrame,
    across: str,
    along: str | None,
    looks: Mapping[Any, Mapping[str, Any]],
    ticks: Sequence[Any],
) -> None:
    place = {value: position for position, value in enumerate(ticks)}
    for value, line in _lines(rows, along):
        points = [(place[x], 100 * y) for x, y in line.select(across, "accuracy").rows() if None not in (x, y)]
        if points:
            xs, ys = zip(*sorted(points), strict=True)
            # A line between methods or other words would claim an order that they have not.
            axes.plot(xs, ys, linewidth=1.4 if rows[across].dtype.is_numeric() else 0, markersize=4, **looks[value])
        for level in line.filter(pl.col(across).is_null())["accuracy"].drop_nulls():
            axes.axhline(100 * level, color=looks[value]["color"], linewidth=1.4)
    for column, (_, dashes) in PLAIN.items():
        for level in rows[column].drop_nulls().unique():
            axes.axhline(100 * level, color=INK, linewidth=1, linestyle=dashes)
    slant: Any = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if across == METHOD else {}
    axes.set_xticks(range(len(ticks)), [_shown(value) for value in ticks], **slant)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _lines(rows: pl.DataFrame, along: str | None) -> Iterator[tuple[Any, pl.DataFrame]]:
    if along is None:
        yield None, rows
        return
    for (value,), line in rows.group_by(along, maintain_order=True):
        yield value, line


def _legend(axes: Any, along: str | None, looks: Mapping[Any, Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
    """Lines drawn for the legend alone: a panel may lack some of them."""
    handles, labels = [], []
    if along is not None:
        for value, look in looks.items():
            handles += axes.plot([], [], linewidth=1.4, markersize=4, **look)
            labels.append(_named(along, value))
    for name, dashes in PLAIN.values():
        handles += axes.plot([], [], color=INK, linewidth=1, linestyle=dashes)
        labels.append(name)
    return handles, labels


def _named(name: str, value: Any) -> str:
    shown = _shown(value)
    return shown if name == METHOD else f"{setting_symbol(name)} {shown}"


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
