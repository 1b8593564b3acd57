"""Whether the nodes of this job are fit for a training, by a preflight's reports, and how to go on without others."""

import json
import time
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
from hala_hpc.tasks.train.launch.preflight import Report
from hala_hpc.tasks.train.launch.step import Allocation
from hala_hpc.worker.context import say

SCRATCH_GB: Final = 1.0
"""A node with less room than this fails sooner or later (compile caches, sockets)."""
RUN_GB: Final = 1.0
CLOCK_SECONDS: Final = 30.0
"""A clock that is further off misses the end of the job, before which the training is to be saved (ours)."""
FREE_SHARE: Final = 0.9
"""Of a GPU's memory before anything is loaded; less means that somebody else's process is there."""


@dataclass(frozen=True)
class Bad:
    """A node to leave out. ``is_slow``: it works, and a training without another choice may use it."""

    node: str
    reason: str
    is_slow: bool = False


def judge(reports: Mapping[int, Report], nodes: Sequence[str], each: int, slowest: float) -> list[Bad]:
    """Bad nodes, each with the first thing that is wrong with it.

    Parameters
    ----------
    reports : by rank, as far as they came; ``each`` ranks run on each of ``nodes``.
    slowest : a node with less than this share of the median bandwidth is slow.
    """
    by_node = [[reports.get(index * each + local) for local in range(each)] for index in range(len(nodes))]
    found: dict[int, Bad] = {}
    for checks in (_silent, _broken, _unlike, _cut_off):
        for index, reason in checks(by_node, each).items():
            found.setdefault(index, Bad(nodes[index], reason))
    for index, reason in _slow(by_node, slowest).items():
        found.setdefault(index, Bad(nodes[index], reason, is_slow=True))
    return [found[index] for index in sorted(found)]


ByNode = Sequence[Sequence[Report | None]]
Reasons = dict[int, str]


def _silent(by_node: ByNode, each: int) -> Reasons:
    answers = [sum(report is not None for report in node) for node in by_node]
    return {index: f"{count} of {each} ranks answered" for index, count in enumerate(answers) if count < each}


def _broken(by_node: ByNode, each: int) -> Reasons:
    reasons: Reasons = {}
    for index, node in enumerate(by_node):
        for report in filter(None, node):
            if (reason := _own_fault(report, each)) is not None:
                reasons.setdefault(index, reason)
    return reasons


def _own_fault(report: Report, each: int) -> str | None:
    if report.gpu_error:
        return report.gpu_error
    if report.gpus and len(report.gpus) < each:
        return f"{len(report.gpus)} GPUs for {each} ranks"
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


def _unlike(by_node: ByNode, _: int) -> Reasons:
    """Versions and GPUs must be those of most nodes."""
    kinds = [
        next(((tuple(sorted(r.versions.items())), tuple(r.gpus), tuple(map(round, r.gpu_gb))) for r in node if r), None)
        for node in by_node
    ]
    known = [kind for kind in kinds if kind is not None]
    usual = max(known, key=known.count, default=None)
    return {
        index: f"differs from most nodes: {_difference(kind, usual)}"
        for index, kind in enumerate(kinds)
        if kind is not None and usual is not None and kind != usual
    }


def _difference(kind: tuple[object, ...], usual: tuple[object, ...]) -> str:
    ours, theirs = (dict(one[0]) for one in (kind, usual))  # type: ignore[call-overload]
    changed = [f"{name} {ours.get(name)} (not {theirs.get(name)})" for name in theirs if ours.get(name) != theirs[name]]
    return ", ".join(changed) or f"GPUs {kind[1:]} (not {usual[1:]})"


def _cut_off(by_node: ByNode, each: int) -> Reasons:
    """Nodes whose all-reduces did not end, where others' did."""
    reasons: Reasons = {}
    inside = [all(r is not None and r.inside is not None for r in node) for node in by_node]
    if each > 1 and any(inside):
        reasons |= {index: "the all-reduce inside the node failed" for index, done in enumerate(inside) if not done}
    paired = [any(r is not None and r.pairs for r in node) for node in by_node]
    if any(paired):
        reasons |= {
            index: "no all-reduce with a neighbour came to an end"
            for index, done in enumerate(paired)
            if not done and index not in reasons
        }
    return reasons


def _slow(by_node: ByNode, slowest: float) -> Reasons:
    reasons: Reasons = {}
    inside = {i: r.inside for i, node in enumerate(by_node) if (r := node[0]) and r.inside is not None}
    pairs = {i: max(r.pairs.values()) for i, node in enumerate(by_node) if (r := node[0]) and r.pairs}
    for what, measured in (("inside the node", inside), ("with its neighbours", pairs)):
        if len(measured) < 2:
            continue
        usual = median(measured.values())
        for index, bandwidth in measured.items():
            if bandwidth < slowest * usual:
                reasons.setdefault(index, f"all-reduce {what}: {bandwidth:.2f} GB/s, where {usual:.2f} is usual")
    return reasons


PREFLIGHT_SECONDS = 90.0
"""A preflight takes less than a minute; one that is not through by now never will be."""
MOST_FAULTS = 2
"""A node that was at fault so often is left out."""


def check(run: Path, name: str, where: Allocation, slowest: float, should_stop: Callable[[], bool]) -> list[Bad]:
    """Run the preflight; bad nodes, none where it was stopped. Its findings stay in ``training/preflight``."""
    began = time.monotonic()
    log = run / paths.RANK_LOGS / f"{name}.preflight.log"
    words = ["-m", "hala_hpc.tasks.train.launch.preflight", str(run)]
    step = train_step.start(where, name, words, where.ranks_per_node, log)
    while step.ended() is None and time.monotonic() - began < PREFLIGHT_SECONDS and not should_stop():
        time.sleep(0.1)
    if step.ended() is None:
        train_step.finish(step, 0.0)
    if should_stop():
        return []
    reports = preflight.read(run, name)
    bad = judge(reports, where.nodes, where.ranks_per_node, slowest)
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
