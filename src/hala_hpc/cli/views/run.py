"""What ``hala status`` shows of a run and of a grid, and ``hala plan`` of a grid."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hala_hpc.cli import common
from hala_hpc.cli.views import mix, steward, training
from hala_hpc.config import frozen
from hala_hpc.config.errors import few, plural
from hala_hpc.data.outputs.judgements import REJECTED
from hala_hpc.data.where import FLAGGED
from hala_hpc.pipeline import lookup
from hala_hpc.run import lineage
from hala_hpc.run.status import Status, WorkerStatus
from hala_hpc.slurm import queue as jobs
from hala_hpc.slurm.commands import counted
from hala_hpc.slurm.queue import Queue, QueueView
from hala_hpc.tasks.mix import counts

OLD_SECONDS = 1.0
"""The run is read anew after a longer wait for Slurm."""
MOST_WORKERS = 20
"""Shown one by one."""


@dataclass(frozen=True)
class RunView:
    """Everything that is shown of a run. ``progress`` is None for what is not a training, ``mixed`` empty for what is
    not a finished mix.

    ``changed`` is what differs since it was planned, ``slurm`` what the recipe asks of Slurm by now.
    """

    state: Status
    progress: training.TrainingState | None
    queue: Queue
    changed: Mapping[str, tuple[Any, Any]]
    slurm: Mapping[str, Any]
    mixed: Sequence[counts.Line] = ()

    @classmethod
    def read(cls, path: Path, queue: QueueView) -> "RunView":
        before, now = frozen.read(path), frozen.now(path)
        state = lookup.state_of(path)
        began = time.monotonic()
        tasks = queue.now(state.finished)
        if time.monotonic() - began > OLD_SECONDS:  # the numbers are to be those of now
            state = lookup.state_of(path)
        slurm = now.get("site", {}).get("slurm", {})
        changes, mixed = frozen.differing(before, now), counts.read(path / "final")
        return cls(state, training.read(path, state), tasks, changes, slurm, mixed)

    @property
    def finished(self) -> bool:
        return self.state.finished

    def as_json(self) -> dict[str, object]:
        ends = Counter(end.state for end in self.queue.ends)  # of tasks whose worker did not say how it ended
        record = asdict(self.state) | {"finished": self.finished, "jobs": counted(self.queue.tasks)}
        record |= {"slurm_answers": not self.queue.silence, "ends": dict(ends)}
        record |= {"steward": steward.as_json(Path(self.state.path), self.queue)}
        record |= {"changed": {key: new for key, (_, new) in self.changed.items()}}
        record |= {"mix": self.mixed} if self.mixed else {}
        if self.progress is not None:
            record |= {"seconds_left": self.progress.seconds_left} | self.progress.as_json()
        return record

    def shown(self) -> Group:
        state = self.state
        bar = Table.grid()  # a bar alone ends without a new line where the output is no terminal
        done = self.progress.done_share if self.progress else state.rows_done / state.rows
        bar.add_row(ProgressBar(total=1.0, completed=done, width=80))
        parts: list[Any] = [bar, common.facts(_facts(self))]
        parts += [mix.table(self.mixed)] if self.mixed else []
        wholes = {worker.part_of for worker in state.workers}
        alive = [worker for worker in state.workers if worker.alive and worker.worker not in wholes]
        if alive and self.progress is None:
            parts += [Text(), _workers(alive, state.unit)]
        for error in state.errors:
            times = f"×{error['count']} " if error["count"] > 1 else ""
            parts.append(Text(f"{times}{error['worker']}: {error.get('error', error['event'])}"[:300], style="red"))
        if self.progress is not None and self.progress.failure:
            parts.append(Text(self.progress.failure, style="red"))
        states = (state, *(self.progress.preparation if self.progress is not None else ()))
        lines = advice(self.queue, Path(state.path), self.slurm, self.finished, states)
        return Group(*parts, *(Text(line, style="yellow") for line in lines))


def _facts(seen: RunView) -> list[tuple[str, str]]:
    state = seen.state
    counts = (
        f"[green]{state.done:,} done[/], {state.running:,} running, {state.waiting:,} waiting, "
        f"{f'[red]{state.failed:,} failed[/]' if state.failed else '0 failed'}, {state.shards:,} in all"
    )
    left, progress = state.seconds_left, []
    if seen.progress is not None:
        left, progress = seen.progress.seconds_left, seen.progress.rows()
    elif state.unit == "rows":
        share = f"{state.rows_done:,} of {state.rows:,} ({state.rows_done / state.rows:.1%})"
        more = f", and of {plural(state.unknown_quarantine, 'shard')} unknown" if state.unknown_quarantine else ""
        rates = f"{state.rows_per_second:,.1f} rows/s, {state.tokens_per_second:,.0f} tokens/s"
        progress = [
            ("rows", f"{share}, {state.quarantined:,} in quarantine{more}"),
            ("noted", _noted(state)),
            ("rate", rates),
        ]
    aside = f"{plural(state.damaged, 'damaged output')}, in {state.path}/damaged"
    folders = few([f"{name}/" for name in state.absent], 3, ", and {} more")
    lost = ", what was finished in them is not" if any(name.startswith("shards") for name in state.absent) else ""
    gone = f"[red]{folders}[/]: hala resume makes them again{lost}"
    is_last_step = state.unassembled and state.done == state.shards
    ended = sum(not worker.alive and not worker.part_of for worker in state.workers)
    changed = ", ".join(f"{key}={new} (was {old})" for key, (old, new) in seen.changed.items())
    lines = [
        ("run", state.path),
        ("shards" if state.unit == "rows" else state.unit, counts),
        ("set aside", aside if state.damaged else ""),
        ("gone", gone if state.absent else ""),
        ("last step", "to do: it makes final/ of all that is done" if is_last_step else ""),
        *progress,
        ("time left", "finished" if state.finished else common.human_seconds(left)),
        ("workers", f"{state.alive} alive, {ended} ended"),
        ("redo", escape(lineage.chosen(state.redo)) if state.redo else ""),
        ("differs", escape(lineage.changes(state.redo)) if state.redo else ""),
        ("changed", escape(changed)),
        ("jobs", jobs_in(seen.queue)),
        ("steward", escape(steward.line(Path(state.path), seen.queue))),
    ]
    return [(name, line) for name, line in lines if line]


def jobs_in(queue: Queue) -> str:
    """How many jobs are in each state: 1 PENDING, 3 RUNNING."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counted(queue.tasks).items()))


