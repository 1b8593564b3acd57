"""Slurm's own commands, run without a shell, and the pure functions that read what they print."""

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Slurm

SECONDS = 60.0
"""A controller under load answers late; one that does not answer for so long is down."""
LOOK_SECONDS = 8.0
"""So long a person waits who only looks: what the files tell is shown without Slurm then."""
LONGEST_PAUSE = 60.0
"""Between two attempts to requeue (ours)."""
SILENCE = ("unable to contact", "socket timed out", "connection refused", "zero bytes", "communication", "timed out")
"""What Slurm's commands say, among other things, when no controller answers."""
FORGOTTEN = ("invalid job id", "already completing or completed")
"""What they say of jobs that ended long ago, which is no error to us."""
COMING_BACK = (
    "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT",
    "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "RESV_DEL_HOLD",
)  # fmt: skip
"""States of a job (squeue(1), JOB STATE CODES) that works or may still work, without a person or with one: held and
requeued jobs too, and completing ones, for a requeued job is that before it is pending again."""
OPTIONS_OF_VARIABLES = {
    "SBATCH_ACCOUNT": "account", "SLURM_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint", "SBATCH_GRES": "gres", "SBATCH_GPUS": "gpus", "SBATCH_JOB_NAME": "job-name",
    "SBATCH_GPUS_PER_NODE": "gpus-per-node", "SBATCH_GPUS_PER_TASK": "gpus-per-task", "SBATCH_TIMELIMIT": "time",
    "SBATCH_MEM_PER_NODE": "mem", "SBATCH_MEM_PER_CPU": "mem", "SBATCH_MEM_PER_GPU": "mem", "SBATCH_SIGNAL": "signal",
    "SBATCH_OPEN_MODE": "open-mode", "SBATCH_OUTPUT": "output", "SBATCH_ARRAY_INX": "array",
    "SBATCH_COMMENT": "comment", "SBATCH_REQUEUE": "requeue", "SBATCH_NO_REQUEUE": "requeue",
}  # fmt: skip
"""sbatch's input variables (sbatch(1), INPUT ENVIRONMENT VARIABLES), which are stronger than the options in a file:
where a recipe or profile says an option, its variable must not win."""
OURS_ALONE = ("SBATCH_ARRAY_INX", "SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_SIGNAL", "SBATCH_OPEN_MODE")
"""Variables whose options hala sets itself, in every file."""


class SlurmSilent(HalaError):
    """Slurm gave no answer: nothing is known of its jobs."""


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


def run(*words: str, seconds: float = SECONDS) -> str:
    """Standard output of a Slurm command.

    Raises HalaError where it fails, saying what Slurm said, and SlurmSilent where Slurm does not answer.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise HalaError(f"{words[0]}: not found", "is this a Slurm login node? try --site local") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmSilent(f"{words[0]}: Slurm did not answer for {seconds:.0f} s", "try again later") from error
    if done.returncode != 0:
        said = said_by_slurm(done.stderr) or f"exit code {done.returncode}"
        if any(mark in said.lower() for mark in SILENCE):
            raise SlurmSilent(f"{words[0]}: Slurm does not answer: {said}", "try again later")
        raise HalaError(f"{words[0]}: {said}", "are you on a login node of the cluster?" if "dns_srv" in said else "")
    return done.stdout


def said_by_slurm(text: str) -> str:
    """What a command printed to standard error, each line once and without the command's name before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(line.partition("error: ")[2] or line for line in lines))


