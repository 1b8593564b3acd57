"""Where the ranks of a training may run, and starting a program on all its nodes: by srun, or as plain processes."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.slurm import allocation as slurm
from hala_hpc.slurm.script import CPUS, GPUS, PYTHON, RANKS, SRUN
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.launch.signs import END_TIME, LAUNCH, RANKS_PER_NODE
from hala_hpc.worker.job import executor, job_name

LOWEST_PORT, PORTS = 20_000, 12_000
"""Below 32768, where Linux starts to hand out ports to outgoing connections."""


@dataclass(frozen=True)
class Allocation:
    """The nodes of this job, and what each rank gets of them.

    ``job`` is Slurm's name of it, None where ranks are plain processes of this machine. ``python`` and ``srun`` are
    words of the command that starts a rank's Python: those of the site's environment.
    """

    nodes: tuple[str, ...]
    ranks_per_node: int
    cpus_per_rank: int
    gpus_per_node: int
    job: str | None
    python: tuple[str, ...]
    srun: tuple[str, ...]
    address: str
    end_time: float | None

    @property
    def world(self) -> int:
        """Ranks on all nodes."""
        return len(self.nodes) * self.ranks_per_node

    def node_of(self, rank: int) -> str:
        """Ranks fill one node after the other."""
        return self.nodes[rank // self.ranks_per_node]

    def variables(self, launch: str) -> dict[str, str]:
        """The environment of every rank of a launch, and of its preflight."""
        variables = {
            LAUNCH: launch,
            RANKS_PER_NODE: str(self.ranks_per_node),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(rendezvous_port(launch)),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(min(self.cpus_per_rank, os.cpu_count() or 1))),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return variables | ({END_TIME: str(self.end_time)} if self.end_time is not None else {})


def allocation(recipe: Recipe) -> Allocation:
    """What this process's job has. Raises HalaError where several nodes are wanted and srun is out of reach."""
    settings = recipe.site.slurm
    ranks = _number(RANKS, train.ranks_per_node(recipe.site))
    cpus = _number(CPUS, max(1, (settings.cpus_per_worker or len(os.sched_getaffinity(0))) // ranks))
    gpus = _number(GPUS, settings.gpus_per_worker)
    is_job = executor() == "slurm"
    if not is_job or not (shutil.which("srun") and shutil.which("scontrol")):
        if is_job and int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1:
            raise HalaError(
                "srun: not found, so no rank can be started on the other nodes",
                "a container must bring Slurm's commands, /etc/slurm and munge's socket along",
            )
        here = (socket.gethostname(),)
        return Allocation(here, ranks, cpus, gpus, None, (sys.executable,), (), "127.0.0.1", None)
    names = tuple(slurm.node_names())
    python = tuple(shlex.split(os.environ.get(PYTHON, ""))) or (sys.executable,)
    extra = tuple(shlex.split(os.environ.get(SRUN, "")))
    end = slurm.end_time(os.environ["SLURM_JOB_ID"])
    return Allocation(names, ranks, cpus, gpus, job_name(), python, extra, slurm.address(names[0]), end)


def rendezvous_port(launch: str) -> int:
    """A port that is free on this host, where rank 0 will be; drawn from the launch's name."""
    first = zlib.crc32(launch.encode())
    for offset in range(PORTS):
        port = LOWEST_PORT + (first + offset) % PORTS
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise HalaError("no free port for the ranks to meet at")


def _number(variable: str, default: int) -> int:
    given = os.environ.get(variable, "")
    return int(given) if given.isdigit() else default


WAIT_SECONDS = 120
"""How long ranks may outlive the first one that ended well."""
KILL_SECONDS = 90.0
"""A step that is still there so long after it was killed has a process that no signal ends (a dead file server)."""


class SlurmStep:
    """A job step, whose srun runs detached from us: see ``keepers``."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], out: IO[bytes] | None) -> None:
        control, self._control = os.pipe()
        self._status, status = os.pipe()
        os.set_blocking(self._status, False)
        program = [sys.executable, "-m", "hala_hpc.tasks.train.launch.keepers", "detach"]
        words = [*program, str(control), str(status), *command]
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
                code = os.read(self._status, 16)
                self._code = int(code) if code else -1
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
        run = partial(
            subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        count = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(tasks))
        numbers = (dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(tasks))
        self._tasks = [run(env={**environment, **number, **count}) for number in numbers]

    def ended(self) -> int | None:
        codes = [task.poll() for task in self._tasks]
        if any(codes):
            self.kill()
        return max(abs(code or 0) for code in codes) if None not in codes else None

    def signal(self, number: int) -> None:
        for task in self._tasks:
            task.send_signal(number)  # does nothing once it has ended

    def kill(self) -> None:
        for task in self._tasks:
            if task.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(task.pid, signal.SIGKILL)


Step = SlurmStep | LocalStep
"""A program that runs as several tasks. ``ended``: the worst exit code once all tasks ended, else None."""


def start(where: Allocation, launch: str, words: Sequence[str], tasks_per_node: int, log: Path | None = None) -> Step:
    """Start ``python`` with these words, so many times on each node. Output goes to ``log``, else to our own."""
    variables = where.variables(launch)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log is not None else None
        if where.job is None:
            return LocalStep([*where.python, *words], {**os.environ, **variables}, tasks_per_node, out)
        return SlurmStep(_srun(where, words, tasks_per_node), {**slurm.step_environment(), **variables}, out)


def finish(step: Step, seconds: float, should_stop: Callable[[], bool] = lambda: False) -> int | None:
    """Wait so long for a step to end by itself, or until a stop, then kill it. None where not even that ended it."""
    deadline, is_killed = time.monotonic() + seconds, False
    while (code := step.ended()) is None:
        if time.monotonic() >= deadline or (should_stop() and not is_killed):
            if is_killed:
                break
            step.kill()
            deadline, is_killed = time.monotonic() + KILL_SECONDS, True
        time.sleep(0.1)
    return code


def _srun(where: Allocation, words: Sequence[str], tasks_per_node: int) -> list[str]:
    """All options are given anew: srun would otherwise take them from the variables of the step that we are."""
    nodes = len(where.nodes)
    options = [
        "--overlap",  # the launcher's own step holds cores of the first node
        f"--nodes={nodes}",
        f"--ntasks={nodes * tasks_per_node}",
        f"--ntasks-per-node={tasks_per_node}",
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
