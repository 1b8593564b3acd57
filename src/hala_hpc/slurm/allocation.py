"""What a running job hears of Slurm and asks of it: signals, its nodes and their addresses, its end, other nodes."""

import contextlib
import os
import random
import signal
import time
import types
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import again, commands

STOP_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Slurm's notice of the time limit (as submitit and our sbatch scripts ask for it), a preemption, a person."""
SECONDS = 30.0
"""How long Slurm may refuse to change a job that it is just ending. It took milliseconds on Slurm 22.05."""
REQUEUE_SECONDS = 20.0
"""For one try to requeue: scontrol itself asks a controller that is away again and again, for a minute."""
LONGEST_PAUSE = 15.0
"""Between two tries, in seconds."""
KEPT = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID")
"""What a step within the job needs to know of the environment of the step that starts it."""
OPTIONS = {"Features": "constraint", "NumNodes": "nodes", "TresPerNode": "gres"} | {
    name: name.lower() for name in ("Partition", "Account", "QOS", "Reservation")
}
"""Options of sbatch, by their names in what scontrol shows of a job."""
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


class StopFlag:
    """Remembers the first stop signal; whoever works asks it between two steps, so nothing is interrupted half-way."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self.signal: int | None = None
        self._is_silent = is_silent
        for number in STOP_SIGNALS:
            signal.signal(number, self._received)

    def ignore(self) -> None:
        """All is given back: a further signal must not end the process before its exit code says how it ended.

        Slurm tends to send more than one, and Python's own end gives handlers back to the system, not what is ignored.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def __call__(self) -> bool:
        return self.signal is not None

    def _received(self, number: int, _: types.FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            if not self._is_silent:
                os.write(2, f"hala: {signal.Signals(number).name}: keeping what is finished, then stopping\n".encode())


def step_environment() -> dict[str, str]:
    """The environment for a step of another shape than the one that we are.

    srun takes its options from SLURM_* variables too, and those of our own step (one task on one node, no GPU) would
    shape the new one.
    """
    dropped = ("SLURM_", "SRUN_", "SBATCH_", *DEVICES)
    return {key: value for key, value in os.environ.items() if key in KEPT or not key.startswith(dropped)}


def given() -> dict[str, int]:
    """What Slurm tells this job of its allocation: GPUs on this node, nodes, and since when (seconds since 1970).

    ``life``: which worker in it this one is, by the job's script (see ``again``).
    """
    variables = {
        "gpus_given": "SLURM_GPUS_ON_NODE",
        "nodes_given": "SLURM_JOB_NUM_NODES",
        "allocated": "SLURM_JOB_START_TIME",
        "life": again.LIFE,
    }
    values = {name: os.environ.get(variable, "") for name, variable in variables.items()}
    return {name: int(value) for name, value in values.items() if value.isdigit()}


def node_names() -> list[str]:
    """The nodes of this job, in Slurm's order; the batch script runs on the first."""
    return commands.run("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()


def address(node: str) -> str:
    """Where a node is reached: its name may not resolve on the others. Raises HalaError for an unknown node."""
    return _shown("node", node).get("NodeAddr", node)


def end_time(job: str) -> float | None:
    """When Slurm will end a job, in seconds since 1970; None where it has no limit or Slurm does not say."""
    if (known := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():  # since Slurm 23.02
        return float(known)
    with contextlib.suppress(HalaError):
        return parse_end(_shown("job", job).get("EndTime", ""))
    return None


def parse_end(text: str) -> float | None:
    """Slurm's times are local and without a zone; ``Unknown`` and the like are None."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def fields(text: str) -> dict[str, str]:
    """The ``Key=Value`` words of ``scontrol show --oneliner``; of a repeated key the first, as of array tasks."""
    pairs = (word.split("=", 1) for word in text.split() if "=" in word)
    return dict(reversed([(key, value) for key, value in pairs]))


def can_do_without(job: str, nodes: Iterable[str]) -> bool:
    """Whether Slurm could ever start the job without these nodes: else it would wait for ever."""
    try:
        commands.run(*test_only(_shown("job", job), nodes))
    except HalaError:
        return False
    return True


def test_only(job: dict[str, str], nodes: Iterable[str]) -> list[str]:
    """The sbatch command that tries, without submitting, what a job of these fields asked for, without some nodes."""
    given = {option: job.get(key, "(null)") for key, option in OPTIONS.items()}
    given["gres"] = given["gres"].replace("gres:", "").replace("gres/", "")
    given["nodes"] = given["nodes"].partition("-")[0]
    options = [f"--{option}={value}" for option, value in given.items() if value not in ("(null)", "")]
    excluded = ",".join(_excluded(job, nodes))
    return ["sbatch", "--test-only", *options, f"--exclude={excluded}", "--wrap=true"]


def requeue(job: str, tell: Callable[[str], None] = lambda _: None) -> None:
    """Put our own job back in the queue: tries until Slurm takes it, or ends this job, or says a plain no.

    A controller may be away when the time is over, and workers that started together ask it together: so the pauses
    between two tries grow, and chance is in them. Raises HalaError for a no: there is no scontrol here, or the job
    may not be requeued.
    """
    pause = 1.0
    while True:
        try:
            commands.run("scontrol", "requeue", job, seconds=REQUEUE_SECONDS)
            return
        except HalaError as error:
            if commands.is_no(error):
                raise
            tell(error.message)
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, LONGEST_PAUSE)


def requeue_without(job: str, nodes: Iterable[str]) -> None:
    """Put our own job back in the queue, to run on other nodes than these too. Raises HalaError where Slurm refuses.

    Note
    ----
    Nodes can be excluded only while a job is pending, and it is as soon as it is requeued, although we still live:
    Slurm ends us with SIGTERM, and KillWait later (30 s by default) with SIGKILL. The caller should wait for that.
    """
    excluded = _excluded(_shown("job", job), nodes)
    requeue(job)
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            commands.run("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(excluded)}")
            return
        except HalaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _excluded(job: dict[str, str], nodes: Iterable[str]) -> Sequence[str]:
    before = job.get("ExcNodeList", "(null)")
    return [*([before] if before not in ("(null)", "") else []), *nodes]


def _shown(kind: str, name: str) -> dict[str, str]:
    return fields(commands.run("scontrol", "show", kind, name, "--oneliner"))
