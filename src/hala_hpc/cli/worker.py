"""``hala worker``: what a job calls."""

import click

from hala_hpc.cli import common


@click.command()
@common.run_argument
def command(run: str) -> None:
    r"""Work on a run in this process and environment until nothing is left. sbatch/translate_array.sbatch calls it.

    \b
    srun hala worker runs/translate-openorca
    """
    from hala_hpc.worker.context import Outcome
    from hala_hpc.worker.main import REQUEUE_CODE, work

    outcome = work(common.find(run))
    raise click.exceptions.Exit(0 if outcome is Outcome.FINISHED else REQUEUE_CODE)
