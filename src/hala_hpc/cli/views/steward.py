"""What is shown of stewards: in ``hala status``, ``hala logs`` and ``hala steward``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import few
from hala_hpc.run import decisions
from hala_hpc.run.decisions import Noted
from hala_hpc.slurm import record
from hala_hpc.slurm.queue import Queue


def line(folder: Path, queue: Queue) -> str:
    """What a steward last did, and what it waits for; empty where there is nothing to say of one."""
    last = decisions.last_decision(decisions.read(folder, *record.grid_of(folder)))
    parts = [f"{_when(last)}: {_words(last)}"] if last is not None else []
    parts += [f"job {task.job.partition('_')[0]} {task.state} ({task.reason})" for task in queue.stewards[:1]]
    return "; ".join(parts)


def as_json(folder: Path, queue: Queue) -> dict[str, Any]:
    """The same for scripts: the last decision as it is in the ledger, and the jobs of stewards by state."""
    last = decisions.last_decision(decisions.read(folder, *record.grid_of(folder)))
    jobs = {task.job.partition("_")[0]: task.state for task in queue.stewards}
    return {"decided": dict(last.event) if last is not None else None, "jobs": jobs}


def history(noted: Sequence[Noted]) -> list[str]:
    """All that was decided, oldest first."""
    return [f"steward: {_when(item)}: {_words(item)}" for item in noted]


def _when(item: Noted) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.at))


def _words(item: Noted) -> str:
    event = item.event
    if item.kind == decisions.STARTING:
        return f"{'a steward' if event.get('by') == decisions.STEWARD else 'a person'} starts workers"
    if item.kind == decisions.CANCELLED:
        return "a person cancelled it"
    if item.kind == decisions.RELEASED:
        without = f", without {node}" if (node := event.get("without")) else ""
        return f"{event.get('task')} is let go, which Slurm held after a failed launch{without}"
    if item.kind == decisions.AT_END:
        return f"the end is announced; {event['error']}" if "error" in event else "the end is announced"
    changes = f" [{', '.join(changed)}]" if (changed := event.get("changes")) else ""
    jobs = f", job {few(started, 3)}" if (started := event.get("jobs")) else ""
    hint = f" ({event['hint']})" if event.get("hint") else ""
    return f"{event.get('action')}: {event.get('reason')}{changes}{jobs}{hint}"
