"""One table for all cells of a grid: how far each is and what came of it; and the proof of all of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hala_hpc.cli import common
from hala_hpc.config import frozen
from hala_hpc.config.words import plural
from hala_hpc.pipeline import grid, lookup

if TYPE_CHECKING:
    from hala_hpc.cli.views.training import TrainingState
    from hala_hpc.run.status import Status
    from hala_hpc.run.verify import Verdict
    from hala_hpc.slurm.queue import Queue

WATCH_SECONDS: Final = 5.0
NOT_RUN: Final = {"as_is": "as it is", "excluded": "left out"}


@dataclass(frozen=True)
class Row:
    """A cell and what its run tells; None for a cell that is no run."""

    cell: Mapping[str, Any]
    state: "Status | None" = None
    training: "TrainingState | None" = None


def status(folder: Path, watch: bool, json_: bool) -> None:
    """Show a grid's table."""
    from hala_hpc.slurm.commands import counted
    from hala_hpc.slurm.queue import QueueView

    asked = QueueView(*grid.members(str(folder)))
    if json_:
        rows = _read(folder)
        queue = asked.now(_finished(rows))
        told = {"grid": str(folder), "finished": _finished(rows), "jobs": counted(queue.tasks)}
        told |= {"slurm_answers": not queue.silence, "cells": [_as_json(row) for row in rows]}
        common.echo_json(told)
        return
    from rich.console import Console
    from rich.live import Live

    if not watch:
        rows = _read(folder)
        Console().print(_table(folder, rows, asked.now(_finished(rows))))
        return
    with Live(refresh_per_second=4) as live:
        while True:
            rows = _read(folder)
            live.update(_table(folder, rows, asked.now(_finished(rows))))
            if _finished(rows):
                return
            time.sleep(WATCH_SECONDS)


def verify(folder: Path, json_: bool) -> None:
    """Verify each cell's run, and the shared data of trainings once. Exit code 0: all proven; 1: not."""
    found = {path.name: _verdict(path) for path in _with_data(grid.runs_in(folder))}
    proven = all(one.proven for one in found.values())
    if json_:
        told = {name: asdict(one) | {"proven": one.proven} for name, one in found.items()}
        common.echo_json({"grid": str(folder), "proven": proven, "runs": told})
    else:
        for name, one in found.items():
            missing = f"NOT proven, {plural(one.missing_shards, 'shard')} missing"
            click.echo(f"{name}: {'proven' if one.proven else missing}")
            for problem in one.problems:
                click.echo(f"  {problem}", err=True)
        click.echo("all proven" if proven else "NOT proven")
    raise click.exceptions.Exit(0 if proven else 1)


def _with_data(runs: Sequence[Path]) -> list[Path]:
    """The runs, and before them those that made their tokens, each once."""
    from hala_hpc.cli.views.training import prepare_runs

    trainings = [run for run in runs if frozen.read(run)["task"]["kind"] == "train"]
    data = dict.fromkeys(prepared.resolve() for run in trainings for prepared in prepare_runs(run))
    return [*data, *runs]


def _verdict(path: Path) -> "Verdict":
    from hala_hpc.run import manifest
    from hala_hpc.run.verify import verify
    from hala_hpc.worker import registry

    facts = manifest.read(path / "manifest.parquet").facts
    with common.counting(f"verifying {path.name}") as counted:
        return verify(path, registry.create(lookup.thawed(path)).checker(facts), counted)


def show_started(started: "grid.Started | None", folder: str, json_: bool) -> None:
    """What was started of a grid."""
    if started is None:
        click.echo(f"nothing to start: all is done or at work (hala status {folder})")
        return
    *before, cells = started.submissions
    if json_:
        jobs = [job for one in started.submissions for job in one.jobs]
        runs = [str(one.path) for one in started.planned]
        common.echo_json({"grid": str(started.folder), "runs": runs, "jobs": jobs})
        return
    for one in before:
        click.echo(common.handed_in(one, "to prepare the data first"))
    click.echo(common.handed_in(cells, f"for {plural(len(started.planned), 'run')}"))
    click.echo(f"next: hala status {started.folder}")


def plan(target: Path, cells: Sequence[Mapping[str, Any]], created: bool, json_: bool) -> None:
    """Show what a grid would run."""
    if json_:
        common.echo_json({"grid": str(target), "cells": cells})
        return
    _show_plan(target, cells)
    if created:
        click.echo(f"made; start it with: hala resume {target}")


