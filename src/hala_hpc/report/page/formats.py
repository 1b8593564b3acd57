"""Tables as Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
import re
from collections.abc import Sequence
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


def markdown(table: Table) -> str:
    """A pipe table, numbers to the right."""
    aligned = ["---:" if is_number else "---" for is_number in _numeric(table)]
    rows = [map(_plain_pipe, table.columns), aligned, *(map(_markdown_cell, row) for row in table.rows)]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), ""])


def latex(table: Table) -> str:
    """A booktabs table. Arabic needs XeLaTeX or LuaLaTeX and a font that has it, as in any LaTeX text."""
    columns = "".join("r" if is_number else "l" for is_number in _numeric(table))
    head, *body = (
        f"{' & '.join(row)} \\\\"
        for row in [map(_escaped, table.columns), *(map(_latex_cell, row) for row in table.rows)]
    )
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", head, "\\midrule"]
    return "\n".join([*lines, *body, "\\bottomrule", "\\end{tabular}", ""])


def comma_separated(table: Table) -> str:
    """Full numbers, not rounded ones; a column of standard errors after each that has some."""
    file = io.StringIO()
    columns: list[list[Value]] = []
    for at, name in enumerate(table.columns):
        cells = [row[at] for row in table.rows]
        columns.append([name, *(known(cell.value) for cell in cells)])
        if any(cell.error is not None for cell in cells):
            columns.append([f"{name} (standard error)", *(known(cell.error) for cell in cells)])
    csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))
    return file.getvalue()


def hypertext(table: Table) -> str:
    """A ``<table>``; each text in its own direction."""
    numeric = _numeric(table)
    heads = "".join(
        f'<th scope="col"{_kind(is_number)} dir="auto">{html.escape(name)}</th>'
        for name, is_number in zip(table.columns, numeric, strict=True)
    )
    body = "".join(f"<tr>{_html_row(row, numeric)}</tr>" for row in table.rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _numeric(table: Table) -> list[bool]:
    """Whether all that is known in a column are numbers, by column."""
    columns = [[row[at] for row in table.rows if row[at].value is not None] for at in range(len(table.columns))]
    return [bool(cells) and all(cell.is_number for cell in cells) for cells in columns]


def _plain_pipe(text: str) -> str:
    """One line, and no character that Markdown or HTML would read."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _markdown_cell(cell: Cell) -> str:
    text = _plain_pipe(cell.text) or UNKNOWN
    text = f"**{text}**" if cell.best else text
    return text + (f" ± {cell.error_text}" if cell.error_text else "") + _plain_pipe(cell.mark)


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_cell(cell: Cell) -> str:
    text = _escaped(cell.text or UNKNOWN)
    text = f"\\textbf{{{text}}}" if cell.best else text
    error = f"{{\\tiny\\,$\\pm$\\,{cell.error_text}}}" if cell.error_text else ""
    return text + error + (f"\\textsuperscript{{{_escaped(cell.mark)}}}" if cell.mark else "")


def _html_row(row: Sequence[Cell], numeric: Sequence[bool]) -> str:
    cells = [
        f"<td{_kind(is_number)}{'' if is_number else ' dir=auto'}>{_html_cell(cell)}</td>"
        for cell, is_number in zip(row, numeric, strict=True)
    ]
    return f'<th scope="row"{_kind(numeric[0])} dir="auto">{_html_cell(row[0])}</th>{"".join(cells[1:])}'


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text) or UNKNOWN
    text = f"<strong>{text}</strong>" if cell.best else text
    error = f' <span class="error">± {cell.error_text}</span>' if cell.error_text else ""
    return text + error + (f"<sup>{html.escape(cell.mark)}</sup>" if cell.mark else "")


def _kind(is_number: bool) -> str:
    return ' class="number"' if is_number else ""
