"""What a run on a real Slurm cost, with accounting and without: a worker is killed, so that rows are done twice."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import ledger
from hala_hpc.run.goodput import KILLED
from tests.conftest import Hala
from tests.minislurm.cluster import Cluster, missing
from tests.slurm.looking import finished
from tests.slurm.test_cluster import wait_for

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def plain() -> Iterator[Cluster]:
    """A cluster whose accounting is off."""
    if reason := missing(accounting=False):
        pytest.skip(f"no Slurm: {reason}")
    slurm = Cluster(accounting=False).start()
    try:
        slurm.guard()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(slurm.dir)


def broken_run(cluster: Cluster, tmp_path: Path, write_recipe: Callable[..., Path]) -> tuple[Hala, str]:
    """A finished run of 400 rows of which one of two workers was killed; what it had not kept was done again."""
    hala = Hala(tmp_path)
    hala.env = dict(cluster.env)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"id": {i}, "text": "line {i}"}}\n' for i in range(400)))
    recipe = write_recipe(
        "dear",
        data={"path": str(source)},
        engine={"kind": "echo", "seconds": 0.5, "capacity": 5},
        run={"workers": 2, "shard_rows": 200, "lease_seconds": 4, "flush_seconds": 600},
        site={"executor": "slurm", "slurm": {"cpus_per_worker": 1, "gpus_per_worker": 2, "minutes": 5}},
    )
    job = hala.json("submit", recipe)["jobs"][0]
    folder = hala.folder / "runs" / "dear" / "ledger"

    def at_work() -> Path | None:
        """The ledger of the first worker, once it holds rows of a shard that takes it many seconds more."""
        files = (file for file, opening in ledger.openings(folder) if opening.get("job") == f"{job}_0")
        return next((file for file in files if any(event.get("rows") for event in ledger.read(file))), None)

    killed = wait_for(at_work)
    os.kill(ledger.first(killed)["pid"], 9)
    wait_for(finished(hala, "dear"), 120)
    wait_for(lambda: not cluster.run("squeue", "-h", "-j", job, "-t", "RUNNING,COMPLETING").stdout.strip())
    return hala, killed.stem


def check(cost: dict[str, Any], hala: Hala, killed: str) -> None:
    """What holds wherever the numbers are from."""
    last = [event for event in ledger.read(hala.folder / "runs/dear/ledger" / f"{killed}.jsonl") if "rows" in event][-1]
    assert cost["done"] == {"unit": "rows", "published": 400, "waiting": 0, "twice": {KILLED: last["rows"]}}
    assert cost["goodput"]["output"] == pytest.approx(400 / (400 + last["rows"]))
    assert 0.5 < cost["goodput"]["framework"] <= 1.0, "an echo of half a second a request is nearly always busy"
    assert (cost["workers"], cost["silent_workers"]) == (3, 1), "the killed one starts again"
    assert (cost["starts"], cost["requeues"]) == (2, 0), "in its own job"
    assert cost["gpu_days_per_billion_tokens"] > 0 and cost["energy_joules"] is None
    assert cost["gpu_hours"] == pytest.approx(2 * cost["node_hours"], rel=1e-3)


def test_with_accounting(cluster: Cluster, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    hala, killed = broken_run(cluster, tmp_path, write_recipe)
    cost = wait_for(lambda: (answer := hala.json("cost", "dear"))["cpu_efficiency"] is not None and answer)
    check(cost, hala, killed)
    assert cost["source"] == "accounting" and not cost["notes"] and cost["starts"] == 2
    assert 0.3 < cost["goodput"]["infrastructure"] <= 1.0 and cost["goodput"]["all"] > 0
    assert cost["queue_seconds"] is not None and 0 < cost["memory_efficiency"] < 1
    said = hala("cost", "dear").stdout
    for words in ("Slurm's accounting", "rows because a worker was killed", "core-hours", "GB at most"):
        assert words in said, said
    assert "energy" in said and "not measured" in said


def test_without_accounting(plain: Cluster, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    hala, killed = broken_run(plain, tmp_path, write_recipe)
    cost = hala.json("cost", "dear")
    check(cost, hala, killed)
    assert cost["source"] == "ledger" and "accounting is off, or does not answer" in cost["notes"][0]
    assert cost["queue_seconds"] is not None, "when it was submitted and when its workers began is on record"
    assert cost["cpu_efficiency"] is cost["memory_efficiency"] is None
    said = hala("cost", "dear").stdout
    assert "the workers' ledgers" in said and "note: Slurm's accounting is off" in said