def _show_plan(target: Path, cells: Sequence[Mapping[str, Any]]) -> None:
    """The cells of a grid that is not there yet; of trainings, the memory of the first in full."""
    from rich.console import Console
    from rich.table import Table

    axes = list(cells[0]["values"])
    table = Table("cell", *axes, "rows", "tokens", "steps", "GPU-hours", "", box=None, pad_edge=False)
    training = None
    hours = 0.0
    for cell in cells:
        plan = cell.get("plan")
        numbers = ["", "", "", ""]
        if plan:
            trained = plan.get("training")
            training = training or trained
            rows = sum(each["rows"] for each in trained["datasets"]) if trained else plan["rows"]
            numbers = [f"{rows:,}", f"{plan['estimated_tokens']:,}", "", ""]
            if trained:
                hours += trained.get("gpu_hours", 0.0)
                numbers[1:] = [
                    f"{trained['estimated_tokens_trained']:,}",
                    f"{trained['estimated_steps']:,}",
                    f"{trained.get('gpu_hours', 0.0):,.1f}",
                ]
        table.add_row(cell["name"], *cell["values"].values(), *numbers, _why(cell))
    console = Console(soft_wrap=True)
    console.print(table)
    runs = sum(cell["state"] == "run" for cell in cells)
    console.print(
        f"{runs} of {len(cells)} cells are runs{f', about {hours:,.0f} GPU-hours' if hours else ''}: {target}"
    )
    if training:
        from hala_hpc.cli.views import plan_training

        console.print("\nThe first of them:")
        plan_training.show(training)


def _read(folder: Path) -> list[Row]:
    from hala_hpc.cli.views import training
    from hala_hpc.run import status as statuses

    rows = []
    for cell in grid.read(folder)["cells"]:
        if cell["state"] != "run":
            rows.append(Row(cell))
            continue
        path = folder / cell["name"]
        settings = frozen.settings(path)
        state = statuses.read(path, settings.lease_seconds, settings.attempts)
        rows.append(Row(cell, state, training.read(path, state)))
    return rows


def _finished(rows: Sequence[Row]) -> bool:
    return all(row.state is None or row.state.finished for row in rows)


def _word(row: Row) -> str:
    state = row.state
    if state is None:
        return _why(row.cell)
    alive = any(worker.alive for worker in state.workers)
    return "done" if state.finished else "failed" if state.failed else "running" if alive else "waiting"


def _why(cell: Mapping[str, Any]) -> str:
    if cell["state"] == "same":
        return f"same as {cell['same_as']}"
    model = f": {cell['model']}" if cell.get("model") else ""
    return f"{NOT_RUN[cell['state']]}{model}" if cell["state"] in NOT_RUN else ""


def _as_json(row: Row) -> dict[str, Any]:
    from hala_hpc.cli.views import training

    told = dict(row.cell) | {"status": _word(row)}
    if row.state is not None:
        told |= {"run": row.state.path, "rows": row.state.rows, "rows_done": row.state.rows_done}
    if row.training is not None:
        told |= training.as_json(row.training)
    return told


def _table(folder: Path, rows: Sequence[Row], queue: "Queue") -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from hala_hpc.slurm.commands import counted

    is_training = any(row.training is not None for row in rows)
    numbers = (
        ("step", "loss", "evaluation", "tokens/s", "left") if is_training else ("rows", "quarantine", "rows/s", "left")
    )
    table = Table("cell", *rows[0].cell["values"], "", *numbers, box=None, pad_edge=False)
    colours = {"done": "green", "running": "cyan", "failed": "red"}
    for row in rows:
        cells = (_trained if is_training else _counted)(row)
        word = _word(row)
        table.add_row(
            row.cell["name"], *row.cell["values"].values(), Text(word, style=colours.get(word, "dim")), *cells
        )
    states = [_word(row) for row in rows if row.state is not None]
    told = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(("done", *states)))
    lines = [Text(f"{told} of {plural(len(states), 'run')}: {folder}")]
    if jobs := counted(queue.tasks):
        lines.append(Text("jobs: " + ", ".join(f"{count} {name}" for name, count in sorted(jobs.items()))))
    return Group(table, *lines, *(Text(line, style="yellow") for line in _advice(folder, rows, queue)))


def _advice(folder: Path, rows: Sequence[Row], queue: "Queue") -> list[str]:
    from hala_hpc.slurm.queue import advice

    runs = [row for row in rows if row.state is not None]
    states = [
        state for row in runs for state in (row.state, *(row.training.preparation if row.training else ())) if state
    ]
    slurm = frozen.now(folder / runs[0].cell["name"]).get("site", {}).get("slurm", {})
    return advice(
        queue,
        folder,
        slurm,
        finished=_finished(rows),
        alive=any(worker.alive for state in states for worker in state.workers),
        has_progress=any(state.rows_done for state in states),
    )


def _trained(row: Row) -> list[str]:
    from hala_hpc.cli.views import training

    now = row.training.training if row.training is not None else None
    if row.state is None or row.training is None or now is None:
        return [""] * 5
    left = None if row.state.finished else training.seconds_left(row.training, row.state)
    return [
        f"{now.step:,}/{now.steps or 0:,}",
        "" if now.loss is None else f"{now.loss:.4f}",
        "" if now.eval_loss is None else f"{now.eval_loss:.4f}",
        "" if now.tokens_per_second is None else f"{now.tokens_per_second:,.0f}",
        "" if left is None else common.human_seconds(left),
    ]


def _counted(row: Row) -> list[str]:
    state = row.state
    if state is None:
        return [""] * 4
    left = "" if state.finished or state.seconds_left is None else common.human_seconds(state.seconds_left)
    return [f"{state.rows_done:,}/{state.rows:,}", f"{state.quarantined:,}", f"{state.rows_per_second:,.1f}", left]
