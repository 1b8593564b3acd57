"""Which rank this process is, as Slurm's task variables or the launcher's own say."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """``launch`` names the start of all ranks together; ``end_time`` is when Slurm ends the job (unix seconds)."""

    rank: int
    world: int
    local_rank: int
    launch: str
    end_time: float | None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def place() -> Place:
    """Read the environment, and complete it as torch.distributed wants it (``RANK`` and so on)."""
    rank, world, local = (
        os.environ.get(ours) or os.environ.get(slurms, default)
        for ours, slurms, default in (
            ("RANK", "SLURM_PROCID", "0"),
            ("WORLD_SIZE", "SLURM_NTASKS", "1"),
            ("LOCAL_RANK", "SLURM_LOCALID", "0"),
        )
    )
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(local)})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    end = os.environ.get("HALA_END_TIME")
    return Place(
        int(rank or 0),
        int(world or 1),
        int(local or 0),
        os.environ.get("HALA_LAUNCH", "by-hand"),
        float(end) if end else None,
    )
