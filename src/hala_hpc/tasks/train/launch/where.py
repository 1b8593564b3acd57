"""Where the ranks of a training may run: what this job has, as Slurm and the submission's variables say.

The recipe is frozen, but a training may go on with another number of nodes or GPUs: so the numbers come from the job.
"""

import os
import shlex
import socket
import sys
import zlib
from dataclasses import dataclass

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.slurm import allocation as slurm
from hala_hpc.slurm.script import CPUS, GPUS, PYTHON, RANKS, SRUN
from hala_hpc.tasks.train import task as train
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


def allocation(recipe: Recipe) -> Allocation:
    """What this process's job has. Raises HalaError where several nodes are wanted and srun is out of reach."""
    asked = recipe.site.slurm
    each = _number(RANKS, train.ranks_per_node(recipe.site))
    here_has = len(os.sched_getaffinity(0))
    cpus = _number(CPUS, max(1, (asked.cpus_per_worker or here_has) // each))
    gpus = _number(GPUS, asked.gpus_per_worker)
    python = tuple(shlex.split(os.environ.get(PYTHON, ""))) or (sys.executable,)
    here = (socket.gethostname(),)
    if executor() != "slurm":
        return Allocation(here, each, cpus, gpus, None, (sys.executable,), (), "127.0.0.1", None)
    end = slurm.end_time(os.environ["SLURM_JOB_ID"]) if _has_slurm() else None
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if not _has_slurm():
        if nodes > 1:
            raise HalaError(
                "srun: not found, so no rank can be started on the other nodes",
                "a container must bring Slurm's commands, /etc/slurm and munge's socket along",
            )
        return Allocation(here, each, cpus, gpus, None, (sys.executable,), (), "127.0.0.1", end)
    names = tuple(slurm.node_names())
    extra = tuple(shlex.split(os.environ.get(SRUN, "")))
    return Allocation(names, each, cpus, gpus, job_name(), python, extra, slurm.address(names[0]), end)


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


def _has_slurm() -> bool:
    import shutil

    return shutil.which("srun") is not None and shutil.which("scontrol") is not None


def _number(variable: str, default: int) -> int:
    given = os.environ.get(variable, "")
    return int(given) if given.isdigit() else default
