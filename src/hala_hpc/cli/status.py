"""``hala status``: how far a run is."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup

if TYPE_CHECKING:
    from hala_hpc.cli.views.training import TrainingState
    from hala_hpc.run.status import Status, WorkerStatus
    from hala_hpc.slurm.queue import Asked, Queue

WATCH_SECONDS = 2.0
OLD_SECONDS = 1.0
"""After so long a wait for Slurm the run is looked at anew."""
MOST_WORKERS = 20
"""Shown one by one."""


@click.command()
@common.run_argument
@click.option("--watch", is_flag=True, help="Keep showing it until the run is finished.")
@common.as_json
def command(run: str, watch: bool, json_: bool) -> None:
    r"""Show shards done, running, waiting and failed, rows/s, tokens/s, time left, workers and the last errors.

    Of a training: its step, loss with its curve, evaluation, rate, last checkpoint and time left.

    \b
    hala status translate-openorca --watch
    hala status runs/demo --json | jq .rows_per_second
    """
    from hala_hpc.cli.views import grid as grid_status
    from hala_hpc.pipeline import grid

    if folder := grid.find(run):
        grid_status.status(folder, watch, json_)
        return
    path = lookup.find(run)
    if json_:
        seen = _read(path)
        common.echo_json(_as_json(seen))
        return
    from rich.console import Console

    if not watch:
        Console().print(_shown(_read(path)))
        return
    from rich.live import Live

    from hala_hpc.slurm.queue import Asked

    asked = Asked(path)
    with Live(refresh_per_second=4) as live:
        while True:
            seen = _read(path, asked)
            live.update(_shown(seen))
            if seen.state.finished:
                return
            time.sleep(WATCH_SECONDS)


@dataclass(frozen=True)
class Seen:
    """Everything that is shown. ``training`` is None for a run that is none; ``changed`` is since it was planned.

    ``slurm`` is what the recipe asks of Slurm by now.
    """

    state: "Status"
    training: "TrainingState | None"
    queue: "Queue"
    changed: Mapping[str, tuple[Any, Any]]
    slurm: Mapping[str, Any]

    @property
    def jobs(self) -> dict[str, int]:
        """How many jobs are in each state."""
        from hala_hpc.slurm.commands import counted

        return counted(self.queue.tasks)

    @property
    def ends(self) -> dict[str, int]:
        """How many tasks ended how, of those whose worker did not say it."""
        return dict(Counter(one.state for one in self.queue.ends))


def _read(path: Path, asked: "Asked | None" = None) -> Seen:
    from hala_hpc.cli.views import training
    from hala_hpc.config import frozen
    from hala_hpc.run import status
    from hala_hpc.slurm.queue import Asked

    settings = frozen.settings(path)
    before, now = frozen.read(path), frozen.now(path)
    state = status.read(path, settings.lease_seconds, settings.attempts)
    began = time.monotonic()
    queue = (asked or Asked(path)).now(state.finished)
    if time.monotonic() - began > OLD_SECONDS:  # the numbers are to be those of now
        state = status.read(path, settings.lease_seconds, settings.attempts)
    slurm = now.get("site", {}).get("slurm", {})
    return Seen(state, training.read(path, state), queue, frozen.told(before, path), slurm)


def _as_json(seen: Seen) -> dict[str, Any]:
    from hala_hpc.cli.views import training

    told = asdict(seen.state) | {"finished": seen.state.finished, "jobs": seen.jobs}
    told |= {
        "slurm_answers": not seen.queue.silence,
        "ends": seen.ends,
        "changed": {key: new for key, (_, new) in seen.changed.items()},
    }
    if seen.training is not None:
        told |= {"seconds_left": training.seconds_left(seen.training, seen.state), **training.as_json(seen.training)}
    return told


def _shown(seen: Seen) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from hala_hpc.cli.views import training

    state = seen.state
    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(seen):
        facts.add_row(name, value)
    bar = Table.grid()  # a bar alone ends without a new line where the output is no terminal
    done = training.done_share(seen.training, state) if seen.training else state.rows_done / state.rows
    bar.add_row(ProgressBar(total=1.0, completed=done, width=80))
    parts: list[Any] = [bar, facts]
    wholes = {worker.part_of for worker in state.workers}
    alive = [worker for worker in state.workers if worker.alive and worker.worker not in wholes]
    if alive and seen.training is None:
        parts += [Text(), _workers(alive) if state.unit == "rows" else _workers_on_items(alive, state.unit)]
    for error in state.errors:
        times = f"×{error['count']} " if error["count"] > 1 else ""
        parts.append(Text(f"{times}{error['worker']}: {error.get('error', error['event'])}"[:300], style="red"))
    if seen.training is not None and (reason := training.failure(seen.training)):
        parts.append(Text(reason, style="red"))
    parts += [Text(line, style="yellow") for line in _advice(seen)]
    return Group(*parts)


def _facts(seen: Seen) -> list[tuple[str, str]]:
    import rich.markup

    from hala_hpc.cli.views import training

    state = seen.state
    counts = (
        f"[green]{state.done:,} done[/], {state.running:,} running, {state.waiting:,} waiting, "
        f"{f'[red]{state.failed:,} failed[/]' if state.failed else '0 failed'}, {state.shards:,} in all"
    )
    lines = [("run", state.path), ("shards" if state.unit == "rows" else state.unit, counts)]
    if state.damaged:
        lines += [("set aside", f"{plural(state.damaged, 'damaged output')}, in {state.path}/damaged")]
    if state.absent:
        lines += [("gone", f"[red]{_few(state.absent)}[/]: hala resume makes them again{_lost(state)}")]
    if state.unassembled and state.done == state.shards:
        lines += [("last step", "to do: it makes final/ of all that is done")]
    left = state.seconds_left
    if seen.training is not None:
        lines += training.rows(seen.training, state)
        left = training.seconds_left(seen.training, state)
    elif state.unit == "rows":
        share = f"{state.rows_done:,} of {state.rows:,} ({state.rows_done / state.rows:.1%})"
        more = f", and of {plural(state.unknown_quarantine, 'shard')} unknown" if state.unknown_quarantine else ""
        lines += [("rows", f"{share}, {state.quarantined:,} in quarantine{more}")]
        lines += [("noted", told)] if (told := _noted(state)) else []
        lines += [("rate", f"{state.rows_per_second:,.1f} rows/s, {state.tokens_per_second:,.0f} tokens/s")]
    ended = sum(not worker.alive and not worker.part_of for worker in state.workers)
    lines += [("time left", "finished" if state.finished else common.human_seconds(left))]
    lines += [("workers", f"{state.alive} alive, {ended} ended")]
    if seen.changed:
        told = ", ".join(f"{key}={new} (was {old})" for key, (old, new) in seen.changed.items())
        lines += [("changed", rich.markup.escape(told))]
    if seen.jobs:
        lines += [("jobs", ", ".join(f"{count} {name}" for name, count in sorted(seen.jobs.items())))]
    return lines


def _noted(state: "Status") -> str:
    """What workers did to texts on their way to the model and back."""
    thoughts = sum(worker.counts.get("thoughts", 0) for worker in state.workers)
    escaped = sum(worker.counts.get("escaped", 0) for worker in state.workers)
    told = [f"{plural(thoughts, 'answer')} had thinking in front, which is left out"] if thoughts else []
    return "; ".join(
        told + ([f"{plural(escaped, 'prompt')} held names of control tokens, sent as text"] if escaped else [])
    )


def _few(names: "Sequence[str]", most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name}/" for name in names[:most]) + more


def _lost(state: "Status") -> str:
    """What cannot be made again is said with the rest."""
    return ", what was finished in them is not" if any(name.startswith("shards") for name in state.absent) else ""


def _workers(alive: "Sequence[WorkerStatus]") -> Any:
    from rich.table import Table

    table = Table("worker", "job", "rows", "rows/s", "tokens/s", "shards", box=None, pad_edge=False)
    for worker in alive[:MOST_WORKERS]:
        rates = (f"{worker.rows:,}", f"{worker.rows_per_second:.1f}", f"{worker.tokens_per_second:,.0f}")
        table.add_row(worker.worker, worker.job, *rates, ", ".join(worker.working_on))
    return table


def _workers_on_items(alive: "Sequence[WorkerStatus]", unit: str) -> Any:
    from rich.table import Table

    table = Table("worker", "job", f"{unit} done", "at", "", box=None, pad_edge=False)
    for worker in alive[:MOST_WORKERS]:
        table.add_row(worker.worker, worker.job, f"{worker.rows:,}", ", ".join(worker.working_on), worker.doing)
    return table


def _advice(seen: Seen) -> list[str]:
    from hala_hpc.slurm.queue import advice

    state = seen.state
    preparing = seen.training.preparation if seen.training is not None else ()
    alive = any(worker.alive for one in (state, *preparing) for worker in one.workers)
    return advice(
        seen.queue,
        Path(state.path),
        seen.slurm,
        finished=state.finished,
        alive=alive,
        has_progress=state.rows_done > 0,
    )
