"""What ``hala status`` shows of a run."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.markup
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hala_hpc.cli import common
from hala_hpc.cli.views import training
from hala_hpc.config import frozen
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup
from hala_hpc.run.status import Status, WorkerStatus
from hala_hpc.slurm import queue as jobs
from hala_hpc.slurm.commands import counted
from hala_hpc.slurm.queue import Queue, QueueView

OLD_SECONDS = 1.0
"""The run is read anew after a longer wait for Slurm."""
MOST_WORKERS = 20
"""Shown one by one."""


@dataclass(frozen=True)
class RunView:
    """Everything that is shown of a run. ``progress`` is None for what is not a training.

    ``changed`` is what differs since it was planned, ``slurm`` what the recipe asks of Slurm by now.
    """

    state: Status
    progress: training.TrainingState | None
    queue: Queue
    changed: Mapping[str, tuple[Any, Any]]
    slurm: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, queue: QueueView) -> "RunView":
        before, now = frozen.read(path), frozen.now(path)
        state = lookup.state_of(path)
        began = time.monotonic()
        tasks = queue.now(state.finished)
        if time.monotonic() - began > OLD_SECONDS:  # the numbers are to be those of now
            state = lookup.state_of(path)
        slurm = now.get("site", {}).get("slurm", {})
        return cls(state, training.read(path, state), tasks, frozen.differing(before, now), slurm)

    @property
    def finished(self) -> bool:
        return self.state.finished

    def as_json(self) -> dict[str, object]:
        ends = Counter(end.state for end in self.queue.ends)  # of tasks whose worker did not say how it ended
        record = asdict(self.state) | {"finished": self.finished, "jobs": counted(self.queue.tasks)}
        record |= {"slurm_answers": not self.queue.silence, "ends": dict(ends)}
        record |= {"changed": {key: new for key, (_, new) in self.changed.items()}}
        if self.progress is not None:
            record |= {"seconds_left": self.progress.seconds_left} | self.progress.as_json()
        return record

    def shown(self) -> Group:
        state = self.state
        bar = Table.grid()  # a bar alone ends without a new line where the output is no terminal
        done = self.progress.done_share if self.progress else state.rows_done / state.rows
        bar.add_row(ProgressBar(total=1.0, completed=done, width=80))
        parts: list[Any] = [bar, common.facts(_facts(self))]
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
    folders = common.few([f"{name}/" for name in state.absent], 3, f"and {len(state.absent) - 3} more")
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
        ("changed", rich.markup.escape(changed)),
        ("jobs", jobs_in(seen.queue)),
    ]
    return [(name, line) for name, line in lines if line]


def jobs_in(queue: Queue) -> str:
    """How many jobs are in each state: 1 PENDING, 3 RUNNING."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counted(queue.tasks).items()))


def _noted(state: Status) -> str:
    """What workers did to texts on their way to the model and back."""
    kinds = {
        "thoughts": ("answer", "had thinking in front, which is left out"),
        "escaped": ("prompt", "held names of control tokens, sent as text"),
    }
    counts = {kind: sum(worker.counts.get(kind, 0) for worker in state.workers) for kind in kinds}
    return "; ".join(f"{plural(counts[kind], noun)} {what}" for kind, (noun, what) in kinds.items() if counts[kind])


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
