"""Tasks that Slurm holds because a node could not launch them: they are let go again, a few times, without that node.

As after a prolog that fails: Slurm drains the node, and puts the task back in the queue, held. It has not ended then,
so no job that waits for its end, as a steward does, would ever come. What people or the site hold is theirs to let go.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.run import decisions
from hala_hpc.slurm import accounting, commands, record
from hala_hpc.slurm.queue import Queue, ask

MOST_RELEASES: Final = 3
"""Of one task: what fails on so many nodes is no node's fault (ours)."""


def unlaunched(queue: Queue, *runs: Path) -> list[str]:
    """Tasks of some runs, stewards too, that are held after a failed launch and may be let go once more."""
    tasks = [task.job for task in (*queue.tasks, *queue.stewards) if task.is_unlaunched]
    if not tasks:
        return []
    folders = dict.fromkeys((*runs, *(grid for run in runs for grid in record.grid_of(run))))
    noted = decisions.read(*folders)
    times = Counter(item.event.get("task") for item in noted if item.kind == decisions.RELEASED)
    return [task for task in tasks if times[task] < MOST_RELEASES]


def release_all(run: Path) -> list[str]:
    """Let all of them go, and say which. Raises HalaError where Slurm does not answer or refuses, OSError."""
    tasks = unlaunched(ask(run), run)
    release(run, tasks)
    return tasks


def release(folder: Path, tasks: Sequence[str]) -> None:
    """Let some tasks go, which is written down in ``folder`` before. Raises as above."""
    for task in tasks:
        node = _last_node(task)
        decisions.note(folder, decisions.RELEASED, task=task, without=node)
        if node:
            _exclude(task, node)
        commands.run("scontrol", "release", task)


def _last_node(task: str) -> str:
    """Where it was launched last; empty where accounting does not know, or it was more than one node."""
    lines = (accounting.ask([task], "NodeList", "--allocations", "--duplicates") or "").splitlines()
    nodes = [line for line in lines if line and "None" not in line]
    return nodes[-1] if nodes and not set(nodes[-1]) & set("[,") else ""


def _exclude(task: str, node: str) -> None:
    """Besides those that its submission left out. A Slurm that refuses has drained the node, as a rule."""
    try:
        shown = commands.run("scontrol", "show", "job", task, "--oneliner")
        words = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        known = words.get("ExcNodeList", "(null)")
        nodes = node if known == "(null)" else f"{known},{node}"
        commands.run("scontrol", "update", f"JobId={task}", f"ExcNodeList={nodes}")
    except HalaError as error:
        if commands.is_silence(error):
            raise
