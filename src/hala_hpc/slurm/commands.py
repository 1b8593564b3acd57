"""Slurm's own commands, run without a shell, what they print, and from that the limits of a cluster.

Limits are the size of an array, jobs in the queue, and jobs of this user in the account asked for.
"""

import os
import pwd
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.schema import Slurm

SECONDS = 60.0
"""A controller under load answers late; one that does not answer for so long is down."""
ASK_SECONDS = 7.0
"""For a question whose answer somebody waits for: `hala status` must say within ten seconds that none came."""
CANCEL_SECONDS = 5.0
"""So long may Slurm take to begin to end what scancel accepted, before we say that it was only asked."""
TASKS = ("squeue", "--noheader", "--array", "--format=%i|%T|%r")
"""What squeue is asked for when tasks are read (see ``parse_states``)."""
NO_SLURM = "are you on a login node? try --site local"

ENDING: Final = "COMPLETING"
"""State of a task that is about to leave its node: for good, or to be back in the queue. squeue does not say which."""
ENDED: Final = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT")
)
"""States of a task that is over. In any other, one new to us too, it works or may come back."""
_HELD = re.compile(r"held|JobHold", re.IGNORECASE)
_UNLAUNCHED = re.compile(r"launch.?fail", re.IGNORECASE)
_NO = re.compile(r"not found|may not be run|disabled|invalid|denied|not permitted", re.IGNORECASE)
_SILENT = re.compile(r"timed? ?out|unable to contact|communicat|connect|zero bytes|no answer|backup controller", re.I)


@dataclass(frozen=True)
class JobState:
    """One array task as squeue shows it."""

    job: str
    state: str
    reason: str

    @property
    def may_work(self) -> bool:
        """Whether it is at work, or may be yet."""
        return self.state not in ENDED

    @property
    def is_held(self) -> bool:
        """Whether Slurm keeps it in the queue until somebody lets it go."""
        return self.state in ("REQUEUE_HOLD", "SPECIAL_EXIT") or (
            self.state == "PENDING" and _HELD.search(self.reason) is not None
        )

    @property
    def is_unlaunched(self) -> bool:
        """Whether Slurm keeps it because a node could not launch it (``launch failed requeued held``)."""
        return self.is_held and _UNLAUNCHED.search(self.reason) is not None


