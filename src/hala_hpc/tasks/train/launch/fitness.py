"""Whether the nodes of this job are fit for a training, and how to go on without those that are not."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.run import ledger
from hala_hpc.run.files import remove_tree, write_durably
from hala_hpc.run.ledger import Ledger
from hala_hpc.slurm import allocation as slurm
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.launch import bad_nodes, preflight
from hala_hpc.tasks.train.launch import step as train_step
from hala_hpc.tasks.train.launch.bad_nodes import Bad
from hala_hpc.tasks.train.launch.launcher import variables
from hala_hpc.tasks.train.launch.where import Allocation
from hala_hpc.worker.context import say

PREFLIGHT_SECONDS = 90.0
"""A preflight takes less than a minute; one that is not through by now never will be."""
MOST_FAULTS = 2
"""A node that was at fault so often is left out."""


def check(run: Path, name: str, where: Allocation, slowest: float, should_stop: Callable[[], bool]) -> list[Bad]:
    """Run the preflight; bad nodes, none where it was stopped. Its findings stay in ``training/preflight``."""
    began = time.monotonic()
    log = run / paths.RANK_LOGS / f"{name}.preflight.log"
    words = ["-m", "hala_hpc.tasks.train.launch.preflight", str(run)]
    step = train_step.start(where, words, variables(name, where), where.ranks_per_node, log)
    while step.ended() is None and time.monotonic() - began < PREFLIGHT_SECONDS and not should_stop():
        time.sleep(0.1)
    if step.ended() is None:
        train_step.finish(step, 0.0)
    if should_stop():
        return []
    reports = preflight.read(run, name)
    bad = bad_nodes.judge(reports, where.nodes, where.ranks_per_node, slowest)
    told = {
        "nodes": where.nodes,
        "bad": [asdict(one) for one in bad],
        "ranks": [asdict(reports[r]) for r in sorted(reports)],
    }
    write_durably(run / paths.PREFLIGHT / f"{name}.json", json.dumps(told, indent=1).encode())
    remove_tree(preflight.folder(run, name))
    first = reports.get(0)
    speed = f"all-reduce {first.all} GB/s" if first is not None and first.all is not None else "no all-reduce of all"
    say(f"preflight of {', '.join(where.nodes)}: {speed}, {len(bad)} bad nodes, {time.monotonic() - began:.0f} s")
    if not bad and (error := next((report.error for report in reports.values() if report.error), None)):
        say(f"preflight: {error}; going on, for no node stands out")
    return bad


def leave_out(where: Allocation, bad: Sequence[Bad], history: Ledger) -> bool:
    """Whether the job is to be put back in the queue without these nodes; all of them are named.

    False where they are slow only, and there are no others. Raises HalaError where it cannot go on.
    """
    for one in bad:
        history.write("excluded", node=one.node, reason=one.reason)
        say(f"node {one.node} is {'slow' if one.is_slow else 'bad'}: {one.reason}")
    names = [one.node for one in bad]
    if where.job is not None and slurm.can_do_without(where.job, names):
        return True
    if all(one.is_slow for one in bad):
        say("there are no other nodes: going on with these")
        return False
    why = "; ".join(f"{one.node}: {one.reason}" for one in bad)
    raise HalaError(f"bad nodes, and no others to go to: {why}", "mend them, then `hala resume`")


def faults(run: Path) -> dict[str, int]:
    """How often each node held up or broke this training, as all ledgers tell."""
    counts: dict[str, int] = {}
    for file in (run / "ledger").glob("*.jsonl"):
        for event in ledger.read(file):
            if event["event"] in ("stalled", "crashed") and event.get("node"):
                counts[event["node"]] = counts.get(event["node"], 0) + 1
    return counts
