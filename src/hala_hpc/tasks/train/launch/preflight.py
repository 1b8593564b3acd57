"""Before the model loads: what each node has, and how fast the nodes talk to each other.

``python -m hala_hpc.tasks.train.launch.preflight RUN`` runs as every rank. Each writes what its node has before it
talks to anybody, so a node that never answers is known by its silence; then all-reduces are timed inside each node,
between neighbours, and between all.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from hala_hpc.run import files
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.launch.signs import RankPlace, place

PACKAGES: Final = ("torch", "transformers", "accelerate", "trl", "deepspeed", "hala-hpc")
"""Whose versions must be the same on all nodes."""
GPU_BYTES, CPU_BYTES = 256 * 2**20, 4 * 2**20
"""The size of one all-reduce: large enough that bandwidth counts, not latency (ours)."""
ROUNDS: Final = 5
JOIN_SECONDS: Final = 40.0
"""How long ranks wait for each other."""


@dataclass
class RankReport:
    """What one rank measured. Bandwidths are bus bandwidths in GB/s, None where the all-reduce did not come to an end.

    Bus bandwidth is 2 (n - 1) / n x bytes / seconds, as nccl-tests has it: comparable whatever the number of ranks n.
    """

    rank: int
    host: str
    gpus: list[str] = field(default_factory=list)
    gpu_gb: list[float] = field(default_factory=list)
    gpu_free_gb: list[float] = field(default_factory=list)
    gpu_error: str | None = None
    run_free_gb: float = 0.0
    scratch_free_gb: float = 0.0
    clock_seconds: float = 0.0  # this node's clock less the file server's
    versions: dict[str, str] = field(default_factory=dict)
    inside: float | None = None
    pairs: dict[str, float] = field(default_factory=dict)  # by "first-second" node
    all: float | None = None
    error: str | None = None


def main() -> int:
    """One rank of the preflight. Its exit code says nothing: the results are in the reports."""
    run = Path(sys.argv[1])
    here = place()
    target = folder(run, here.launch)
    report = facts(run, target, here.rank)
    keep(target, report)
    try:
        measure(report, target, here)
    except Exception as error:  # noqa: BLE001 (whatever it is: this program is there to report it)
        report.error = f"{type(error).__name__}: {error}"[:500]
    keep(target, report)
    sys.stdout.flush()
    os._exit(0)  # a broken process group may hang at an orderly end


def folder(run: Path, launch: str) -> Path:
    """Where the ranks of one preflight write."""
    return run / paths.PREFLIGHT / launch


def keep(target: Path, report: RankReport) -> None:
    """Write the report of a rank, whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    files.write_durably(target / f"{report.rank}.json", json.dumps(asdict(report)).encode())


def read(run: Path, launch: str) -> dict[int, RankReport]:
    """The reports that were written, by rank."""
    read = filter(None, map(files.read_json, folder(run, launch).glob("*.json")))
    return {report["rank"]: RankReport(**report) for report in read}


def facts(run: Path, target: Path, rank: int) -> RankReport:
    """What this rank's node has. Loads torch."""
    report = RankReport(
        rank,
        platform.node(),
        run_free_gb=_free_gb(run),
        scratch_free_gb=_free_gb(Path(os.environ.get("TMPDIR", "/tmp"))),
        clock_seconds=_clock(target),
        versions={name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
    )
    try:
        _look_at_gpus(report)
    except RuntimeError as error:
        report.gpu_error = str(error)[:500]
    return report


def measure(report: RankReport, target: Path, here: RankPlace) -> None:
    """Time the all-reduces, keeping each result at once. Raises RuntimeError where ranks do not find together."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(here.local_rank)
    limit = timedelta(seconds=JOIN_SECONDS)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=limit, rank=here.rank, world_size=here.world)
    tensor = torch.ones((GPU_BYTES if on_gpu else CPU_BYTES) // 4, device="cuda" if on_gpu else "cpu")
    ranks_per_node = here.ranks_per_node
    node, nodes = here.rank // ranks_per_node, here.world // ranks_per_node

    def among(*members: int) -> float:
        ranks = [index * ranks_per_node + local for index in sorted(members) for local in range(ranks_per_node)]
        # Other nodes are at other groups at the same time. torch names such a group by its ranks and by how many groups
        # this rank knows: so all ranks must make as many, or they wait for each other for ever.
        group = dist.new_group(ranks, use_local_synchronization=True)
        return _bandwidth(tensor, group, len(ranks)) if len(ranks) > 1 else 0.0

    if ranks_per_node > 1:
        report.inside = among(node)
        keep(target, report)
    for pairs in rounds(nodes):
        pair = next((pair for pair in pairs if node in pair), (node,))
        bandwidth = among(*pair)
        if len(pair) > 1:
            report.pairs["-".join(map(str, pair))] = bandwidth
            keep(target, report)
    if here.world > 1:
        report.all = _bandwidth(tensor, None, here.world)
        keep(target, report)
        dist.barrier()


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Pairs of neighbours in a ring, as they are tried at the same time: no node is in two pairs of a round.

    A ring, for a node with one neighbour only would be taken for slow where that one is.
    """
    even = [(first, first + 1) for first in range(0, nodes - 1, 2)]
    odd = [(first, first + 1) for first in range(1, nodes - 1, 2)]
    closing = [(nodes - 1, 0)] if nodes > 2 else []
    if nodes % 2 == 0:
        odd, closing = odd + closing, []
    return [pairs for pairs in (even, odd, closing) if pairs]


def _bandwidth(tensor: Any, group: Any, ranks: int) -> float:
    import torch
    import torch.distributed as dist

    def wait() -> None:
        if tensor.is_cuda:
            torch.cuda.synchronize()

    dist.all_reduce(tensor, group=group)
    wait()
    began = time.monotonic()
    for _ in range(ROUNDS):
        dist.all_reduce(tensor, group=group)
    wait()
    seconds = (time.monotonic() - began) / ROUNDS
    return round(2 * (ranks - 1) / ranks * int(tensor.numel()) * 4 / seconds / 1e9, 4)


def _look_at_gpus(report: RankReport) -> None:
    import torch

    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        report.gpus.append(torch.cuda.get_device_name(index))
        report.gpu_gb.append(round(total / 1e9, 2))
        report.gpu_free_gb.append(round(free / 1e9, 2))
    if not report.gpus:
        report.gpu_error = "torch finds no GPU"


def _clock(target: Path) -> float:
    """How far this node's clock is ahead of the file server's, in seconds."""
    target.mkdir(parents=True, exist_ok=True)
    return round(time.time() - files.now_in(target), 2)


def _free_gb(path: Path) -> float:
    return round(shutil.disk_usage(path).free / 1e9, 2)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
