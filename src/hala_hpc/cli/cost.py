"""``hala cost``: what a run cost, and how much of that came to be output."""

import click

from hala_hpc.cli import common
from hala_hpc.cli.views import cost as view
from hala_hpc.pipeline import cost


@click.command()
@common.run_argument
@common.as_json
def cost_command(run: str, json_: bool) -> None:
    r"""Show GPU-hours, node-hours, waits, requeues, energy, goodput, what was done twice and why.

    From Slurm's accounting where there is one, else from the workers' ledgers; it says which. Of a grid, each cell and
    the sum; of a training, also what prepared its data.

    \b
    hala cost translate-openorca
    hala cost sft-9b --json | jq .gpu_hours
    """
    report = cost.read(run)
    common.show(report.as_json(), json_, view.lines(report))
