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
    aligned = ["---:" if _is_numeric(table, column) else "---" for column in range(len(table.columns))]
    lines = [_pipes([_plain_pipe(name) for name in table.columns]), _pipes(aligned)]
    lines += [_pipes([_markdown_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join([*lines, ""])


def latex(table: Table) -> str:
    """A booktabs table. Arabic needs XeLaTeX or LuaLaTeX with a font that has it, as any LaTeX text does."""
    columns = "".join("r" if _is_numeric(table, column) else "l" for column in range(len(table.columns)))
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [_ampersands([_escaped(name) for name in table.columns]), "\\midrule"]
    lines += [_ampersands([_latex_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def comma_separated(table: Table) -> str:
    """Full numbers, not rounded ones; a column of standard errors after each that has some."""
    with_error = [any(row[column].error is not None for row in table.rows) for column in range(len(table.columns))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_doubled(table.columns, [f"{name} (standard error)" for name in table.columns], with_error))
    for row in table.rows:
        values = [known(cell.value) for cell in row]
        writer.writerow(_doubled(values, [known(cell.error) for cell in row], with_error))
    return file.getvalue()


def hypertext(table: Table) -> str:
    """A ``<table>``; each text in its own direction."""
    numeric = [_is_numeric(table, column) for column in range(len(table.columns))]
    heads = "".join(
        f'<th scope="col"{_kind(is_number)} dir="auto">{html.escape(name)}</th>'
        for name, is_number in zip(table.columns, numeric, strict=True)
    )
    body = "".join(f"<tr>{_html_row(row, numeric)}</tr>" for row in table.rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _is_numeric(table: Table, column: int) -> bool:
    cells = [row[column] for row in table.rows if row[column].value is not None]
    return bool(cells) and all(cell.is_number for cell in cells)


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain_pipe(text: str) -> str:
    """One line, and no character that Markdown or HTML would read."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _markdown_cell(cell: Cell) -> str:
    text = _plain_pipe(cell.text) or UNKNOWN
    text = f"**{text}**" if cell.best else text
    return text + (f" ± {cell.error_text}" if cell.error_text else "") + _plain_pipe(cell.mark)


def _ampersands(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


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


def _doubled(values: Sequence[Value], errors: Sequence[Value], with_error: Sequence[bool]) -> list[Value]:
    pairs = zip(values, errors, with_error, strict=True)
    return [each for value, error, has in pairs for each in ([value, error] if has else [value])]
