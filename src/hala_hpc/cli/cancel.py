"""``hala cancel``: end the workers of a run."""

import os
import time
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup
from hala_hpc.slurm import commands, local
from hala_hpc.slurm import record as records

LOCAL_SECONDS = 5.0
"""How long a local worker may take to end what it does."""


@click.command()
@common.run_argument
@common.as_json
def command(run: str, json_: bool) -> None:
    r"""End the workers of a run. What they finished is kept: `hala resume` goes on from there.

    \b
    hala cancel translate-openorca
    """
    paths = lookup.members(run)
    # The runs that prepare the data of a training, unless others share them.
    within = [data for path in paths for data in path.glob("prepare/*") if not data.is_symlink()]
    workers, still = _end_local(paths)
    try:
        arrays, tasks = _cancel_slurm([*paths, *within])
    except HalaError as error:
        also = f" (cancelled: {plural(workers, 'local worker')})" if workers else ""
        raise HalaError(f"not cancelled{also}: {error.message}", error.hint or f"hala status {paths[0]}") from error
    line = f"cancelled {plural(len(arrays), 'Slurm array')} and {plural(workers, 'local worker')}"
    counts = {"task": tasks, "local worker": still}
    if left := " and ".join(plural(count, noun) for noun, count in counts.items() if count):
        line = f"{line}; not ended yet: {left} (hala status {paths[0]})"
    if not arrays and not workers:
        is_finished = (paths[0] / "recipe.yaml").is_file() and lookup.state_of(paths[0]).finished
        here = f"nobody works on it here ({os.uname().nodename})"
        line = "finished: nothing is left to cancel" if is_finished else here
    record = {"run": str(paths[0]), "arrays": arrays, "still": tasks, "workers": workers, "still_local": still}
    common.show(record, json_, [line])


def _cancel_slurm(paths: list[Path]) -> tuple[list[str], int]:
    """Arrays that were cancelled, and how many of their tasks have not begun to end. Raises HalaError."""
    jobs = []
    for path in paths:
        for intent in records.unanswered(path):
            if (job := records.in_queue(intent.token)) is not None:
                intent.took(job)
            elif time.time() - intent.time < records.LATE_SECONDS:
                raise HalaError(
                    f"Slurm did not answer when {plural(len(intent.runs), 'worker')} came in, and may yet take them",
                    f"cancel again in {intent.time + records.LATE_SECONDS - time.time():.0f} s",
                )
        jobs += records.slurm_jobs(path)
    jobs = list(dict.fromkeys(jobs))
    live = [task.job for task in commands.states(jobs) if task.may_work]
    arrays = [job for job in jobs if any(job in (task, task.partition("_")[0]) for task in live)]
    return arrays, len(commands.cancel(arrays))


def _end_local(paths: list[Path]) -> tuple[int, int]:
    """How many local workers were asked to stop, and how many of them have not yet."""
    count = sum(len(local.workers(path)) for path in paths)
    known: dict[Path, set[int]] = {path: set() for path in paths}
    deadline = time.monotonic() + LOCAL_SECONDS
    while True:
        left = 0
        for path in paths:
            now = local.end(path, known[path])
            known[path] |= now
            left += len(now)
        if not left or time.monotonic() > deadline:
            return count, sum(len(local.workers(path)) for path in paths)
        time.sleep(0.2)
