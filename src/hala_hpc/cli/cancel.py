"""``hala cancel``: end the workers of a run."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from hala_hpc.cli import common


@click.command()
@common.run_argument
@common.as_json
def command(run: str, json_: bool) -> None:
    r"""End the workers of a run. What they finished is kept: `hala resume` goes on from there.

    Exit code 2 where Slurm refuses or does not answer: then its jobs go on.

    \b
    hala cancel translate-openorca
    """
    from hala_hpc.cli import grid
    from hala_hpc.slurm import commands, record

    paths = grid.members(run)  # of a grid: all its runs
    # Of a training: the runs that prepare its data, unless others share them.
    paths += [data for path in paths for data in path.glob("prepare/*") if not data.is_symlink()]
    ended = sum(_end(pid) for pid in dict.fromkeys(_local(paths)))
    for path in paths:
        record.find_lost(path)
    states = commands.states(list(dict.fromkeys(job for path in paths for job in record.slurm_jobs(path))))
    jobs = list(dict.fromkeys(one.job.partition("_")[0] for one in states if one.state in commands.COMING_BACK))
    commands.cancel(jobs)
    if json_:
        common.echo_json({"jobs": jobs, "local_workers": ended})
    elif jobs or ended:
        click.echo(f"cancelled {common.count(len(jobs), 'Slurm array')} and {common.count(ended, 'local worker')}")
    else:
        click.echo("nothing to cancel: nobody works on it")


def _local(paths: Sequence[Path]) -> Iterator[str]:
    """Process ids of workers on this host: those that were started here, and those that tell of themselves."""
    from hala_hpc.run import ledger
    from hala_hpc.slurm import record

    for path in paths:
        for one in record.submitted(path):
            yield from (pid for pid in one.jobs if one.executor == "local" and record.is_alive(one, pid))
        for file in (path / "ledger").glob("*.jsonl"):
            worker = ledger.first(file)
            beacon = path / "leases" / "workers" / file.stem
            here = worker.get("host") == os.uname().nodename and worker.get("executor") != "slurm"
            if here and beacon.exists() and record.is_ours(str(worker["pid"])):
                yield str(worker["pid"])


def _end(pid: str) -> int:
    """Ask a local worker to stop: submitit's controller passes it on to the worker that it started."""
    try:
        os.kill(int(pid), signal.SIGTERM)
    except OSError:
        return 0
    return 1
