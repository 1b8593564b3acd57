"""``hala chaos`` on a real Slurm: a minute of faults by a fixed seed; what it does is undone, whatever ends it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.pipeline import chaos
from hala_hpc.run import ledger
from tests.minislurm.cluster import Cluster
from tests.slurm.test_cluster import wait_for
from tests.slurm.test_steward import Site

pytestmark = pytest.mark.slurm

SEED, EVERY = 1, 5
RATE, FLUSH = 4.0, 0.5
"""Rows a second of a worker, and seconds until they are kept."""
MAY_NOT = """#!/bin/sh
case "$*" in update*NodeName=*) echo "slurm_update error: Invalid user id" >&2; exit 1 ;; esac
exec {scontrol} "$@"
"""


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    return Site(cluster, tmp_path)


def submit(site: Site, name: str, workers: int, seconds: float, lease: float = 4) -> Path:
    """A run that takes so many workers so many seconds; returns the file with all answers of its engines."""
    answered = site.folder / f"{name}.answered"
    rows = round(workers * RATE * seconds)
    lines = (f'{{"id": {i}, "text": "line {i} of this text"}}\n' for i in range(rows))
    (site.folder / "rows.jsonl").write_text("".join(lines))
    site.submit(
        name,
        engine={"kind": "echo", "seconds": 1 / RATE, "capacity": 1, "answered": str(answered)},
        run={"workers": workers, "shard_rows": 10, "lease_seconds": lease, "flush_seconds": FLUSH},
    )
    return answered


def stopped(site: Site, name: str) -> list[int]:
    """The processes of workers that are stopped by a signal."""
    pids = [opening["pid"] for _, opening in ledger.openings(site.run(name) / "ledger")]
    states = ((pid, Path(f"/proc/{pid}/stat")) for pid in pids)
    return [pid for pid, file in states if file.exists() and file.read_text().rpartition(") ")[2].startswith("T")]


def drained(cluster: Cluster) -> list[str]:
    nodes = cluster.run("scontrol", "show", "nodes", "--oneliner").stdout.splitlines()
    return [node.split()[0] for node in nodes if "DRAIN" in node or chaos.REASON in node]


def test_a_minute_of_faults(site: Site, cluster: Cluster) -> None:
    """No row is lost or published twice, nobody looks after it, and what is computed twice is what was not kept."""
    answered = submit(site, "hurt", workers=8, seconds=25)
    words = ("--minutes", 1, "--every", EVERY, "--seed", SEED, "--yes")
    harm: dict[str, Any] = site.hala.json("chaos", "hurt", *words)
    assert (harm["lost"], harm["published_twice"], harm["by_people"]) == (0, 0, 0)
    assert harm["finished"] and harm["proven"] and harm["well"] and not harm["unfinished"]
    assert harm["faults"].keys() == chaos.KINDS.keys(), "of each kind there was one"
    twice = len(answered.read_text().splitlines()) - harm["rows"]
    shares = harm["faults"]["kill"] + harm["faults"]["stop"]
    assert harm["computed_twice"] <= twice <= shares * (RATE * 2 * FLUSH + 2), "of each what was not kept, or in hand"
    assert 0 < harm["goodput"]["output"] <= 1
    assert not stopped(site, "hurt") and not drained(cluster)
    (file,) = (site.run("hurt") / "ledger").glob("chaos-*.jsonl")
    noted = [event for event in ledger.read(file) if event["event"] == "fault"]
    assert len(noted) == sum(harm["faults"].values()) + harm["refused"]


def test_what_is_refused_and_what_is_undone(site: Site, cluster: Cluster) -> None:
    """Nobody is hurt unasked, who may not drain requeues, and whatever ends it, nothing stays stopped or drained."""
    submit(site, "left", workers=2, seconds=60, lease=20)
    assert "nobody is here to ask (--yes)" in site.hala("chaos", "left", code=2).stderr
    site.wait_for_rows("left", 1)
    interrupted(site, cluster)
    with_drains_refused(site, cluster)
    site.hala("cancel", "left")
    wait_for(lambda: not in_queue(cluster), 20)
    assert "none of its workers is in Slurm's queue" in site.hala("chaos", "left", code=2).stderr


def interrupted(site: Site, cluster: Cluster) -> None:
    """It is ended by a signal while a worker is stopped and a node drained."""
    words = ["chaos", "left", "--fault", "stop", "--fault", "drain", "--every", "1", "--yes", "--json"]
    command = [sys.executable, "-m", "hala_hpc.cli", *words]
    with subprocess.Popen(command, cwd=site.folder, env=cluster.env, stdout=subprocess.PIPE, text=True) as hurting:
        try:
            wait_for(lambda: stopped(site, "left") and drained(cluster))
        finally:
            hurting.terminate()
        out, _ = hurting.communicate(timeout=60)
    said = json.loads(out)
    assert hurting.returncode == 1 and said["lost"] is None and not said["finished"]
    wait_for(lambda: not stopped(site, "left") and not drained(cluster), 5)


def with_drains_refused(site: Site, cluster: Cluster) -> None:
    scontrol = site.folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(MAY_NOT.format(scontrol=shutil.which("scontrol", path=cluster.env["PATH"])))
    scontrol.chmod(0o755)
    site.hala.env["PATH"] = f"{scontrol.parent}:{cluster.env['PATH']}"
    words = ("--fault", "drain", "--every", 1, "--minutes", 0.1, "--patience", 0, "--yes", "--json")
    harm = json.loads(site.hala("chaos", "left", *words, code=1).stdout)
    assert harm["faults"].keys() == {"requeue"} and not drained(cluster)


def in_queue(cluster: Cluster) -> str:
    return cluster.run("squeue", "--me", "--noheader", "--name=hala-left").stdout
