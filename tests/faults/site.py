"""Small runs on a cluster of their own, each with one fault, and how long each took to recover."""

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.run import ledger
from hala_hpc.slurm import record
from tests.damaged import hala
from tests.minislurm.cluster import Cluster
from tests.minislurm.daemon import Process, processes_with, send, start_time
from tests.slurm.test_steward import Site
from tests.worker.helpers import proof, rows

ROWS: Final = 240
SHARD_ROWS: Final = 20
KEPT: Final = 40
"""Rows that a run has kept when its fault comes."""
CRASHES: Final = "n4"
"""A node."""
STARTED: Final = 120.0
"""Seconds for all runs to come so far."""


@dataclass(frozen=True)
class Recovery:
    """Seconds from a fault to the next shard that is published, and to the run's last."""

    next: float
    end: float

    def __str__(self) -> str:
        return f"next shard after {self.next:.1f} s, the last after {self.end:.1f} s"


def slurm(**keys: Any) -> dict[str, Any]:
    """Nobody is on the node that will crash, unless ``keys`` say so."""
    return {"executor": "slurm", "slurm": {"cpus_per_worker": 1, "minutes": 5, "extra": {"exclude": CRASHES}} | keys}


class FaultSite(Site):
    """Commands run in this process, for programs of their own would take the workers' cores for a second each."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(cluster, folder)
        self.injured: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self.no_disk = ""
        """Why none can be mounted here."""
        self._timers: list[threading.Timer] = []
        self._folders: dict[str, Path] = {}

    def recipe(self, name: str, sections: dict[str, Any]) -> Path:
        """Of a run of some 30 seconds with two workers, whose source is its own."""
        source = self.folder / f"{name}.jsonl"
        source.write_text("".join(f'{{"id": {i}, "text": "line {i} of this text"}}\n' for i in range(ROWS)))
        whole = {
            "name": name,
            "task": {"kind": "translate", "segments": {"tokens": 0}},
            "data": {"path": str(source)},
            "engine": {"kind": "echo", "seconds": 0.5, "capacity": 2},
            "run": {"workers": 2, "shard_rows": SHARD_ROWS, "lease_seconds": 6, "flush_seconds": 0.5},
            "site": slurm(),
        }
        for section, keys in sections.items():
            whole[section] = {**whole[section], **keys}
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(whole))
        return path

    def command(self, *words: object, code: int = 0) -> str:
        """What ``hala`` said."""
        ended, said = hala(*words)
        assert ended == code, f"hala {' '.join(map(str, words))}: {ended}\n{said}"
        return said

    def begin(self, name: str, **sections: Any) -> None:
        """Submit a run."""
        if root := sections.get("run", {}).get("root"):
            self._folders[name] = Path(root) / name
        self.command("submit", self.recipe(name, sections))

    def run(self, name: str) -> Path:
        return self._folders.get(name, super().run(name))

    def job(self, name: str) -> str:
        """The array that was handed in first."""
        return record.slurm_jobs(self.run(name))[0]

    def pids(self, name: str) -> list[int]:
        """Of the workers that have started, by their place in the array."""
        openings = sorted((str(opening["job"]), int(opening["pid"])) for opening in self._openings(name))
        return [pid for _, pid in openings]

    def _openings(self, name: str) -> list[ledger.Event]:
        return [opening for _, opening in ledger.openings(self.run(name) / "ledger") if opening.get("pid")]

    def kept(self, name: str) -> int:
        """Rows that are durable: in published shards, and in partial files."""
        run = self.run(name)
        shards = sum(1 for _ in run.glob("shards/*/*.parquet"))
        partial = 0
        for path in run.glob("partial/*/*.jsonl"):
            try:
                partial += path.read_bytes().count(b'"new"')
            except FileNotFoundError:
                continue  # published meanwhile
        return SHARD_ROWS * shards + partial

    def is_ready(self, name: str) -> bool:
        """Both workers are at it, and some rows are kept."""
        return len(self.pids(name)) == 2 and self.kept(name) >= KEPT

    def kill_all(self, name: str) -> None:
        for pid in self.pids(name):
            os.kill(pid, signal.SIGKILL)

    def later(self, seconds: float, do: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, do)
        timer.start()
        self._timers.append(timer)

    def close(self) -> None:
        for timer in self._timers:
            timer.join()

    def proven_rows(self, name: str) -> list[tuple[int, str]]:
        """As `hala verify` proves them."""
        verdict = proof(self.run(name))
        assert verdict.proven, verdict
        return [(row["id"], row["text_ar"]) for row in rows(self.run(name))]

    def recovery(self, name: str) -> Recovery:
        """By the times of the outputs."""
        times = sorted(path.stat().st_mtime for path in self.run(name).glob("shards/*/*.parquet"))
        since = [at - self.injured[name] for at in times if at > self.injured[name]]
        assert since, "the fault came when all was done"
        return Recovery(since[0], since[-1])


def crash(cluster: Cluster, node: str) -> None:
    """The end of a node, as a power cut: slurmd, slurmstepd and whatever runs there, at once and without a word."""
    tasks = processes_with(f"SLURM_CONF={cluster.conf}", f"SLURMD_NODENAME={node}")
    steps = {step for pid, _ in tasks if (step := _step_of(pid)) is not None}
    daemon = cluster.daemons.process(node)
    assert daemon is not None and steps
    for process in (daemon, *steps, *tasks):
        send(process, signal.SIGKILL)
    cluster.daemons.end([node])


def _step_of(pid: int) -> Process | None:
    """The slurmstepd over a process."""
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if "slurmstepd" in stat.rpartition(")")[0]:
            return pid, start_time(pid) or 0
        pid = int(stat.rpartition(")")[2].split()[1])
    return None
