"""Whose leases a worker does not wait for: those of the workers that its job had before, on this host."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Ledger
from hala_hpc.worker import earlier
from tests.run.helpers import planned_run

HOST = socket.gethostname()
TTL = 600.0


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return planned_run(tmp_path / "r", [10])


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def age(run: RunDirectory, worker: str, pid: int | None) -> float:
    """How old the heartbeat of such a worker, who had one now, is to a worker of the job 7_1."""
    (run.workers / worker).touch()
    if pid is not None:
        Ledger(run.ledger / f"{worker}.jsonl", host=HOST, pid=pid).close()
    earlier.free_shards(run, f"{HOST}-7_1-ours", "7_1", TTL)
    return time.time() - (run.workers / worker).stat().st_mtime


def test_the_dead_of_the_same_job_are_not_waited_for(run: RunDirectory, dead: int) -> None:
    assert age(run, f"{HOST}-7_1-a", dead) >= TTL
    assert age(run, f"{HOST}-7_1-b+2", dead) >= TTL, "one of its processes"
    assert age(run, f"{HOST}-7_1-c", None) >= TTL, "its ledger is lost, but Slurm runs a job once at a time"


def test_all_others_are(run: RunDirectory, dead: int) -> None:
    assert age(run, f"{HOST}-7_1-ours", dead) < TTL / 2, "itself"
    assert age(run, f"{HOST}-7_1-ours+1", dead) < TTL / 2
    assert age(run, f"{HOST}-7_10-a", dead) < TTL / 2, "another job"
    assert age(run, f"far-{HOST}-7_1-a", dead) < TTL / 2, "another host: a node that Slurm gave up may still work"
    assert age(run, f"{HOST}-7_1-a", os.getpid()) < TTL / 2, "one of several that a person started in a job"


def test_a_later_process_of_the_same_number_is_another(run: RunDirectory) -> None:
    worker, file = f"{HOST}-7_1-a", run.ledger / f"{HOST}-7_1-a.jsonl"
    Ledger(file, host=HOST, pid=os.getpid()).close()
    began = time.time() - 10_000_000
    file.write_text(f'{{"event": "started", "time": {began}, "host": "{HOST}", "pid": {os.getpid()}}}\n')
    assert age(run, worker, None) >= TTL
