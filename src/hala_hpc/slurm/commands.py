"""Slurm's own commands, run without a shell, and the pure functions that read what they print."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hala_hpc.config.errors import HalaError

SECONDS = 60.0
"""A controller under load answers late; one that does not answer for so long is down."""


@dataclass(frozen=True)
class Limits:
    """What a cluster allows: tasks in one array, jobs in the queue, jobs of this user (None: no limit)."""

    array: int
    jobs: int
    submit: int | None = None


@dataclass(frozen=True)
class JobState:
    """One array task as squeue shows it."""

    job: str
    state: str
    reason: str


def run(*words: str, check: bool = True) -> str:
    """Standard output of a Slurm command. Raises HalaError where it fails, saying what Slurm said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError as error:
        raise HalaError(f"{words[0]}: not found", "is this a Slurm login node? try --site local") from error
    except subprocess.TimeoutExpired as error:
        raise HalaError(f"{words[0]}: no answer from Slurm for {SECONDS:.0f} s", "try again later") from error
    if check and done.returncode != 0:
        raise HalaError(f"{words[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def limits() -> Limits:
    """The limits of this cluster and of this user on it. Works without accounting."""
    config = parse_config(run("scontrol", "show", "config"))
    user = os.environ.get("USER", str(os.getuid()))
    enforced = "limits" in config.get("AccountingStorageEnforce", "")
    said = (
        run("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=MaxSubmitJobs", check=False) if enforced else ""
    )
    return Limits(int(config["MaxArraySize"]), int(config["MaxJobCount"]), parse_submit_limit(said))


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config`` as a mapping."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def parse_submit_limit(text: str) -> int | None:
    """The smallest limit in the lines of ``sacctmgr show assoc format=MaxSubmitJobs``; empty lines are none."""
    numbers = [int(line) for line in text.split() if line.isdigit()]
    return min(numbers, default=None)


def states(jobs: Sequence[str]) -> list[JobState]:
    """The array tasks of some jobs, in one call; those that Slurm has forgotten are left out."""
    if not jobs:
        return []
    text = run(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}", check=False
    )
    return parse_states(text)


def parse_states(text: str) -> list[JobState]:
    """Lines of squeue in our format."""
    rows = (line.strip().split("|", 2) for line in text.splitlines() if line.count("|") >= 2)
    return [JobState(*row) for row in rows]


def counted(found: Sequence[JobState]) -> dict[str, int]:
    """How many tasks are in each state; pending ones with the reason that Slurm gives."""
    names = (
        f"{one.state} ({one.reason})" if one.state == "PENDING" and one.reason != "None" else one.state for one in found
    )
    return dict(Counter(names))


def live_workers(found: Sequence[JobState]) -> int:
    """Array tasks that work or will."""
    return sum(one.state in ("PENDING", "RUNNING", "CONFIGURING", "REQUEUED", "SUSPENDED") for one in found)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel whole arrays. Jobs that ended already are no error."""
    if jobs:
        run("scancel", *jobs, check=False)


@contextmanager
def outside_any_job() -> Iterator[None]:
    """The environment as on a login node: a job submitted from within a job must not inherit its SLURM_* variables.

    ``SLURM_CONF`` stays, for it says which cluster this is.
    """
    inherited = {key: value for key, value in os.environ.items() if key.startswith(("SLURM_", "SRUN_", "SBATCH_"))}
    inherited.pop("SLURM_CONF", None)
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)
