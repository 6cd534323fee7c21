"""Matplotlib figures as SVG for the page: text stays text, colours are the page's (light, dark or paper).

Equal figures give equal bytes. Every figure is as wide as a phone shows it at about the size it is drawn; more panels
make it taller, not wider.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from textwrap import fill
from types import MappingProxyType
from typing import Any

WIDTH_INCHES = 4.8
SMALL = 8.0

LONG = re.compile(r"-?\d+\.\d{3,}")
"""Numbers with more decimals than a screen has room for: a point is a hundredth of an inch and more."""

INK, GRID = "#010203", "#010204"
PALETTE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "branch-none": ("#5b7083", "#8ca1b3"),
        "branch-expert-confident": ("#0f8b8d", "#35b3b0"),
        "branch-generalist-confident": ("#c98a1b", "#e0a83f"),
        "branch-other": ("#8a5a9e", "#b98ccc"),
        "series-generalist": ("#4c6a8c", "#94b0d0"),
        "series-expert": ("#b4591f", "#eb9a62"),
        "series-ensemble": ("#77539f", "#bb9be0"),
        "series-t3": ("#0a7476", "#3fc1bb"),
        "series-t3-batch": ("#54801c", "#a2cf5c"),
        "series-other": ("#6b7075", "#a4abb1"),
    }
)
"""CSS variables of the figures' colours, on light and on dark ground; matplotlib draws with the light one."""

VARIABLES: Mapping[str, str] = MappingProxyType(
    {INK: "currentColor", GRID: "var(--grid, #d5dbe1)"}
    | {light: f"var(--{name}, {light})" for name, (light, _) in PALETTE.items()}
)
COLOURS = re.compile("|".join(VARIABLES))


@dataclass(frozen=True, slots=True)
class Look:
    """How a method's line is told from the others, with and without colour."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


MAIN_METHODS = ("generalist", "expert", "ensemble", "t3", "t3-batch")
"""Methods that figures with a line or panel for each show, where they are there."""

_LOOKS = {
    "generalist": Look("series-generalist", "o", (0, (5.0, 2.0))),
    "expert": Look("series-expert", "s", (0, (5.0, 1.5, 1.0, 1.5))),
    "ensemble": Look("series-ensemble", "^", (0, (1.0, 1.2))),
    "t3": Look("series-t3", "D", "-"),
    "t3-batch": Look("series-t3-batch", "v", (0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0))),
}
_OTHER = Look("series-other", "P", "-")


def look_of(method: str) -> Look:
    """Look of a method by its folder; all that are not among the main ones share one."""
    return _LOOKS.get(method.split("@", maxsplit=1)[0], _OTHER)


def colour(name: str) -> str:
    """What matplotlib draws with for a colour of :data:`PALETTE`."""
    return PALETTE[name][0]


def stylesheet() -> str:
    """CSS that gives the figures' colours their values on light and dark ground and on paper."""
    light, dark = ("".join(f" --{name}: {values[place]};" for name, values in PALETTE.items()) for place in range(2))
    return "\n".join(
        [
            f":root {{{light} }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}",
            f"@media print {{ :root {{{light} }} }}",
        ]
    )


def draw(prefix: str, height: float, paint: Callable[[Any], None]) -> str:
    """Have ``paint`` fill a matplotlib figure of ``height`` inches, and return it as an ``<svg>`` for an HTML page.

    All ids in it begin with ``prefix``.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": prefix, "svg.fonttype": "none", "text.parse_math": False, "hatch.linewidth": 0.8}
    settings |= {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left"}
    settings |= {"xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.titlecolor": INK, "text.color": INK}
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with style.context(["default", settings]):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        figure.patch.set_visible(False)
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(file.getvalue(), prefix)


def open_axes(axes: Any) -> None:
    """Leave of the axes' frame only what helps to read: a line below, and faint lines across."""
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def wrapped(text: str, letters: int = 52) -> str:
    """A label on as many lines as it needs, cut at a space where there is one."""
    return fill(text, letters)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels beside ``values``, at least ``gap`` apart, in the same order, each as near as may be.

    Labels that would overlap are moved apart around the mean of what they stand for.
    """
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    groups: list[tuple[list[int], float]] = []
    for index in order:
        members, centre = [index], float(values[index])
        while groups and centre - groups[-1][1] < gap * (len(members) + len(groups[-1][0])) / 2:
            earlier, _ = groups.pop()
            members = earlier + members
            centre = sum(values[member] for member in members) / len(members)
        groups.append((members, centre))
    places = [0.0] * len(values)
    for members, centre in groups:
        for position, member in enumerate(members):
            places[member] = centre + gap * (position - (len(members) - 1) / 2)
    return places


def _for_page(document: str, prefix: str) -> str:
    """Cut the ``<svg>`` out of its XML document and suit its tags to the page; text between tags is left alone."""
    svg = document[document.index("<svg") :].strip()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    root, rest = svg[: svg.index(">")], svg[svg.index(">") :]
    root = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", root)
    root = root.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return root + re.sub(r"<[^>]+>", lambda tag: _for_tag(tag[0], prefix, used), re.sub(r"\n\s+<", "\n<", rest))


def _for_tag(tag: str, prefix: str, used: AbstractSet[str]) -> str:
    """Make the ids of a tag unique on the page, or drop them, its colours the page's, and its numbers short."""
    tag = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", tag).replace("xlink:href", "href")
    tag = re.sub(r'\stransform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r'\s(?:d|x|y)="[^"]*"', lambda found: " " + " ".join(LONG.sub(_rounded, found[0]).split()), tag)
    return COLOURS.sub(lambda found: VARIABLES[found[0]], tag)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
