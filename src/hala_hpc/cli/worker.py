"""``hala worker``: what a job calls."""

import click

from hala_hpc.cli import common
from hala_hpc.pipeline import lookup
from hala_hpc.worker.job import main


@click.command()
@common.run_argument
def command(run: str) -> None:
    r"""Work on a run in this process and environment until nothing is left. sbatch/translate_array.sbatch calls it.

    \b
    srun hala worker runs/translate-openorca
    """
    raise click.exceptions.Exit(main([str(lookup.find(run))]))
