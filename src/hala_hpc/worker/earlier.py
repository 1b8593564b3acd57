"""The workers that a job had before this one, which died: nobody waits until their leases are stale.

Slurm runs a job once at a time. When it starts it again, or its script does (see ``slurm.again``), the step before has
ended, on this host at least: a node that Slurm gave up may still work. By hand a job may have several workers at a
time, so each is looked for.
"""

import contextlib
import os
import socket
from pathlib import Path

from hala_hpc.run import layout, lease, ledger
from hala_hpc.run.layout import RunDirectory

CLOCK_SECONDS = 2.0
"""The time of the machine's start is known by the second."""


def free_shards(run: RunDirectory, worker: str, job: str, ttl: float) -> None:
    """Have the leases be stale of all workers of this job on this host, and of their processes, that are no more.

    Only names are listed, of the workers that did not give back what they held: a run has thousands of ledgers.
    """
    ours = f"{socket.gethostname()}-{job}-"
    for name in layout.listing(run.workers):
        if name.startswith(ours) and name.partition("+")[0] != worker and not _lives(run.ledger / f"{name}.jsonl"):
            lease.outdate(run, name, ttl)


def _lives(file: Path) -> bool:
    """Whether the process that wrote a ledger is there: not a later one of the same number."""
    opening = ledger.first(file)
    with contextlib.suppress(OSError, ValueError, LookupError):
        words = Path(f"/proc/{opening['pid']}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        began = float(boot.split()[1]) + float(words[19]) / os.sysconf("SC_CLK_TCK")
        return words[0] not in "ZX" and began <= opening["time"] + CLOCK_SECONDS
    return False
