"""The table of methods for people."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.methods import Method


def methods_table(methods: Iterable[Method]) -> Table:
    """One row a method: cost class, what it needs, settings with defaults, formula and source."""
    table = Table(title="Methods", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_lines=True)
    table.add_column("Method", no_wrap=True, style="bold")
    table.add_column("Cost", no_wrap=True)
    for title in ("Formula, source", "Needs", "Settings"):
        table.add_column(title, overflow="fold")
    for method in methods:
        settings = ", ".join(f"{setting.name}={_shown(setting.default)}" for setting in method.settings)
        about = Text.assemble(method.formula, ("\n" + method.source, "dim"))
        table.add_row(Text(method.name), method.cost, about, ", ".join(method.needs), settings)
    return table


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
