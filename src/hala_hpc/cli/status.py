"""``hala status``: how far a run is."""

import time
from functools import partial

import click
from rich.console import Console
from rich.live import Live

from hala_hpc.cli import common
from hala_hpc.cli.views.grid import GridView
from hala_hpc.cli.views.run import RunView
from hala_hpc.pipeline import lookup
from hala_hpc.slurm.queue import QueueView


@click.command()
@common.run_argument
@click.option("--watch", is_flag=True, help="Keep showing it until the run is finished.")
@common.as_json
def command(run: str, watch: bool, json_: bool) -> None:
    r"""Show shards done, running, waiting and failed, rows/s, tokens/s, time left, workers and the last errors.

    A training also shows its step, loss with its curve, evaluation, rate, last checkpoint and time left.

    \b
    hala status translate-openorca --watch
    hala status runs/demo --json | jq .rows_per_second
    """
    grid = lookup.find_grid(run)
    members = lookup.members(run)
    read = partial((GridView if grid else RunView).read, members[0], QueueView(*members))
    if json_:
        common.show(read().as_json(), json_, ())
    elif not watch:
        Console().print(read().shown())
    else:
        with Live(refresh_per_second=4) as live:
            while not (view := read()).finished:
                live.update(view.shown())
                time.sleep(5.0 if grid else 2.0)
            live.update(view.shown())
