"""Tables in a file or a pipe are not folded at a width that nobody asked for."""

import pytest
from rich.table import Table

from pipeline.console import table_console


def test_names_are_not_folded_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # A batch system may hand on the width of the terminal that a job was submitted from.
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"a-long-name-of-number-{number}" for number in range(5)]
    table_console().print(Table(*names))
    out = capsys.readouterr().out
    assert all(name in out for name in names)
