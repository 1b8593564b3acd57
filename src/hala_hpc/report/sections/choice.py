"""A choice that ``hala best`` wrote down, as a part of a report."""

import json
from typing import Any

from hala_hpc.report.page import table
from hala_hpc.report.page.section import Section, isolated
from hala_hpc.report.page.table import Cell, Value
from hala_hpc.report.runs import Run
from hala_hpc.tasks.evaluate.scores import PERCENT

RECORD = "best.json"
"""In the folder of the evaluation's run."""


def section(run: Run) -> Section | None:
    """Which model was chosen, by what, from which table; None where nothing was, or its record cannot be read."""
    try:
        told: dict[str, Any] = json.loads((run.path / RECORD).read_text("utf-8"))
        share, benchmarks = told["split"]["share"], ", ".join(told["benchmarks"])
        by = "all questions" if share == 1 else f"{share:.0%} of the questions (seed {told['split']['seed']})"
        text = (
            f"Chosen: {isolated(told['model'])}, by the rule {told['rule']['name']}: {told['rule']['says']}. "
            f"It was applied to {by} of {benchmarks}."
        )
        rows = [_row(told["model"], candidate) for candidate in told["candidates"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = f"chosen-{run.name}"
    columns = ["model", "chosen by", "held out", "fits the rule", "weights"]
    note = (
        "Averages in percent with standard errors. What is held out had no say, so it tells what the choice is worth."
    )
    shown = table.of(name, "Candidates", columns, rows, note)
    return Section(name, f"Choice from {isolated(run.name)}", (text,), (shown,))


def _row(chosen: str, candidate: dict[str, Any]) -> list[Cell | Value]:
    cells = [
        Cell(mean["value"] * PERCENT, _percent(mean["error"]), best=candidate["model"] == chosen) if mean else None
        for mean in (candidate["chosen_by"], candidate["held_out"])
    ]
    return [candidate["model"], *cells, "yes" if candidate["fits"] else "no", candidate["weights"][:12]]


def _percent(error: float | None) -> float | None:
    return None if error is None else error * PERCENT
