"""Trainings: their totals in one table, their curves in the same plots."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hala_hpc.report.page import plots, table
from hala_hpc.report.page.plots import Plot
from hala_hpc.report.page.table import Section
from hala_hpc.report.runs import Run
from hala_hpc.tasks.train import card, metrics

POINTS: Final = 400
"""Of one curve; of a longer training each is a mean over neighbouring steps."""
CURVES: Final = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "memory_gb": "GPU memory in GB",
}
"""Besides the loss: key of a step's line, and its title."""
HELD_OUT: Final = "held out"

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
"""Of each run, its steps."""


def section(runs: Sequence[Run]) -> Section:
    """All trainings of a report."""
    lines = {run.name: metrics.read(run.path) for run in runs}
    drawn = [_loss(lines), *(_curve(lines, key, title) for key, title in CURVES.items())]
    shown = tuple(plot for plot in drawn if plot is not None)
    text = () if shown else ("No step is done yet.",)
    return Section("training", "Training", text, (_totals(runs, lines),), shown)


def _totals(runs: Sequence[Run], lines: Lines) -> table.Table:
    columns = ["run", "steps", "tokens", "last loss", "held out", "hours", "GPU-hours", "tokens/s", "MFU", "launches"]
    rows: list[list[table.Cell | table.Value]] = []
    for run in runs:
        totals: Mapping[str, Any] = card.trained(run.path)
        steps = [line for line in lines[run.name] if "loss" in line]
        rows.append(
            [
                run.name,
                *(totals.get(key) for key in ("steps", "tokens")),
                *(table.Cell(totals.get(key), digits=4) for key in ("final_loss", "eval_loss")),
                *(table.Cell(totals.get(key)) for key in ("hours", "gpu_hours")),
                table.Cell(metrics.mean_by_time(steps, "tokens_per_second"), digits=0),
                metrics.mean_by_time(steps, "mfu"),
                totals.get("launches"),
            ]
        )
    note = (
        "Hours are from the first to the last step of each launch; tokens/s and MFU are means over steps by their time."
    )
    return table.of("trainings", "Trainings", columns, rows, note)


def _loss(lines: Lines) -> Plot | None:
    rows: list[dict[str, Any]] = []
    for name, steps in lines.items():
        for key, curve in (("loss", name), ("eval_loss", f"{name}, {HELD_OUT}")):
            rows += [{"step": step, "loss": value, "run": curve} for step, value in _thinned(steps, key)]
    if not rows:
        return None
    says = (
        f"Loss by step of {', '.join(lines)}: from {rows[0]['loss']:.4g}, least {min(row['loss'] for row in rows):.4g}"
    )
    return Plot("training-loss", "Loss", says, plots.lines(rows, "step", "loss", "run", ("step", "loss")))


def _curve(lines: Lines, key: str, title: str) -> Plot | None:
    rows = [
        {"step": step, title: value, "run": name}
        for name, steps in lines.items()
        for step, value in _thinned(steps, key)
    ]
    if not any(row[title] for row in rows):
        return None
    says = f"{title} by step of {', '.join(lines)}"
    name = f"training-{key.replace('_', '-')}"
    return Plot(name, title[0].upper() + title[1:], says, plots.lines(rows, "step", title, "run", ("step", title)))


def _thinned(steps: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Means of step and value over at most POINTS neighbourhoods; a value that is no number is left out."""
    known = [(line["step"], line[key]) for line in steps if _is_finite(line.get(key))]
    if len(known) <= POINTS:
        return [(float(step), float(value)) for step, value in known]
    parts = np.array_split(np.array(known, float), POINTS)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
