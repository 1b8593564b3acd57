"""Tables as Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hala_hpc.config.words import known
from hala_hpc.report.page.table import Cell, Table, Value

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
