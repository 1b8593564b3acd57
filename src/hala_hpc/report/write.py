"""From runs to a report, and a report as files: the page, Markdown, one file a table and one a plot."""

import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hala_hpc import __version__
from hala_hpc.config.errors import HalaError, known
from hala_hpc.report import page, plots, runs
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.sections import (
    evaluation_plots,
    evaluations,
    judgements,
    merges,
    own_report,
    redo,
    rows,
    scores,
    trainings,
    workers,
)
from hala_hpc.report.table import Report, Section, comma_separated, latex
from hala_hpc.report.table import markdown as table_markdown
from hala_hpc.run import files
from hala_hpc.tasks.evaluate import choose

FORMATS: Final = ("html", "md", "latex", "csv", "png")
RECORD: Final = "report.json"
"""In the folder: the tables as data. It marks the folder as ours: only such a one is replaced."""


def write(report: Report, target: Path, wanted: Collection[str]) -> list[Path]:
    """Write the report to the folder ``target``; an older report there is replaced. Returns its files.

    Raises HalaError where ``target`` is something else.
    """
    if target.exists() and not (target / RECORD).is_file():
        raise HalaError(f"{target} exists and is not a report", "give another folder with --to")
    contents = dict(_contents(report, wanted))
    with files.whole_directory(target, replace=True) as folder:
        for name, data in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    return [target / name for name in contents]


def as_data(report: Report) -> dict[str, object]:
    """Title, sections and tables as plain data; a table's rows by its columns, with standard errors apart."""
    tables = {}
    for table in report.tables:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        tables[table.name] = {
            "title": table.title,
            "rows": [{name: known(cell.value) for name, cell in row.items()} for row in rows],
            "standard_errors": [
                {name: known(cell.error) for name, cell in row.items() if cell.error is not None} for row in rows
            ],
        }
    sections = {section.name: {"title": section.title, "text": section.text} for section in report.sections}
    return {"title": report.title, "made": report.made, "sections": sections, "tables": tables}


def _contents(report: Report, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    yield RECORD, json.dumps(as_data(report), ensure_ascii=False, indent=1, allow_nan=False).encode()
    if "html" in wanted:
        yield "report.html", page.render(report).encode()
    if "md" in wanted:
        yield "report.md", markdown(report, with_plots="png" in wanted).encode()
    if "latex" in wanted:
        yield from ((f"tables/{table.name}.tex", latex(table).encode()) for table in report.tables)
    if "csv" in wanted:
        yield from ((f"tables/{table.name}.csv", comma_separated(table).encode()) for table in report.tables)
    if "png" in wanted:
        yield from ((f"plots/{plot.name}.png", plots.png(plot)) for plot in report.plots)


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
        lines += [f"### {table.title}", "", table_markdown(table)]
        lines += [table.note, ""] if table.note else []
    for plot in section.plots if with_plots else ():
        lines += [f"![{plot.says}](plots/{plot.name}.png)", ""]
    for example in section.examples:
        texts = (f"- {name}: {' '.join(text.split())}" for name, text in example.texts)
        lines += [f"### {example.title}", "", *texts, ""]
    return lines


@dataclass(frozen=True)
class ReportOptions:
    """What a person may choose: the base's label, patterns of models and benchmarks, how many examples, a title."""

    base: str = ""
    models: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    examples: int = 1
    title: str = ""


OF_ROWS: Final = (scores.section, rows.section, judgements.section, redo.section)
"""Sections that show some rows as examples."""


def gather(paths: Sequence[Path], options: ReportOptions) -> Report:
    """The report on some runs, finished or not. Raises HalaError where ``options`` name what is not there."""
    shown = runs.read(paths)
    if not shown:
        raise HalaError("no run to report on")
    sections = [*_scores(shown, options), runs.overview(shown)]
    if trained := [run for run in shown if run.kind == "train"]:
        sections.append(trainings.section(trained))
    for run in shown:
        own = (merges.section(run), own_report.section(run))
        of_rows = (section(run, options.examples) for section in OF_ROWS)
        sections += filter(None, (*own, *of_rows))
    sections += map(workers.section, shown)
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    title = options.title or ", ".join(run.name for run in shown[:4]) + (" …" if len(shown) > 4 else "")
    return Report(title, f"Made by hala_hpc {__version__}, {now}", tuple(sections))


def _scores(shown: Sequence[ReportedRun], options: ReportOptions) -> Iterator[Section]:
    """Scores, their curve over weights or steps, and the choice; nothing where no run is an evaluation."""
    evaluated = [run for run in shown if run.kind == "evaluate"]
    if not evaluated:
        return
    if not any(run.status.done for run in evaluated):
        yield Section("scores", "Scores", ("No benchmark is finished yet.",))
        return
    together = choose.evaluations([run.path for run in evaluated], options.base).only(
        options.models, options.benchmarks
    )
    yield evaluations.section(together, options.examples)
    yield from filter(None, [evaluation_plots.section(together), *map(evaluations.choice, evaluated)])
