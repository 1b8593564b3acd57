"""One table for all cells of a grid: how far each is and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Group
from rich.text import Text

from hala_hpc.cli import common
from hala_hpc.cli.views import training
from hala_hpc.cli.views.run import advice, jobs_in
from hala_hpc.config import frozen
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup
from hala_hpc.run.status import Status
from hala_hpc.slurm.commands import counted
from hala_hpc.slurm.queue import Queue, QueueView

NOT_RUN: Final = {"as_is": "as it is", "excluded": "left out"}
COLOURS: Final = {"done": "green", "running": "cyan", "failed": "red"}


@dataclass(frozen=True)
class Row:
    """A cell and the state of its run; None for a cell that is not a run."""

    cell: lookup.CellRecord
    state: Status | None = None
    progress: training.TrainingState | None = None

    @property
    def is_finished(self) -> bool:
        return self.state is None or self.state.finished

    @property
    def word(self) -> str:
        """How its run is doing, or why there is none."""
        if self.state is None:
            return why(self.cell)
        if self.state.finished or self.state.failed:
            return "done" if self.state.finished else "failed"
        return "running" if training.is_alive(self.state) else "waiting"

    def as_json(self) -> dict[str, object]:
        record = {**self.cell, "status": self.word}
        if self.state is not None:
            record |= {"run": self.state.path, "rows": self.state.rows, "rows_done": self.state.rows_done}
        return record | (self.progress.as_json() if self.progress is not None else {})


@dataclass(frozen=True)
class GridView:
    """Everything that is shown of a grid."""

    folder: Path
    rows: Sequence[Row]
    queue: Queue

    @classmethod
    def read(cls, folder: Path, queue: QueueView) -> "GridView":
        rows = []
        for cell in lookup.cells(folder):
            path = folder / cell["name"]
            state = lookup.state_of(path) if cell["state"] == "run" else None
            rows.append(Row(cell, state, training.read(path, state) if state is not None else None))
        return cls(folder, rows, queue.now(all(row.is_finished for row in rows)))

    @property
    def finished(self) -> bool:
        return all(row.is_finished for row in self.rows)

    def as_json(self) -> dict[str, object]:
        record = {"grid": str(self.folder), "finished": self.finished, "jobs": counted(self.queue.tasks)}
        return record | {"slurm_answers": not self.queue.silence, "cells": [row.as_json() for row in self.rows]}

    def shown(self) -> Group:
        is_training = any(row.progress is not None for row in self.rows)
        numbers = "step loss evaluation tokens/s left" if is_training else "rows quarantine rows/s left"
        table = common.table("cell", *self.rows[0].cell["values"], "", *numbers.split())
        for row in self.rows:
            word = Text(row.word, style=COLOURS.get(row.word, "dim"))
            cells = (_trained if is_training else _counted)(row)
            table.add_row(row.cell["name"], *row.cell["values"].values(), word, *cells)
        words = [row.word for row in self.rows if row.state is not None]
        counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(("done", *words)))
        lines = [Text(f"{counts} of {plural(len(words), 'run')}: {self.folder}")]
        if jobs := jobs_in(self.queue):
            lines.append(Text(f"jobs: {jobs}"))
        return Group(table, *lines, *(Text(line, style="yellow") for line in self._advice()))

    def _advice(self) -> list[str]:
        states = [row.state for row in self.rows if row.state is not None]
        data = [state for row in self.rows if row.progress is not None for state in row.progress.preparation]
        slurm = frozen.now(Path(states[0].path)).get("site", {}).get("slurm", {})
        return advice(self.queue, self.folder, slurm, self.finished, [*states, *data])


def why(cell: lookup.CellRecord) -> str:
    """Why a cell is not a run of its own."""
    if cell["state"] == "same":
        return f"same as {cell['same_as']}"
    model = f": {cell['model']}" if cell.get("model") else ""
    return f"{NOT_RUN[cell['state']]}{model}" if cell["state"] in NOT_RUN else ""


def _trained(row: Row) -> list[str]:
    now = row.progress.training if row.progress is not None else None
    if row.state is None or row.progress is None or now is None:
        return [""] * 5
    left = None if row.state.finished else row.progress.seconds_left
    numbers = ((now.loss, "{:.4f}"), (now.eval_loss, "{:.4f}"), (now.tokens_per_second, "{:,.0f}"))
    cells = ["" if number is None else form.format(number) for number, form in numbers]
    return [f"{now.step:,}/{now.steps or 0:,}", *cells, "" if left is None else common.human_seconds(left)]


def _counted(row: Row) -> list[str]:
    state = row.state
    if state is None:
        return [""] * 4
    left = "" if state.finished or state.seconds_left is None else common.human_seconds(state.seconds_left)
    return [f"{state.rows_done:,}/{state.rows:,}", f"{state.quarantined:,}", f"{state.rows_per_second:,.1f}", left]
