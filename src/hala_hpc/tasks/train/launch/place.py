"""The place of a process in a launch, by its environment; the signals that stop a rank, and its exit codes.

Light: it is imported before anything that could fail.
"""

import os
import signal
from dataclasses import dataclass
from typing import Final

TRAINED, REFUSED, STOPPED, DIVERGED = 0, 2, 85, 86
"""Exit codes: trained and exported; cannot be done as the recipe says; stopped on request, with a checkpoint; stopped
for good. ``failure.json`` gives the reason for the second and the last. Anything else is a crash, after which the
training goes on from its last complete checkpoint."""
PLANNED: Final = (TRAINED, STOPPED, DIVERGED)
SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""They ask a rank to save and to stop."""
LAUNCH, RANKS_PER_NODE, END_TIME = "HALA_LAUNCH", "HALA_RANKS_PER_NODE", "HALA_END_TIME"
"""Variables that the launcher sets."""
RANK_VARIABLES: Final = (
    ("RANK", "SLURM_PROCID", "0"),
    ("WORLD_SIZE", "SLURM_NTASKS", "1"),
    ("LOCAL_RANK", "SLURM_LOCALID", "0"),
    ("LOCAL_WORLD_SIZE", RANKS_PER_NODE, ""),
)
"""Torch's name of each variable, where its value is found under srun, and the value without either."""


@dataclass(frozen=True)
class RankPlace:
    """``launch`` names the start of all ranks together; ``end_time`` is when Slurm ends the job (unix seconds)."""

    rank: int
    world: int
    local_rank: int
    ranks_per_node: int
    launch: str
    end_time: float | None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def place() -> RankPlace:
    """Read the environment, and complete it as torch.distributed wants it (``RANK`` and so on)."""
    for name, slurms, default in RANK_VARIABLES:
        if value := os.environ.get(name) or os.environ.get(slurms, default):
            os.environ[name] = value
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    rank, world, local_rank = (int(os.environ[name]) for name, *_ in RANK_VARIABLES[:3])
    ranks_per_node = int(os.environ.get(RANKS_PER_NODE, "1"))
    end = os.environ.get(END_TIME)
    launch = os.environ.get(LAUNCH, "by-hand")
    return RankPlace(rank, world, local_rank, ranks_per_node, launch, float(end) if end else None)
