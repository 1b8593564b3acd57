"""What a report is made of, before it is written in any format: tables, plots, examples, sections."""

import math
import unicodedata
from dataclasses import dataclass, field
from typing import Final

from hala_hpc.report.page.plots import Plot

FOLDED_FROM = 40
"""Rows."""

Value = str | int | float | None


@dataclass(frozen=True)
class Cell:
    """One value. ``error`` is its standard error, in the same unit; ``digits`` are shown after the point of a float.

    ``best`` is set off; ``mark`` stands behind it (of significance); ``signed`` shows a plus too.
    """

    value: Value
    error: float | None = None
    digits: int = 2
    best: bool = False
    mark: str = ""
    signed: bool = False

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, int | float)

    @property
    def text(self) -> str:
        """As people read it, without error and mark; empty for what is not known."""
        value = self.value
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return ""
        if isinstance(value, str):
            return value
        sign = "+" if self.signed else ""
        if isinstance(value, int):
            return f"{value:{sign},}"
        return f"{value:{sign},.{self.digits}f}".replace("-", "−")

    @property
    def error_text(self) -> str:
        """The standard error, with as many digits; empty where there is none."""
        return f"{self.error:,.{self.digits}f}" if self.error is not None and math.isfinite(self.error) else ""


@dataclass(frozen=True)
class Table:
    """``name`` is safe as a file's; every row has a cell for each column. ``folded``: long, shown on request."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    folded: bool = False


def of(
    name: str, title: str, columns: list[str], rows: list[list[Cell | Value]], note: str = "", folded: bool = False
) -> Table:
    """A table of plain values and cells, folded if it is long. Columns in which nothing is known, but the first, go."""
    made = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    kept = [place for place in range(len(columns)) if not place or not rows or any(row[place].text for row in made)]
    return Table(
        name,
        title,
        tuple(columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in made),
        note,
        folded or len(rows) >= FOLDED_FROM,
    )


RIGHT_TO_LEFT: Final = ("R", "AL", "AN")
"""Unicode's classes of letters and digits that run from right to left."""


def isolated(name: str) -> str:
    """A name in a sentence: one from right to left does not turn the sentence's own direction (Unicode's isolates)."""
    is_turned = any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in name)
    return f"\u2068{name}\u2069" if is_turned else name


@dataclass(frozen=True)
class Example:
    """Something shown as it is: named texts, each in the direction of its own script."""

    title: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """One part of the page. ``name`` is unique, and safe as a file's name and an anchor."""

    name: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Report:
    """The whole. ``made`` says when and by which version."""

    title: str
    made: str
    sections: tuple[Section, ...] = field(default=())

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def plots(self) -> list[Plot]:
        return [plot for section in self.sections for plot in section.plots]
