"""Where tables for people go."""

from rich.console import Console

WIDE = 160


def table_console() -> Console:
    """Standard output. A file or a pipe has no width of its own: names need not be folded there."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)
