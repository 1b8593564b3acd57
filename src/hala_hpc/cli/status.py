"""``hala status``: how far a run is."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hala_hpc.cli import common

if TYPE_CHECKING:
    from hala_hpc.run.status import Status

WATCH_SECONDS = 2.0


@click.command()
@common.run_argument
@click.option("--watch", is_flag=True, help="Keep showing it until the run is finished.")
@common.as_json
def command(run: str, watch: bool, json_: bool) -> None:
    r"""Show shards done, running, waiting and failed, rows/s, tokens/s, time left, workers and the last errors.

    \b
    hala status translate-openorca --watch
    hala status runs/demo --json | jq .rows_per_second
    """
    path = common.find(run)
    if json_:
        state, jobs = _read(path)
        common.echo_json(asdict(state) | {"finished": state.finished, "jobs": jobs})
        return
    from rich.console import Console

    if not watch:
        Console().print(_shown(*_read(path)))
        return
    from rich.live import Live

    with Live(refresh_per_second=4) as live:
        while True:
            state, jobs = _read(path)
            live.update(_shown(state, jobs))
            if state.finished:
                return
            time.sleep(WATCH_SECONDS)


def _read(path: Path) -> "tuple[Status, dict[str, int]]":
    from hala_hpc.run import status
    from hala_hpc.slurm.commands import counted

    settings = common.run_settings(path)
    state = status.read(path, settings.lease_seconds, settings.attempts)
    return state, {} if state.finished else counted(common.job_states(path))


def _shown(state: "Status", jobs: Mapping[str, int]) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("run", state.path)
    facts.add_row(
        "shards",
        f"[green]{state.done:,} done[/], {state.running:,} running, {state.waiting:,} waiting, "
        f"{f'[red]{state.failed:,} failed[/]' if state.failed else '0 failed'}, {state.shards:,} in all",
    )
    facts.add_row(
        "rows",
        f"{state.rows_done:,} of {state.rows:,} ({state.rows_done / state.rows:.1%}), "
        f"{state.quarantined:,} in quarantine",
    )
    facts.add_row("rate", f"{state.rows_per_second:,.1f} rows/s, {state.tokens_per_second:,.0f} tokens/s")
    facts.add_row("time left", "finished" if state.finished else common.human_seconds(state.seconds_left))
    alive = [worker for worker in state.workers if worker.alive]
    facts.add_row("workers", f"{len(alive)} alive, {len(state.workers) - len(alive)} ended")
    if jobs:
        facts.add_row("jobs", ", ".join(f"{count} {name}" for name, count in sorted(jobs.items())))
    bar = Table.grid()  # a bar alone ends without a new line where the output is no terminal
    bar.add_row(ProgressBar(total=state.rows, completed=state.rows_done, width=80))
    parts: list[Any] = [bar, facts]
    if alive:
        table = Table("worker", "job", "rows", "rows/s", "tokens/s", "shards", box=None, pad_edge=False)
        for worker in alive[:20]:
            at = ", ".join(worker.working_on)
            table.add_row(
                worker.worker,
                worker.job,
                f"{worker.rows:,}",
                f"{worker.rows_per_second:.1f}",
                f"{worker.tokens_per_second:,.0f}",
                at,
            )
        parts += [Text(), table]
    for error in state.errors:
        parts.append(Text(f"{error['worker']}: {error.get('error', error['event'])}"[:300], style="red"))
    if not state.finished and not alive and not any(name.startswith(("PENDING", "RUNNING")) for name in jobs):
        parts.append(Text(f"nobody works on it: hala resume {state.path}", style="yellow"))
    return Group(*parts)
