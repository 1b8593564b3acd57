"""Whether the nodes of this job are fit for a training, by a preflight's reports, and how to go on without others."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.run import ledger
from hala_hpc.run.files import remove_tree, write_durably
from hala_hpc.run.ledger import Ledger
from hala_hpc.slurm import allocation as slurm
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.launch import preflight
from hala_hpc.tasks.train.launch import step as train_step
from hala_hpc.tasks.train.launch.preflight import RankReport
from hala_hpc.tasks.train.launch.step import Allocation
from hala_hpc.worker.task import say

SCRATCH_GB: Final = 1.0
"""A node with less room than this fails sooner or later (compile caches, sockets)."""
RUN_GB: Final = 1.0
CLOCK_SECONDS: Final = 30.0
"""A clock that is further off misses the end of the job, before which the training is to be saved (ours)."""
FREE_SHARE: Final = 0.9
"""Share of a GPU's memory before anything is loaded; less means that somebody else's process is there."""


@dataclass(frozen=True)
class Bad:
    """A node to leave out. ``is_slow``: it works, and a training without another choice may use it."""

    node: str
    reason: str
    is_slow: bool = False


def judge(reports: Mapping[int, RankReport], nodes: Sequence[str], ranks_per_node: int, slowest: float) -> list[Bad]:
    """Bad nodes, each with the first thing that is wrong with it; ``reports`` are by rank, as far as they came.

    A node with less than ``slowest`` of the median bandwidth is slow.
    """
    by_node = [
        [reports[rank] for rank in range(node * ranks_per_node, (node + 1) * ranks_per_node) if rank in reports]
        for node in range(len(nodes))
    ]
    kinds = [_kind(node[0]) for node in by_node if node]
    usual = max(kinds, key=kinds.count, default=None)
    is_any_inside = ranks_per_node > 1 and any(_is_inside(node, ranks_per_node) for node in by_node)
    is_any_paired = any(report.pairs for node in by_node for report in node)

    def fault(node: Sequence[RankReport]) -> str | None:
        """The first thing that is wrong with a node, whatever its speed."""
        if len(node) < ranks_per_node:
            return f"{len(node)} of {ranks_per_node} ranks answered"
        if own := next(filter(None, (_own_fault(report, ranks_per_node) for report in node)), None):
            return own
        if usual is not None and (kind := _kind(node[0])) != usual:
            return f"differs from most nodes: {_difference(kind, usual)}"
        if is_any_inside and not _is_inside(node, ranks_per_node):
            return "the all-reduce inside the node failed"
        if is_any_paired and not any(report.pairs for report in node):
            return "no all-reduce with a neighbour came to an end"
        return None

    faults = dict(enumerate(map(fault, by_node)))
    first = {number: report for number in range(len(nodes)) if (report := reports.get(number * ranks_per_node))}
    pairs = {number: max(report.pairs.values()) for number, report in first.items() if report.pairs}
    inside = {number: report.inside for number, report in first.items() if report.inside is not None}
    slow = _slow("with its neighbours", pairs, slowest) | _slow("inside the node", inside, slowest)
    reasons = ((number, faults[number] or slow.get(number)) for number in range(len(nodes)))
    return [Bad(nodes[number], reason, not faults[number]) for number, reason in reasons if reason]


Kind = tuple[dict[str, str], list[str], list[int]]
"""Versions, GPUs and their memory: they must be those of most nodes."""


def _is_inside(node: Sequence[RankReport], ranks: int) -> bool:
    return len(node) == ranks and all(report.inside is not None for report in node)


def _own_fault(report: RankReport, ranks: int) -> str | None:
    if report.gpu_error:
        return report.gpu_error
    if report.gpus and len(report.gpus) < ranks:
        return f"{len(report.gpus)} GPUs for {ranks} ranks"
    for name, total, free in zip(report.gpus, report.gpu_gb, report.gpu_free_gb, strict=True):
        if free < FREE_SHARE * total:
            return f"of a {name}'s {total:.0f} GB only {free:.0f} are free"
    if report.scratch_free_gb < SCRATCH_GB:
        return f"{report.scratch_free_gb:.1f} GB are free for temporary files"
    if report.run_free_gb < RUN_GB:
        return f"{report.run_free_gb:.1f} GB are free where the run is"
    if abs(report.clock_seconds) > CLOCK_SECONDS:
        return f"its clock is {report.clock_seconds:+.0f} s off the file server's"
    return None


def _kind(report: RankReport) -> Kind:
    return report.versions, report.gpus, list(map(round, report.gpu_gb))


def _difference(kind: Kind, usual: Kind) -> str:
    ours, theirs = kind[0], usual[0]
    changed = [f"{name} {ours.get(name)} (not {theirs[name]})" for name in theirs if ours.get(name) != theirs[name]]
    return ", ".join(changed) or f"GPUs {kind[1:]} (not {usual[1:]})"


def _slow(what: str, measured: Mapping[int, float], slowest: float) -> dict[int, str]:
    """Why nodes are slow, by their number."""
    usual = median(measured.values()) if len(measured) > 1 else 0.0
    return {
        node: f"all-reduce {what}: {bandwidth:.2f} GB/s, where {usual:.2f} is usual"
        for node, bandwidth in measured.items()
        if bandwidth < slowest * usual
    }


PREFLIGHT_SECONDS = 90.0
"""A preflight takes less than a minute; one that is not through by now never will be."""
MOST_FAULTS = 2
"""A node that was at fault so often is left out."""


def check(run: Path, name: str, where: Allocation, slowest: float, should_stop: Callable[[], bool]) -> list[Bad]:
    """Run the preflight; bad nodes, or nothing where it was stopped. Its reports stay in ``training/preflight``."""
    began = time.monotonic()
    log = run / paths.RANK_LOGS / f"{name}.preflight.log"
    words = ["-m", "hala_hpc.tasks.train.launch.preflight", str(run)]
    step = train_step.start(where, name, words, where.ranks_per_node, log)
    train_step.finish(step, PREFLIGHT_SECONDS, should_stop)
    if should_stop():
        return []
    reports = preflight.read(run, name)
    bad = judge(reports, where.nodes, where.ranks_per_node, slowest)
    ranks = [asdict(reports[rank]) for rank in sorted(reports)]
    summary = {"nodes": where.nodes, "bad": list(map(asdict, bad)), "ranks": ranks}
    write_durably(run / paths.PREFLIGHT / f"{name}.json", json.dumps(summary, indent=1).encode())
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
    for item in bad:
        history.write("excluded", node=item.node, reason=item.reason)
        say(f"node {item.node} is {'slow' if item.is_slow else 'bad'}: {item.reason}")
    if where.job is not None and slurm.can_do_without(where.job, [item.node for item in bad]):
        return True
    if all(item.is_slow for item in bad):
        say("there are no other nodes: going on with these")
        return False
    why = "; ".join(f"{item.node}: {item.reason}" for item in bad)
    raise HalaError(f"bad nodes, and no others to go to: {why}", "mend them, then `hala resume`")


def faults(run: Path) -> dict[str, int]:
    """How often each node held up or broke this training, by all ledgers."""
    events = (event for file in (run / "ledger").glob("*.jsonl") for event in ledger.read(file))
    return Counter(e["node"] for e in events if e["event"] in ("stalled", "crashed") and e.get("node"))
