"""What every figure of the report is: a picture, the same in words, and the data behind it."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the page.

    ``id`` is unique on the page and names the file of ``data``; ``caption`` says how to read the figure;
    ``description`` is its alternative text, with the numbers that matter; ``svg`` is an ``<svg>`` element of our own
    markup, in which what users named is escaped; ``data`` has one row for everything drawn.
    """

    id: str
    title: str
    caption: str
    description: str
    svg: str
    data: pl.DataFrame


def slug(*names: str) -> str:
    """Name for an id: letters, digits and hyphens of ``names``, in lower case."""
    text = "-".join(names).lower()
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
    return "-".join(piece for piece in letters.split("-") if piece) or "unnamed"


def counted(number: int, noun: str) -> str:
    """A count with its noun, such as ``1 sample`` or ``3,421 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
