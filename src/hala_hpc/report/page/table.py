"""Tables as data: what a cell says is decided once, ``formats`` writes it."""

import math
from dataclasses import dataclass

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
