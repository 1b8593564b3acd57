"""Which nodes a preflight found to be bad, and why: pure judgement over its reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from hala_hpc.tasks.train.launch.preflight import Report

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
