"""A report as files: the page, Markdown, one file a table and one a plot. The folder appears whole."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import known
from hala_hpc.report.page import drawing, formats, page
from hala_hpc.report.page.section import Report, Section
from hala_hpc.run import files

FORMATS: Final = ("html", "md", "latex", "csv", "png")
RECORD: Final = "report.json"
"""In the folder: the tables as data. It marks the folder as ours: only such a one is replaced."""


def write(report: Report, target: Path, wanted: Collection[str]) -> list[Path]:
    """Write the report to the folder ``target``; an older report there is replaced. Returns its files.

    Raises HalaError where ``target`` is something else.
    """
    if target.exists() and not (target / RECORD).is_file():
        raise HalaError(f"{target} exists and is no report", "give another folder with --to")
    old = files.beside(target)
    contents = dict(_contents(report, wanted))
    if target.exists():
        target.rename(old)
    try:
        with files.whole_directory(target) as folder:
            for name, data in contents.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    files.remove_tree(old)
    return [target / name for name in contents]


def as_data(report: Report) -> dict[str, object]:
    """Title, sections and tables as plain data; a table's rows by its columns, with standard errors apart."""
    tables = {
        table.name: {
            "title": table.title,
            "rows": [
                {name: known(cell.value) for name, cell in zip(table.columns, row, strict=True)} for row in table.rows
            ],
            "standard_errors": [
                {
                    name: known(cell.error)
                    for name, cell in zip(table.columns, row, strict=True)
                    if cell.error is not None
                }
                for row in table.rows
            ],
        }
        for table in report.tables
    }
    sections = {section.name: {"title": section.title, "text": section.text} for section in report.sections}
    return {"title": report.title, "made": report.made, "sections": sections, "tables": tables}


def _contents(report: Report, wanted: Collection[str]) -> list[tuple[str, bytes]]:
    found = [(RECORD, json.dumps(as_data(report), ensure_ascii=False, indent=1, allow_nan=False).encode())]
    if "html" in wanted:
        found.append(("report.html", page.render(report).encode()))
    if "md" in wanted:
        found.append(("report.md", markdown(report, with_plots="png" in wanted).encode()))
    if "latex" in wanted:
        found += [(f"tables/{table.name}.tex", formats.latex(table).encode()) for table in report.tables]
    if "csv" in wanted:
        found += [(f"tables/{table.name}.csv", formats.comma_separated(table).encode()) for table in report.tables]
    if "png" in wanted:
        found += [(f"plots/{plot.name}.png", drawing.png(plot)) for plot in report.plots]
    return found


def markdown(report: Report, with_plots: bool) -> str:
    """The report as Markdown; plots are links to their files."""
    lines = [f"# {report.title}", "", report.made, ""]
    for section in report.sections:
        lines += _section(section, with_plots)
    return "\n".join(lines)


def _section(section: Section, with_plots: bool) -> list[str]:
    lines = [f"## {section.title}", ""]
    for text in section.text:
        lines += [text, ""]
    for table in section.tables:
        lines += [f"### {table.title}", "", formats.markdown(table)]
        lines += [table.note, ""] if table.note else []
    for plot in section.plots if with_plots else ():
        lines += [f"![{plot.says}](plots/{plot.name}.png)", ""]
    for example in section.examples:
        lines += [
            f"### {example.title}",
            "",
            *(f"- {name}: {' '.join(text.split())}" for name, text in example.texts),
            "",
        ]
    return lines