def _noted(state: Status) -> str:
    """What workers did to texts on their way to the model and back, and which rows were rejected or flagged."""
    kinds = {
        "thoughts": ("answer", "had thinking in front, which is left out"),
        "escaped": ("prompt", "held names of control tokens, sent as text"),
        "again": ("request", "asked again, after answers that failed a check"),
    }
    counts = {kind: sum(worker.counts.get(kind, 0) for worker in state.workers) for kind in kinds}
    notes = [f"{plural(counts[kind], noun)} {what}" for kind, (noun, what) in kinds.items() if counts[kind]]
    for prefix in (REJECTED, FLAGGED):
        rows = Counter[str]()
        for worker in state.workers:
            rows.update({name: count for name, count in worker.counts.items() if name.startswith(prefix)})
        if rows:
            ranked = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
            reasons = ", ".join(f"{count:,} {name.removeprefix(prefix)}" for name, count in ranked)
            notes.append(f"rows {prefix}{reasons}")
    return "; ".join(notes)


def _workers(alive: Sequence[WorkerStatus], unit: str) -> Table:
    columns = ("rows", "rows/s", "tokens/s", "shards") if unit == "rows" else (f"{unit} done", "at", "")
    table = common.table("worker", "job", *columns)
    for worker in alive[:MOST_WORKERS]:
        at = ", ".join(worker.working_on)
        rates = (f"{worker.rows_per_second:.1f}", f"{worker.tokens_per_second:,.0f}", at)
        table.add_row(worker.worker, worker.job, f"{worker.rows:,}", *(rates if unit == "rows" else (at, worker.doing)))
    return table


def advice(queue: Queue, path: Path, slurm: Mapping[str, Any], finished: bool, states: Sequence[Status]) -> list[str]:
    """What Slurm says that a person should know of ``states``, of a run with its data or of a grid."""
    alive = any(state.alive for state in states)
    has_progress = any(state.rows_done for state in states)
    return jobs.advice(queue, path, slurm, finished=finished, alive=alive, has_progress=has_progress)


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
        return "running" if self.state.alive else "waiting"

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
        record |= {"steward": steward.as_json(self.folder, self.queue), "slurm_answers": not self.queue.silence}
        return record | {"cells": [row.as_json() for row in self.rows]}

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
        if decided := steward.line(self.folder, self.queue):
            lines.append(Text(f"steward: {decided}"))
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
