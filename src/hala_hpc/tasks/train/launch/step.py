"""Starting a program on all nodes of a training: by srun, or as plain processes where there is no Slurm."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from hala_hpc.slurm import allocation as slurm
from hala_hpc.tasks.train.launch.where import Allocation

WAIT_SECONDS = 120
"""How long ranks may outlive the first one that ended well."""
KILL_SECONDS = 90.0
"""A step that is still there so long after it was killed has a process that no signal ends (a dead file server)."""


class Step(Protocol):
    """A program that runs as several tasks."""

    def ended(self) -> int | None:
        """The worst exit code once all tasks ended, else None."""

    def signal(self, number: int) -> None:
        """Send a signal to every task."""

    def kill(self) -> None:
        """End all tasks at once, by force."""


def start(
    where: Allocation, words: Sequence[str], variables: Mapping[str, str], each: int, log: Path | None = None
) -> Step:
    """Start ``python`` with these words, ``each`` times on each node. Output goes to ``log``, else to our own."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log is not None else None
        if where.job is None:
            return LocalStep([*where.python, *words], {**os.environ, **variables}, each, out)
        return SlurmStep(_srun(where, words, each), {**slurm.step_environment(), **variables}, out)


def finish(step: Step, seconds: float) -> int | None:
    """Wait so long for a step to end by itself, then kill it. None where not even that ended it."""
    code = _await(step, seconds)
    if code is None:
        step.kill()
        code = _await(step, KILL_SECONDS)
    return code


def _await(step: Step, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while (code := step.ended()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return code


def _srun(where: Allocation, words: Sequence[str], each: int) -> list[str]:
    """Everything is said anew: srun would otherwise take it from the variables of the step that we are."""
    nodes = len(where.nodes)
    options = [
        "--overlap",  # the launcher's own step holds cores of the first node
        f"--nodes={nodes}",
        f"--ntasks={nodes * each}",
        f"--ntasks-per-node={each}",
        "--distribution=block",
        f"--cpus-per-task={where.cpus_per_rank}",
        "--mem=0",  # all that the job has
        *([f"--gres=gpu:{where.gpus_per_node}"] if where.gpus_per_node else []),
        "--export=ALL",
        "--kill-on-bad-exit=1",
        f"--wait={WAIT_SECONDS}",
        "--unbuffered",
        "--quiet",
        *where.srun,
    ]
    return ["srun", *options, *where.python, *words]


class SlurmStep:
    """A job step, whose srun runs detached from us: see ``train_detach``."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], out: IO[bytes] | None) -> None:
        control, self._control = os.pipe()
        self._status, status = os.pipe()
        os.set_blocking(self._status, False)
        words = [sys.executable, "-m", "hala_hpc.tasks.train.launch.detach", str(control), str(status), *command]
        try:
            # Should a signal end it before it is out of reach, the pipe ends without a word: a step that failed.
            subprocess.run(words, env=environment, pass_fds=(control, status), stdout=out, stderr=out, check=False)
        finally:
            os.close(control)
            os.close(status)
        self._code: int | None = None

    def ended(self) -> int | None:
        if self._code is None:
            with contextlib.suppress(BlockingIOError):
                told = os.read(self._status, 16)
                self._code = int(told) if told else -1
                os.close(self._control)
                os.close(self._status)
        return self._code

    def signal(self, number: int) -> None:
        """By srun, which passes SIGUSR1 and SIGUSR2 on to all tasks."""
        if self.ended() is None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._control, bytes([number]))

    def kill(self) -> None:
        self.signal(signal.SIGTERM)  # srun then ends its step by SIGKILL


class LocalStep:
    """Processes of this machine. One that fails ends the others, as srun does it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], tasks: int, out: IO[bytes] | None
    ) -> None:
        self._tasks = []
        for rank in range(tasks):
            mine = {
                **environment,
                "RANK": str(rank),
                "WORLD_SIZE": str(tasks),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(tasks),
            }
            task = subprocess.Popen(
                command, env=mine, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
            self._tasks.append(task)

    def ended(self) -> int | None:
        codes = [task.poll() for task in self._tasks]
        if any(codes):
            self.kill()
        return max(abs(code or 0) for code in codes) if None not in codes else None

    def signal(self, number: int) -> None:
        for task in self._tasks:
            if task.poll() is None:
                task.send_signal(number)

    def kill(self) -> None:
        for task in self._tasks:
            if task.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(task.pid, signal.SIGKILL)
