"""Trainings: their totals in one table, their curves in the same plots."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hala_hpc.report import plots, table
from hala_hpc.report.plots import Plot, Row
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.table import Cell, Section
from hala_hpc.tasks.train import card, metrics

POINTS: Final = 400
"""Points of one curve; those of a longer training are means over neighbouring steps."""
CURVES: Final = {
    ("loss", "eval_loss"): "loss",
    ("learning_rate",): "learning rate",
    ("grad_norm",): "gradient norm",
    ("tokens_per_second",): "tokens/s",
    ("memory_gb",): "GPU memory in GB",
}
"""Keys of a step's line, the second on held-out data, and their title."""
HELD_OUT: Final = "held out"

Steps = Sequence[Mapping[str, Any]]
"""Lines of a training's metrics (``tasks.train.metrics``)."""


def section(runs: Sequence[ReportedRun]) -> Section:
    """All trainings of a report."""
    lines: dict[str, Steps] = {run.name: metrics.read(run.path) for run in runs}
    shown = tuple(plot for keys, title in CURVES.items() if (plot := _curve(lines, keys, title)))
    text = () if shown else ("No step is done yet.",)
    return Section("training", "Training", text, (_totals(runs, lines),), shown)


def _totals(runs: Sequence[ReportedRun], lines: Mapping[str, Steps]) -> table.Table:
    columns = ["run", "steps", "tokens", "last loss", HELD_OUT, "hours", "GPU-hours", "tokens/s", "MFU", "launches"]
    rows = []
    for run in runs:
        trained: Mapping[str, Any] = card.trained(run.path)
        total = trained.get
        steps = [line for line in lines[run.name] if "loss" in line]
        losses = (Cell(total(key), digits=4) for key in ("final_loss", "eval_loss"))
        learned = (total("steps"), total("tokens"), *losses)
        rates = (Cell(metrics.mean_by_time(steps, "tokens_per_second"), digits=0), metrics.mean_by_time(steps, "mfu"))
        rows.append([run.name, *learned, total("hours"), total("gpu_hours"), *rates, total("launches")])
    note = (
        "Hours are from the first to the last step of each launch; tokens/s and MFU are means over steps by their time."
    )
    return table.of("trainings", "Trainings", columns, rows, note)


def _curve(lines: Mapping[str, Steps], keys: Sequence[str], title: str) -> Plot | None:
    """The curve of each training, and with a second of ``keys`` one on held-out data beside it."""
    rows: list[Row] = [
        {"step": step, title: value, "run": curve}
        for name, steps in lines.items()
        for key, curve in zip(keys, (name, f"{name}, {HELD_OUT}"), strict=False)
        for step, value in _thinned(steps, key)
    ]
    values = [float(row[title]) for row in rows]
    if not any(values):
        return None
    shown = title[0].upper() + title[1:]
    says = f"{shown} by step of {', '.join(lines)}: from {values[0]:.4g}, least {min(values):.4g}"
    drawing = plots.lines(rows, "step", title, "run", ("step", title))
    return Plot(f"training-{keys[0].replace('_', '-')}", shown, says, drawing)


def _thinned(steps: Steps, key: str) -> list[tuple[float, float]]:
    """Means of step and value over at most POINTS neighbourhoods. A value that is not finite is left out."""
    pairs: list[tuple[Any, Any]] = [(line.get("step"), line.get(key)) for line in steps]
    known = [(float(step), float(value)) for step, value in pairs if all(map(metrics.is_finite, (step, value)))]
    parts = np.array_split(np.array(known, float), POINTS) if len(known) > POINTS else []
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts] or known
