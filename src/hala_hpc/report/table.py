"""What a report is made of (tables, plots, examples, sections), and tables as Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hala_hpc.config.errors import known
from hala_hpc.report.plots import Plot

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


UNKNOWN: Final = "–"
LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
} | {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class Markup:
    """How a format writes texts, the best cell of a column, standard errors, and marks of significance."""

    escape: Callable[[str], str]
    best: str
    error: str
    mark: str

    def cell(self, cell: Cell) -> str:
        text = self.escape(cell.text or UNKNOWN)
        text = self.best.format(text) if cell.best else text
        error = self.error.format(cell.error_text) if cell.error_text else ""
        return text + error + (self.mark.format(self.escape(cell.mark)) if cell.mark else "")


def _piped(text: str) -> str:
    """One line, and no character that Markdown or HTML would read."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


MARKDOWN: Final = Markup(_piped, "**{}**", " ± {}", "{}")
TEX: Final = Markup(_escaped, r"\textbf{{{}}}", r"{{\tiny\,$\pm$\,{}}}", r"\textsuperscript{{{}}}")
HTML: Final = Markup(html.escape, "<strong>{}</strong>", ' <span class="error">± {}</span>', "<sup>{}</sup>")


def markdown(table: Table) -> str:
    """A pipe table, numbers to the right."""
    aligned = ["---:" if is_number else "---" for is_number in _numeric(table)]
    rows = [map(_piped, table.columns), aligned, *(map(MARKDOWN.cell, row) for row in table.rows)]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), ""])


def latex(table: Table) -> str:
    """A booktabs table. Arabic needs XeLaTeX or LuaLaTeX and a font that has it, as in any LaTeX text."""
    columns = "".join("r" if is_number else "l" for is_number in _numeric(table))
    rows = [map(_escaped, table.columns), *(map(TEX.cell, row) for row in table.rows)]
    head, *body = (f"{' & '.join(row)} \\\\" for row in rows)
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", head, "\\midrule"]
    return "\n".join([*lines, *body, "\\bottomrule", "\\end{tabular}", ""])


def comma_separated(table: Table) -> str:
    """Full numbers, not rounded ones; a column of standard errors after each that has some."""
    columns: list[list[Value]] = []
    for at, name in enumerate(table.columns):
        cells = [row[at] for row in table.rows]
        columns.append([name, *(known(cell.value) for cell in cells)])
        if any(cell.error is not None for cell in cells):
            columns.append([f"{name} (standard error)", *(known(cell.error) for cell in cells)])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))
    return file.getvalue()


def hypertext(table: Table) -> str:
    """A ``<table>``; each text in its own direction."""
    kinds = [' class="number"' if is_number else "" for is_number in _numeric(table)]
    heads = (
        f'<th scope="col"{kind} dir="auto">{html.escape(name)}</th>'
        for kind, name in zip(kinds, table.columns, strict=True)
    )
    tags = [f'<th scope="row"{kinds[0]} dir="auto">', *(f"<td{kind or ' dir=auto'}>" for kind in kinds[1:])]
    rows = (
        "".join(f"{tag}{HTML.cell(cell)}</{tag[1:3]}>" for tag, cell in zip(tags, row, strict=True))
        for row in table.rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table>"


def _numeric(table: Table) -> list[bool]:
    """Whether all that is known in a column are numbers, by column."""
    columns = [[row[at] for row in table.rows if row[at].value is not None] for at in range(len(table.columns))]
    return [bool(cells) and all(cell.is_number for cell in cells) for cells in columns]
