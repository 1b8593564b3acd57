"""``hala cancel``: end the workers of a run."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from hala_hpc.cli import common

PATIENCE: Final = 20.0
"""Seconds that local workers are waited for: most keep their rows and end in one or two."""
AGAIN_SECONDS: Final = 0.3


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
    asked, stopping = _end(dict.fromkeys(_local(paths)))
    for path in paths:
        record.find_lost(path)
    states = commands.states(list(dict.fromkeys(job for path in paths for job in record.slurm_jobs(path))))
    jobs = list(dict.fromkeys(one.job.partition("_")[0] for one in states if one.state in commands.COMING_BACK))
    commands.cancel(jobs)
    if json_:
        common.echo_json({"jobs": jobs, "local_workers": asked, "still_stopping": stopping})
    elif jobs or asked:
        left = f", of which {stopping} still stop" if stopping else ""
        click.echo(
            f"cancelled {common.count(len(jobs), 'Slurm array')} and {common.count(asked, 'local worker')}{left}"
        )
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


def _end(pids: Iterable[str]) -> tuple[int, int]:
    """Ask local workers to stop: how many there are, and how many of them still keep what they have after a while.

    submitit's controller passes the signal on to its worker, which passes over it until it is up: so it is sent again.
    """
    from hala_hpc.slurm.record import start_time

    living = {pid: start_time(pid) for pid in pids}
    count, deadline = len(living), time.monotonic() + PATIENCE
    while living and time.monotonic() < deadline:
        for pid in living:
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGTERM)
        time.sleep(AGAIN_SECONDS)
        living = {pid: since for pid, since in living.items() if start_time(pid) == since}
    return count, len(living)
