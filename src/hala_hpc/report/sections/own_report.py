"""What a run wrote down of itself in ``final/report.json``: a quantized model, a comparison."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hala_hpc.report.page import table
from hala_hpc.report.page.table import Cell, Section, Table, Value, isolated
from hala_hpc.report.runs import Run
from hala_hpc.report.sections import comparisons

REPORT: Final = "report.json"
MOST_ROWS: Final = 200
DIGITS: Final = 4


def section(run: Run) -> Section | None:
    """The run's own report; None where it has none."""
    try:
        told = json.loads((run.path / "final" / REPORT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict):
        return None
    if told.get("kind") == "compare":
        return comparisons.section(run, told)
    tables = tables_of(told, f"report-{run.name}")
    return Section(f"report-{run.name}", f"Report of {isolated(run.name)}", tables=tuple(tables)) if tables else None


def tables_of(told: Mapping[str, Any], name: str) -> list[Table]:
    """Plain data as tables: what is single as one, each list and each group of alike things as one of its own."""
    single = {_said(key): value for key, value in told.items() if _is_plain(value)}
    found = [_facts(single, name, "Facts")] if single else []
    for key, value in told.items():
        if _is_plain(value) or not value:
            continue
        found.append(_grouped(value, f"{name}-{_safe(key)}", _said(key).capitalize()))
    return found


def _grouped(value: Any, name: str, title: str) -> Table:
    """A list of things, or things by name, each a row; or one thing, with a row for each fact."""
    lines = (
        value if isinstance(value, list) else [{"": key, **one} for key, one in value.items() if isinstance(one, dict)]
    )
    alike = [_flat(line) for line in lines if isinstance(line, dict)]
    if len(alike) < len(value):
        return _facts(_flat(value) if isinstance(value, dict) else dict(enumerate(map(str, value), 1)), name, title)
    columns = list(dict.fromkeys(key for line in alike for key in line))
    rows: list[list[Cell | Value]] = [[_cell(line.get(key)) for key in columns] for line in alike[:MOST_ROWS]]
    note = f"The first {MOST_ROWS} of {len(alike):,}." if len(alike) > MOST_ROWS else ""
    return table.of(name, title, columns, rows, note)


def _facts(facts: Mapping[Any, Any], name: str, title: str) -> Table:
    rows: list[list[Cell | Value]] = [[str(key), _cell(value)] for key, value in facts.items()]
    return table.of(name, title, ["", "value"], rows)


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested facts side by side; lists as one text."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{before}{_said(key)}"
        found |= _flat(inner, f"{name} ") if isinstance(inner, dict) else {name: inner}
    return found


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, list):
        return Cell(", ".join(map(str, value)))
    if isinstance(value, str) and value.startswith("/"):
        return Cell(Path(value).name)  # a report is shown to others: folders tell who worked where
    return Cell(value, digits=DIGITS)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _said(key: str) -> str:
    return str(key).replace("_", " ")


def _safe(key: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in str(key))
