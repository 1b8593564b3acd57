"""Slurm's own commands, run without a shell, and the pure functions that read what they print."""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural

SECONDS = 60.0
"""A controller under load answers late; one that does not answer for so long is down."""
ASK_SECONDS = 7.0
"""For a question whose answer somebody waits for: `hala status` is to say within ten seconds that there is none."""
CANCEL_SECONDS = 5.0
"""So long may Slurm take to begin to end what scancel accepted, before we say that it was only asked."""
NO_SLURM = "are you on a login node? try --site local"

RETURNING: Final = frozenset(
    {
        "CONFIGURING",
        "PENDING",
        "PREEMPTED",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESIZING",
        "RESV_DEL_HOLD",
        "RUNNING",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
    }
)
"""States of a task that works or can do so (again)."""
ENDING: Final = "COMPLETING"
"""Of a task that is about to leave its node: for good, or to be back in the queue. squeue does not tell which."""
ENDED: Final = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States of a task that is over. One in none of the three is new to us, so it may well come back."""
_HELD = re.compile(r"held", re.IGNORECASE)
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


@dataclass(frozen=True)
class Said:
    """How a Slurm command ended, and what it said."""

    code: int
    out: str
    error: str


def said(*words: str, seconds: float = SECONDS) -> Said:
    """Run a Slurm command. Raises HalaError where there is none, or no answer in time."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise HalaError(f"{words[0]}: not found", NO_SLURM) from error
    except PermissionError as error:
        raise HalaError(f"{words[0]}: may not be run here", NO_SLURM) from error
    except subprocess.TimeoutExpired as error:
        raise HalaError(f"{words[0]}: no answer from Slurm for {seconds:.0f} s", "try again later") from error
    return Said(done.returncode, done.stdout, done.stderr)


def run(*words: str, seconds: float = SECONDS) -> str:
    """Standard output of a Slurm command. Raises HalaError where it fails, saying what Slurm said."""
    done = said(*words, seconds=seconds)
    if done.code != 0:
        raise refusal(words[0], done)
    return done.out


def refusal(program: str, done: Said) -> HalaError:
    """What Slurm said, in one short line: its programs repeat their names, and one cause in several lines."""
    lines = [re.sub(r"^(\w+: )?((error|fatal): )?", "", line.strip()) for line in done.error.splitlines()]
    told = list(dict.fromkeys(line for line in lines if line))
    if any("resolve_ctls" in line or "could not establish a configuration" in line for line in told):
        return HalaError(f"{program}: no Slurm is set up here", NO_SLURM)
    return HalaError(f"{program}: {'; '.join(told) or f'exit code {done.code}'}")


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
    words = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}")
    done = said(*words, seconds=ASK_SECONDS)
    if done.code != 0 and "Invalid job id" not in done.error:  # that one it has forgotten
        raise refusal("squeue", done)
    return parse_states(done.out)


def parse_states(text: str) -> list[JobState]:
    """Lines of squeue in our format."""
    rows = (line.strip().split("|", 2) for line in text.splitlines() if line.count("|") >= 2)
    return [JobState(*row) for row in rows]


def counted(found: Sequence[JobState]) -> dict[str, int]:
    """How many tasks are in each state; those that wait or ended with the reason that Slurm gives."""
    silent = ("None", "")
    names = (
        one.state if one.reason in silent or one.state in ("RUNNING", ENDING) else f"{one.state} ({one.reason})"
        for one in found
    )
    return dict(Counter(names))


def live_workers(found: Sequence[JobState]) -> int:
    """Array tasks that work or may yet."""
    return sum(one.may_work for one in found)


def cancel(jobs: Sequence[str]) -> list[JobState]:
    """Cancel arrays or tasks of them, and look whether they end. Jobs that ended already are no error.

    Returns
    -------
    The tasks that Slurm accepted to end but that have not begun to within ``CANCEL_SECONDS``.

    Raises
    ------
    HalaError : scancel was refused or got no answer, and jobs may be at work still.
    """
    if not jobs:
        return []
    try:
        done = said("scancel", *jobs)
        refused = refusal("scancel", done) if done.code != 0 else None
    except HalaError as error:
        refused = error
    deadline = time.monotonic() + CANCEL_SECONDS
    while True:
        try:
            left = [one for one in states(jobs) if one.may_work and one.state != ENDING]
        except HalaError as error:
            raise (refused or HalaError(f"scancel was accepted, but {error.message}", "look again later")) from error
        if not left or refused is not None or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    if refused is not None and left:
        raise HalaError(f"{refused.message}: {plural(len(left), 'task')} may be at work still", refused.hint)
    return left


@contextmanager
def outside_any_job(options: Iterable[str] = ()) -> Iterator[None]:
    """The environment as on a login node: a job submitted from within a job must not inherit its SLURM_* variables.

    ``SLURM_CONF`` stays, for it says which cluster this is. Outside of jobs a person's own SBATCH_* stay, which sites
    tell people to export; but not those of ``options`` (long names), which sbatch would take over what a recipe says.
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
