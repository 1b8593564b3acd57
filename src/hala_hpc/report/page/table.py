"""What a report is made of, before it is written in any format: tables, plots, examples, sections."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hala_hpc.config.words import known
from hala_hpc.report.page.plots import Plot

FOLDED_FROM: Final = 40
"""Rows."""

Value = str | int | float | None


@dataclass(frozen=True)
class Cell:
    """One value. ``error`` is its standard error, in the same unit; a float is shown with ``digits`` after the point.

    ``best`` is set off; ``mark`` (of significance) stands behind the value; ``signed`` shows a plus too.
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
        value, sign = known(self.value), "+" if self.signed else ""
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, int):
            return f"{value:{sign},}"
        return f"{value:{sign},.{self.digits}f}".replace("-", "−")

    @property
    def error_text(self) -> str:
        """The standard error, with as many digits; empty where there is none."""
        return "" if known(self.error) is None else f"{self.error:,.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """``name`` is safe as a file's; every row has a cell for each column. ``folded``: long, shown on request."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    folded: bool = False


Row = Sequence[Cell | Value]


def of(
    name: str, title: str, columns: Sequence[str], rows: Sequence[Row], note: str = "", folded: bool = False
) -> Table:
    """A table of plain values and cells, folded if it is long. A column in which nothing is known is left out, unless
    it is the first.
    """
    cells = [tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows]
    kept = [at for at in range(len(columns)) if not at or not rows or any(row[at].text for row in cells)]
    shown = tuple(tuple(row[at] for at in kept) for row in cells)
    return Table(name, title, tuple(columns[at] for at in kept), shown, note, folded or len(rows) >= FOLDED_FROM)


RIGHT_TO_LEFT: Final = ("R", "AL", "AN")
"""Unicode's classes of letters and digits that run from right to left."""


def isolated(name: str) -> str:
    """A name in a sentence: one from right to left does not turn the sentence's own direction (Unicode's isolates)."""
    is_turned = any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in name)
    return f"\u2068{name}\u2069" if is_turned else name


@dataclass(frozen=True)
class Example:
    """Named texts shown as they are, each in the direction of its own script."""

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
    """The whole page. ``made`` says when it was made and by which version."""

    title: str
    made: str
    sections: tuple[Section, ...] = ()

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def plots(self) -> list[Plot]:
        return [plot for section in self.sections for plot in section.plots]
