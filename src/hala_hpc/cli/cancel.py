"""``hala cancel``: end the workers of a run."""

import os
import signal
from pathlib import Path

import click

from hala_hpc.cli import common


@click.command()
@common.run_argument
def command(run: str) -> None:
    r"""End the workers of a run. What they finished is kept: `hala resume` goes on from there.

    \b
    hala cancel translate-openorca
    """
    from hala_hpc.cli import grid
    from hala_hpc.run import ledger
    from hala_hpc.slurm import commands
    from hala_hpc.slurm.submit import slurm_jobs

    paths = grid.members(run)  # of a grid: all its runs
    # Of a training: the runs that prepare its data, unless others share them.
    within = [data for path in paths for data in path.glob("prepare/*") if not data.is_symlink()]
    jobs = list(dict.fromkeys(job for one in (*paths, *within) for job in slurm_jobs(one)))
    commands.cancel(jobs)
    ended = 0
    for file in (file for path in paths for file in (path / "ledger").glob("*.jsonl")):
        worker = ledger.first(file)
        beacon = file.parent.parent / "leases" / "workers" / file.stem
        if worker.get("host") == os.uname().nodename and worker.get("executor") != "slurm" and beacon.exists():
            ended += _end(int(worker["pid"]))
    click.echo(f"cancelled {len(jobs)} Slurm arrays and {ended} local workers")


def _end(pid: int) -> int:
    """Ask a local worker to stop. A process id may have been given to somebody else since: look at what it runs."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"submitit" not in words and b"hala" not in words:
            return 0
        os.kill(pid, signal.SIGTERM)
    except (OSError, ProcessLookupError):
        return 0
    return 1