def limits(asked: Slurm | None = None) -> Limits:
    """The limits of this cluster, and of this user for what is ``asked`` of it. Works without accounting."""
    config = parse_config(run("scontrol", "show", "config"))
    user = os.environ.get("USER", str(os.getuid()))
    submit = None
    if "limits" in config.get("AccountingStorageEnforce", ""):
        format_ = "format=Cluster,Account,Partition,QOS,DefaultQOS,MaxSubmitJobs"
        try:
            associations = run("sacctmgr", "-nP", "show", "assoc", f"user={user}", format_)
            default = run("sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount").strip()
            qos = run("sacctmgr", "-nP", "show", "qos", "format=Name,MaxSubmitJobsPerUser")
        except HalaError:  # sbatch itself will say where a limit is met
            associations = default = qos = ""
        account = (asked.account if asked else None) or os.environ.get("SBATCH_ACCOUNT") or default
        cluster = config.get("ClusterName", "")
        wanted = (cluster, account, (asked.partition if asked else None) or "", (asked.qos if asked else None) or "")
        submit = submit_limit(associations, qos, *wanted)
    return Limits(int(config["MaxArraySize"]), int(config["MaxJobCount"]), submit)


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config`` as a mapping."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def submit_limit(associations: str, qos: str, cluster: str, account: str, partition: str, name: str) -> int | None:
    """How many jobs a user may have in the queue; None: no limit is known.

    Parameters
    ----------
    associations : lines of Cluster|Account|Partition|QOS|DefaultQOS|MaxSubmitJobs, of this user.
    qos : lines of Name|MaxSubmitJobsPerUser.
    cluster, account, partition, name : what the job will be charged to; ``name`` is its QOS, '' for the default.

    The association is that of the account on this cluster, and of the partition where there is one of its own
    (slurm's sacctmgr(1)); other accounts' limits say nothing. A QOS has a limit of its own beside it.
    """
    rows = [line.split("|") for line in associations.splitlines() if line.count("|") >= 5]
    mine = [row for row in rows if row[0] in (cluster, "") and row[1] == account]
    own = [row for row in mine if row[2] == partition and partition] or [row for row in mine if not row[2]]
    numbers = [int(row[5]) for row in own if row[5].isdigit()]
    chosen = name or next((row[4] for row in own if row[4]), "")
    limits_of_qos = dict(line.split("|")[:2] for line in qos.splitlines() if line.count("|") >= 1)
    numbers += [int(limit)] if (limit := limits_of_qos.get(chosen, "")).isdigit() else []
    return min(numbers, default=None)


def states(jobs: Sequence[str], seconds: float = LOOK_SECONDS) -> list[JobState]:
    """The array tasks of some jobs, in one call; those that Slurm has forgotten are left out.

    Raises SlurmSilent where Slurm does not answer in ``seconds``, HalaError where it refuses to.
    """
    if not jobs:
        return []
    words = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}")
    try:
        return parse_states(run(*words, seconds=seconds))
    except SlurmSilent:
        raise
    except HalaError as error:
        if any(mark in error.message.lower() for mark in FORGOTTEN):
            return []
        raise


def with_comment(comment: str) -> list[str]:
    """Ids of this user's jobs (whole arrays) with a comment that holds ``comment``. Raises HalaError."""
    lines = run("squeue", "--noheader", "--me", "--states=all", "--format=%A|%F|%k", seconds=SECONDS).splitlines()
    rows = [line.strip().split("|", 2) for line in lines if comment in line]
    return list(dict.fromkeys(row[1] for row in rows if len(row) == 3 and comment in row[2]))


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
    """Array tasks that work or may still come to it."""
    return sum(one.state in COMING_BACK for one in found)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel whole arrays. Jobs that ended already are no error.

    Raises HalaError with Slurm's words where it refuses, and SlurmSilent where it does not answer.
    """
    if not jobs:
        return
    try:
        run("scancel", *jobs)
    except SlurmSilent:
        raise
    except HalaError as error:
        left = [said for said in error.message.split("; ") if not any(mark in said.lower() for mark in FORGOTTEN)]
        if left:
            raise HalaError(f"scancel: {'; '.join(left).removeprefix('scancel: ')}", "the jobs go on") from error


def until_it_works(act: Callable[[], object], say: Callable[[str], None]) -> None:
    """Do what a busy or absent controller refuses, again and again: until it works, or Slurm ends us.

    Pauses grow and are drawn by chance, for a whole array may ask at once. Raises FileNotFoundError where there is no
    such command.
    """
    pause = 1.0
    while True:
        try:
            act()
            return
        except (HalaError, subprocess.SubprocessError) as error:
            pause = min(LONGEST_PAUSE, 2 * pause)
            seconds = random.uniform(pause / 2, pause)
            say(f"{' '.join(str(error).split())[:300]}; again in {seconds:.0f} s")
            time.sleep(seconds)


@contextmanager
def outside_any_job(said: Mapping[str, object] | None = None) -> Iterator[None]:
    """The environment for sbatch. ``said`` holds the options, by long name, that the job's file says itself.

    Outside of jobs a person's SBATCH_* variables and SLURM_ACCOUNT count, as for any sbatch, but for options that are
    ``said``. A job that is submitted from within a job must not inherit its SLURM_* variables. ``SLURM_CONF`` stays,
    for it says which cluster this is.
    """
    ours = {key: value for key, value in os.environ.items() if key.startswith(("SLURM_", "SRUN_", "SBATCH_"))}
    ours.pop("SLURM_CONF", None)
    if "SLURM_JOB_ID" in os.environ:
        inherited = ours
    else:
        options = {*(said or {})}
        inherited = {
            key: value for key, value in ours.items() if key in OURS_ALONE or OPTIONS_OF_VARIABLES.get(key) in options
        }
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)