def said(*words: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command. Raises HalaError where there is none, or no answer in time."""
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except (FileNotFoundError, PermissionError) as error:
        problem = "not found" if isinstance(error, FileNotFoundError) else "may not be run here"
        raise HalaError(f"{words[0]}: {problem}", NO_SLURM) from error
    except subprocess.TimeoutExpired as error:
        raise HalaError(f"{words[0]}: no answer from Slurm for {seconds:.0f} s", "try again later") from error


def run(*words: str, seconds: float = SECONDS) -> str:
    """Standard output of a Slurm command. Raises HalaError where it fails, saying what Slurm said."""
    done = said(*words, seconds=seconds)
    if done.returncode != 0:
        raise refusal(words[0], done)
    return done.stdout


def refusal(program: str, answer: subprocess.CompletedProcess[str]) -> HalaError:
    """What Slurm said, in one short line: its programs repeat their names, and one cause in several lines."""
    lines = [re.sub(r"^(\w+: )?((error|fatal): )?", "", line.strip()) for line in answer.stderr.splitlines()]
    if any("resolve_ctls" in line or "could not establish a configuration" in line for line in lines):
        return HalaError(f"{program}: no Slurm is set up here", NO_SLURM)
    words = "; ".join(dict.fromkeys(filter(None, lines)))
    return HalaError(f"{program}: {words or f'exit code {answer.returncode}'}")


def is_silence(error: HalaError | str) -> bool:
    """Whether Slurm said neither yes nor no: what it was asked may have been done all the same."""
    return _SILENT.search(str(error)) is not None


def is_no(error: HalaError) -> bool:
    """Whether Slurm's answer would be the same if it were asked again."""
    return _NO.search(error.message) is not None


def states(jobs: Sequence[str]) -> list[JobState]:
    """The array tasks of some jobs, in one call; those that Slurm has forgotten are left out.

    Raises HalaError where Slurm does not answer.
    """
    if not jobs:
        return []
    done = said(*TASKS, "--states=all", f"--jobs={','.join(jobs)}", seconds=ASK_SECONDS)
    if done.returncode != 0 and "Invalid job id" not in done.stderr:  # that one it has forgotten
        raise refusal("squeue", done)
    return parse_states(done.stdout)


def own_tasks() -> list[JobState]:
    """The array tasks of this user that are in the queue."""
    return parse_states(run(*TASKS, "--me"))


def parse_states(text: str) -> list[JobState]:
    """Lines of squeue in our format."""
    return [JobState(*row) for row in rows(text, 3)]


def rows(text: str, columns: int) -> Iterator[list[str]]:
    """Lines of so many columns, with ``|`` between, as Slurm's programs print them; other lines are passed over."""
    lines = (line.strip().split("|", columns - 1) for line in text.splitlines())
    return (row for row in lines if len(row) == columns)


def counted(tasks: Sequence[JobState]) -> dict[str, int]:
    """How many tasks are in each state; those that wait or ended with the reason that Slurm gives."""
    return dict(
        Counter(
            task.state
            + ("" if task.reason in ("None", "") or task.state in ("RUNNING", ENDING) else f" ({task.reason})")
            for task in tasks
        )
    )


def cancel(jobs: Sequence[str]) -> list[JobState] | None:
    """Cancel arrays or tasks of them, and look whether they end. Jobs that ended already are no error.

    Returns the tasks that Slurm accepted to end but that have not begun to within ``CANCEL_SECONDS``; None where it
    accepted that, and does not answer how far they are. Raises HalaError where scancel was refused or got no answer,
    and jobs may still be running.
    """
    if not jobs:
        return []
    refused = None
    try:
        run("scancel", *jobs)
    except HalaError as error:
        refused = error
    deadline = time.monotonic() + CANCEL_SECONDS
    while True:
        try:
            left = [task for task in states(jobs) if task.may_work and task.state != ENDING]
        except HalaError as error:
            if refused is None:
                return None
            raise refused from error
        if not left or refused is not None or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    if refused is not None and left:
        raise HalaError(f"{refused.message}: {plural(len(left), 'task')} may still be running", refused.hint)
    return left


@contextmanager
def outside_any_job(options: Iterable[str] = ()) -> Iterator[None]:
    """The environment as on a login node: a job submitted from within a job must not inherit its SLURM_* variables.

    ``SLURM_CONF`` stays, for it says which cluster this is. Outside of jobs a person's own SBATCH_* stay, which sites
    ask people to export; but not those of ``options`` (long names), which sbatch would take over what a recipe says.
    """
    if "SLURM_JOB_ID" in os.environ:
        dropped = {key for key in os.environ if key.startswith(("SLURM_", "SRUN_", "SBATCH_"))} - {"SLURM_CONF"}
    else:
        dropped = {variable_of(option) for option in options}
    inherited = {key: os.environ.pop(key) for key in dropped if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(inherited)


def variable_of(option: str) -> str:
    """The input variable of sbatch for an option."""
    irregular = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE"}
    return f"SBATCH_{irregular.get(option, option.upper().replace('-', '_'))}"


def most_minutes(partition: str | None) -> int | None:
    """The time limit of a partition, or of the cluster's default one; None where it has none. Raises HalaError."""
    words = ("scontrol", "show", "partition", *([partition] if partition else []), "--oneliner")
    for line in run(*words, seconds=ASK_SECONDS).splitlines():
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if partition or values.get("Default") == "YES":
            return parse_minutes(values.get("MaxTime", ""))
    return None


def parse_minutes(text: str) -> int | None:
    """``2-00:30:00`` as whole minutes; None for UNLIMITED and whatever else is no time."""
    if not (time := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)):
        return None
    days, hours, minutes, _ = (int(part or 0) for part in time.groups())
    return (days * 24 + hours) * 60 + minutes


ASSOCIATIONS = ("Cluster", "Account", "Partition", "MaxSubmitJobs", "DefaultQOS")
QOS = ("Name", "MaxSubmitJobsPerUser", "MaxSubmitJobsPerAccount")


@dataclass(frozen=True)
class Limits:
    """Tasks in one array, jobs in the queue, jobs of this user (None: no limit)."""

    array: int
    jobs: int
    submit: int | None = None


@dataclass(frozen=True)
class Association:
    """What a user may do with an account on a cluster."""

    submit: int | None
    qos: str


Associations = dict[tuple[str, str, str], Association]
"""By cluster, account and partition, which is empty for all partitions."""


def limits(slurm: Slurm | None = None) -> Limits:
    """The limits of this cluster, and of this user for what ``slurm`` asks for. Works without accounting.

    Raises HalaError where there is no Slurm.
    """
    config = parse_config(run("scontrol", "show", "config"))
    most = None
    if "limits" in config.get("AccountingStorageEnforce", ""):
        most = _of_user(config.get("ClusterName", ""), slurm or Slurm())
    return Limits(int(config["MaxArraySize"]), int(config["MaxJobCount"]), most)


def user() -> str:
    """The name of this user, as Slurm has it: $USER is not set everywhere, and may be another's."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER") or str(os.getuid())


def _of_user(cluster: str, slurm: Slurm) -> int | None:
    account = (
        slurm.account or os.environ.get("SBATCH_ACCOUNT") or _show("user", user(), "format=DefaultAccount").strip()
    )
    partition = slurm.partition or os.environ.get("SBATCH_PARTITION", "")
    associations = parse_associations(_show("assoc", f"user={user()}", f"format={','.join(ASSOCIATIONS)}"))
    ours = association_of(associations, cluster, account, partition)
    qos = slurm.qos or os.environ.get("SBATCH_QOS") or (ours.qos if ours else "")
    of_qos = parse_qos(_show("qos", f"format={','.join(QOS)}")).get(qos)
    return _least(ours.submit if ours else None, of_qos)


def _show(*words: str) -> str:
    return said("sacctmgr", "-nP", "show", *words).stdout


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config`` as a mapping."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def parse_associations(text: str) -> Associations:
    """Lines of ``sacctmgr -nP show assoc`` in our format."""
    lines = rows(text, len(ASSOCIATIONS))
    return {(line[0], line[1], line[2]): Association(_number(line[3]), line[4]) for line in lines}


def association_of(associations: Associations, cluster: str, account: str, partition: str) -> Association | None:
    """The association that Slurm goes by: of this cluster and account, and of the partition where there is one."""
    return associations.get((cluster, account, partition)) or associations.get((cluster, account, ""))


def parse_qos(text: str) -> Mapping[str, int | None]:
    """The smallest limit on jobs of each QOS, out of ``sacctmgr -nP show qos`` in our format."""
    return {name: _least(*map(_number, numbers)) for name, *numbers in rows(text, len(QOS))}


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
