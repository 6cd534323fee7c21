"""How far apart source models are, layer by layer: a figure, a table for the terminal and JSON.

Every function takes the distances of all tensors (:func:`pipeline.merging.distances.distances`) by the name of the pair
they belong to, in the order to show them. All pairs are of one architecture, so they have the same layers.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.merging.distances import ENCODER, HEAD, IMAGE_SIDE, Distance, by_component, by_layer
from pipeline.results.tables import ABSENT, decimal, whole

INK, GRID, PAPER, SHADE = "#1f2933", "#d5dbe1", "#ffffff", "#f1f4f7"
COLOURS = ("#5b7083", "#0f8b8d", "#c98a1b", "#8a5a9e", "#b3483f", "#4a7a3c")
MARKERS = ("o", "s", "^", "D", "v", "P")
COMPONENTS = (ENCODER, HEAD)
CELL_WIDTH = len("0.1234  123.45°")

LAYER_INCHES, MARGIN_INCHES, MIN_INCHES, HEIGHT_INCHES = 0.2, 1.4, 6.4, 6.4
LEGEND_INCHES_PER_LETTER, LEGEND_INCHES_PER_LINE = 0.085, 0.6

type Pairs = Mapping[str, Sequence[Distance]]


def distances_json(pairs: Pairs) -> list[dict[str, Any]]:
    """Components, layers and tensors of each pair as JSON values, unrounded.

    Null stands for an angle or cosine with a zero vector and for an infinite relative distance (from a zero vector).
    """
    return [
        {
            "pair": pair,
            "components": [_as_json(row) for row in by_component(rows)],
            "layers": [_as_json(row) for row in by_layer(rows)],
            "tensors": [_as_json(row) for row in rows],
        }
        for pair, rows in pairs.items()
    ]


def distances_table(pairs: Pairs) -> Table:
    """Tabulate relative distance and angle of every layer, a column for each pair; encoder and head as a whole first.

    Up to three pairs fit a terminal of 80 columns.
    """
    table = Table(
        title="Relative distance ‖a-b‖/‖a‖ and angle between the sources' weights",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("Layer", overflow="fold", min_width=10)
    table.add_column("Weights", justify="right", no_wrap=True)
    for pair in pairs:
        table.add_column(Text(pair), justify="right", overflow="fold", min_width=CELL_WIDTH)
    _add_rows(table, [by_component(rows) for rows in pairs.values()], "bold")
    layers = [_in_sections(by_layer(rows)) for rows in pairs.values()]
    for component in COMPONENTS:
        table.add_section()
        _add_rows(table, [[row for row in rows if row.component == component] for rows in layers], "")
    return table


def distances_figure(pairs: Pairs) -> str:
    """Draw relative distance (top) and angle (bottom) of every layer, one line for each pair, as an SVG document.

    The encoder's layers come first, the head's stand on a shaded ground. A distance that is infinite and an angle that
    says nothing (of a zero vector, of a single value) leave a gap. Equal figures give equal bytes; text stays text.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    rows = {pair: _in_sections(by_layer(tensors)) for pair, tensors in pairs.items()}
    layers = next(iter(rows.values()))
    assert all([row.name for row in other] == [row.name for row in layers] for other in rows.values())
    settings: Any = {"svg.hashsalt": "distances", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10}
    settings |= {"text.parse_math": False, "figure.facecolor": PAPER, "figure.constrained_layout.w_pad": 0.1}
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK)
    with style.context(["default", settings]):
        width = max(MIN_INCHES, MARGIN_INCHES + LAYER_INCHES * len(layers))
        figure = Figure(figsize=(width, HEIGHT_INCHES), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        _draw(top, rows.values(), _drawn_distance)
        _draw(bottom, rows.values(), _drawn_angle)
        _label_components(top, layers)
        top.set_ylabel("relative distance ‖a-b‖/‖a‖")
        bottom.set_ylabel("angle, degrees")
        bottom.set_xticks(range(len(layers)), layer_labels([row.name for row in layers]), rotation=90, fontsize=8)
        columns = _legend_columns(list(pairs), width)
        figure.legend(
            _legend_lines(top, len(pairs)), list(pairs), loc="outside upper left", ncols=columns, frameon=False
        )
        figure.align_ylabels()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return file.getvalue()


def layer_labels(names: Sequence[str]) -> list[str]:
    """Short labels of consecutive layers: no ``visual.``, and only the number where the name before is the same."""
    short = [name.removeprefix(IMAGE_SIDE) for name in names]
    labels = short[:1]
    for (before, after), label in zip(pairwise(names), short[1:], strict=True):
        stem, _, number = after.rpartition(".")
        continues = number.isdecimal() and before.rpartition(".")[0] == stem and before.rpartition(".")[2].isdecimal()
        labels.append(number if continues else label)
    return labels


def _in_sections(layers: Sequence[Distance]) -> list[Distance]:
    return [row for component in COMPONENTS for row in layers if row.component == component]


def _as_json(row: Distance) -> dict[str, Any]:
    return {
        "name": row.name,
        "component": row.component,
        "elements": row.elements,
        "relative_distance": row.relative if math.isfinite(row.relative) else None,
        "cosine": row.cosine,
        "angle_degrees": row.angle,
    }


def _add_rows(table: Table, columns: Sequence[Sequence[Distance]], style: str) -> None:
    for rows in zip(*columns, strict=True):
        cells = [rows[0].name, whole(rows[0].elements), *(_cell(row) for row in rows)]
        table.add_row(*(Text(cell, style=style) for cell in cells))


def _cell(row: Distance) -> str:
    relative = "∞" if math.isinf(row.relative) else decimal(row.relative, 4)
    return f"{relative} {ABSENT if row.angle is None else decimal(row.angle) + '°':>8}"


def _drawn_distance(row: Distance) -> float:
    return row.relative if math.isfinite(row.relative) else math.nan


def _drawn_angle(row: Distance) -> float:
    return math.nan if row.angle is None or row.elements == 1 else row.angle


def _draw(axes: Any, pairs: Iterable[Sequence[Distance]], figure_of: Callable[[Distance], float]) -> None:
    """Draw one line for each pair and component; the shaded ground is the head's."""
    spans: dict[str, tuple[int, int]] = {}
    for number, rows in enumerate(pairs):
        spans = _spans(rows)
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for first, last in spans.values():
            values = [figure_of(row) for row in rows[first : last + 1]]
            axes.plot(range(first, last + 1), values, linewidth=1.4, markersize=3.5, **look)
    if HEAD in spans:
        axes.axvspan(spans[HEAD][0] - 0.5, spans[HEAD][1] + 0.5, color=SHADE, linewidth=0, zorder=0)
    axes.set_xlim(-0.5, max(last for _, last in spans.values()) + 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _spans(layers: Sequence[Distance]) -> dict[str, tuple[int, int]]:
    """First and last place of the layers of each component that has any."""
    places = {name: [place for place, row in enumerate(layers) if row.component == name] for name in COMPONENTS}
    return {name: (found[0], found[-1]) for name, found in places.items() if found}


def _label_components(axes: Any, layers: Sequence[Distance]) -> None:
    for component, (first, last) in _spans(layers).items():
        axes.annotate(
            component, ((first + last) / 2, 1.02), xycoords=("data", "axes fraction"), ha="center", va="bottom"
        )


def _legend_lines(axes: Any, pairs: int) -> list[Any]:
    """One of the lines of each pair: it has as many as there are components."""
    lines = axes.get_lines()
    return list(lines[:: len(lines) // pairs])


def _legend_columns(pairs: Sequence[str], width: float) -> int:
    entry = LEGEND_INCHES_PER_LINE + LEGEND_INCHES_PER_LETTER * max(len(pair) for pair in pairs)
    return max(1, min(len(pairs), int(width / entry)))
