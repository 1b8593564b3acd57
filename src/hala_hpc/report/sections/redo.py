"""Rows of an earlier run that a run did again: how they were chosen, what changed, and a few of them."""

from hala_hpc.config.errors import plural
from hala_hpc.data.outputs.diff import ChangedRow, diff
from hala_hpc.report import table
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.sections.rows import EXAMPLES_EACH, shortened
from hala_hpc.report.table import Example, Section, isolated
from hala_hpc.run import lineage


def section(run: ReportedRun, examples: int) -> Section | None:
    """The rows that a run did again; None for a run that did all of its own."""
    result = diff(run.path, examples * EXAMPLES_EACH)
    if result is None:
        return None
    stay = plural(run.facts.rows - result.redo["rows"], "other row")
    said = [f"{lineage.chosen(result.redo)}; {stay} of it are kept byte for byte.", lineage.changes(result.redo)]
    tables = [table.of(f"redo-{run.name}", "Rows done again", ["rows", "count"], [*result.counts.items()])]
    if result.flags:
        tables.append(table.of(f"flags-{run.name}", "Flags", ["flag", "rows before", "rows now"], result.flags))
    title = f"Rows that {isolated(run.name)} did again"
    return Section(f"again-{run.name}", title, tuple(filter(None, said)), tuple(tables), (), _examples(result.examples))


def _examples(rows: list[ChangedRow]) -> tuple[Example, ...]:
    """Each text with its translation before and now."""
    return tuple(Example(f"row {row.number:,}", tuple(shortened(_texts(row)))) for row in rows)


def _texts(row: ChangedRow) -> list[tuple[str, str]]:
    labels = ("text", "before", "now")
    return [named for text in row.texts for named in zip(labels, text, strict=True)]
