"""Runs on a real Slurm that end without a person, whatever becomes of their workers. They all run at once."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.pipeline import lookup
from hala_hpc.run import decisions, ledger
from hala_hpc.slurm import record
from tests.conftest import Hala
from tests.minislurm.cluster import Cluster
from tests.minislurm.daemon import processes_with, send
from tests.slurm.test_cluster import expected, nodes_of, texts, wait_for

pytestmark = pytest.mark.slurm

ROWS = 600
SECONDS = 150.0
LONG = "site.slurm.minutes=20"
"""A worker that is killed starts again only where its job has some minutes left."""
AXES = {"language": {"fr": {"task": {"target": "French"}}, "eu": {"task": {"target": "Basque"}}}}


class Site:
    """A folder with runs on the cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.hala = Hala(folder)
        self.hala.env = dict(cluster.env)
        self.jobs: dict[str, str] = {}
        (folder / "rows.jsonl").write_text(
            "".join(f'{{"id": {i}, "text": "line {i} of this text"}}\n' for i in range(ROWS))
        )

    def submit(self, name: str, *words: object, **sections: Any) -> dict[str, Any]:
        recipe = {
            "name": name,
            "task": {"kind": "translate", "segments": {"tokens": 0}},
            "data": {"path": str(self.folder / "rows.jsonl")},
            "engine": {"kind": "echo", "seconds": 0.5, "capacity": 15},
            "run": {"workers": 2, "shard_rows": 50, "lease_seconds": 6, "flush_seconds": 0.5},
            "site": {"executor": "slurm", "slurm": {"cpus_per_worker": 1, "minutes": 5}},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe | sections))
        started: dict[str, Any] = self.hala.json("submit", path, *words)
        self.jobs[name] = started["jobs"][0]
        return started

    @property
    def folder(self) -> Path:
        return self.hala.folder

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def wait_for_rows(self, name: str, at_least: int) -> None:
        """Read here, for programs that are started again and again take the time of the workers."""
        wait_for(lambda: lookup.state_of(self.run(name)).rows_done >= at_least)

    def decided(self, name: str) -> list[ledger.Event]:
        return [item.event for item in decisions.read(self.run(name)) if item.kind == decisions.DECIDED]

    def end(self, name: str) -> ledger.Event:
        """The last decision, once there is one after which nothing follows."""

        def last() -> ledger.Event | None:
            done = [event for event in self.decided(name) if event["action"] in ("done", "stop")]
            return done[-1] if done else None

        event: ledger.Event = wait_for(last, SECONDS)
        return event

    def arrays(self, name: str) -> int:
        return len(record.submitted(self.run(name)))

    def kill_jobs(self, name: str) -> None:
        """``kill -9`` of all that belongs to the first array, batch scripts too: no worker starts again."""
        for process in processes_with(f"SLURM_ARRAY_JOB_ID={self.jobs[name]}"):
            send(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The slowest runs are handed in first, and go on beside the others."""
    here = Site(cluster, tmp_path_factory.mktemp("steward"))
    (here.folder / "broken").touch()
    line = f'case "$SLURM_JOB_NAME" in *steward) ;; *) until [ -e {here.folder}/quick ]; do sleep 1; done ;; esac'
    slow = {"setup": [line]}
    slurm = {"cpus_per_worker": 1, "minutes": 1, "signal_seconds": 10}
    environments = {"serve": slow | {"python": sys.executable}}
    here.submit("slow", "data.limit=100", site={"executor": "slurm", "slurm": slurm, "environments": environments})
    here.submit("broken", "data.limit=100", f"engine.broken={here.folder}/broken")
    return here


def test_all_workers_killed(site: Site) -> None:
    """The run ends as an unbroken one; a site's program and Slurm's mail say so once."""
    program = ["/bin/sh", "-c", f'echo "$$HALA_OUTCOME" >>{site.folder}/told']
    words = (f"site.at_end={json.dumps(program)}", "site.mail=me@example.org", "site.slurm.mem_gb=1", LONG)
    started = site.submit("killed", *words)
    assert started["steward"]
    status = site.hala.json("status", "killed")
    assert status["steward"]["jobs"] == {started["steward"]: "PENDING"}
    assert sum(status["jobs"].values()) == 2, "it is no worker"
    site.wait_for_rows("killed", 100)
    site.kill_jobs("killed")
    assert site.end("killed")["action"] == "done"
    assert texts(site.hala, "killed") == expected(ROWS)
    again, *_ = site.decided("killed")
    assert again["action"] == "submit" and "2 tasks ended by KILLED: 2 GB instead of 1" in again["reason"]
    assert site.hala.json("status", "killed")["changed"] == {"site.slurm.mem_gb": 2.0}
    assert site.arrays("killed") == 2
    wait_for(lambda: (site.folder / "told").exists())
    assert (site.folder / "told").read_text() == "finished\n"
    names = site.cluster.run("squeue", "--noheader", "--states=all", "--format=%j").stdout.split()
    assert names.count("hala-killed-finished") == 1
    assert "submit: " in site.hala("logs", "killed").stdout


def test_nobody_waits_for_the_leases_of_the_dead(site: Site) -> None:
    """Slurm says that their jobs are over."""
    site.submit("leases", "data.limit=200", "engine.seconds=2", "run.lease_seconds=600", LONG)
    site.wait_for_rows("leases", 30)
    site.kill_jobs("leases")
    assert site.end("leases")["action"] == "done"
    assert texts(site.hala, "leases") == expected(200)


def test_a_recipe_that_always_fails(site: Site) -> None:
    end = site.end("broken")
    assert end["action"] == "stop" and "the engine does not start" in end["reason"]
    assert site.arrays("broken") == 2, "GPU-hours are not burnt"
    assert not nodes_of(site.cluster, site.jobs["broken"])


def test_a_worker_that_is_gone_is_replaced_while_others_work(site: Site) -> None:
    """Its whole job is killed, batch script and all."""
    site.submit("replaced", "data.limit=400", "engine.seconds=2", "engine.capacity=5", "run.shard_rows=20")
    site.wait_for_rows("replaced", 30)
    array = site.jobs["replaced"]
    for process in processes_with(f"SLURM_ARRAY_JOB_ID={array}", "SLURM_ARRAY_TASK_ID=0"):
        send(process, signal.SIGKILL)
    wait_for(lambda: site.arrays("replaced") == 2, 60)
    states = site.cluster.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").stdout.split("\n")
    assert f"{array}_1 RUNNING" in states, "it is not waited for"
    again = next(event for event in site.decided("replaced") if event["action"] == "submit")
    assert "1 worker gone while others work" in again["reason"] and len(again["jobs"]) == 1
    assert site.end("replaced")["action"] == "done"
    assert texts(site.hala, "replaced") == expected(400) and site.arrays("replaced") == 2


def test_a_time_limit_that_is_too_short(site: Site) -> None:
    """Nothing got done in a minute, so the next workers have two; here the model then loads at once."""
    wait_for(lambda: any(event["changes"] for event in site.decided("slow")), SECONDS)
    (site.folder / "quick").touch()
    assert site.end("slow")["action"] == "done"
    more = next(event for event in site.decided("slow") if event["changes"])
    assert more["changes"] == ["site.slurm.minutes=2"] and "ended by TIMEOUT" in more["reason"]
    assert texts(site.hala, "slow") == expected(100)


def test_one_task_cancelled_by_slurm_and_all_of_them(site: Site) -> None:
    """One may be anybody's accident; all of them are a person's will."""
    site.submit("one", "data.limit=300")
    site.submit("all", "data.limit=300")
    for name in ("one", "all"):
        site.wait_for_rows(name, 60)
    site.cluster.run("scancel", f"{site.jobs['one']}_0")
    site.cluster.run("scancel", site.jobs["all"])
    end = site.end("all")
    assert end["action"] == "stop" and "root cancelled all of its jobs with scancel" in end["reason"]
    assert site.end("one")["action"] == "done"
    assert texts(site.hala, "one") == expected(300)
    assert site.arrays("all") == site.arrays("one") == 1
    shown = " ".join(site.hala("status", "all").stdout.split())
    assert "stop: root cancelled all" in shown and "nobody works on it: hala resume" in shown
    site.hala("resume", "all")
    wait_for(lambda: site.end("all")["action"] == "done", 60)


def test_what_a_person_cancelled_stays_cancelled(site: Site) -> None:
    started = site.submit("cancelled")
    site.wait_for_rows("cancelled", 30)
    done = site.hala.json("cancel", "cancelled")
    assert done["arrays"] == started["jobs"]
    queue = ("squeue", "--me", "--noheader", "--format=%j")
    wait_for(lambda: "hala-cancelled" not in site.cluster.run(*queue).stdout, 20)
    assert site.hala.json("status", "cancelled")["steward"]["jobs"] == {}
    said = site.hala("steward", "cancelled", code=1).stdout
    assert said.startswith("stop: a person cancelled it") and site.arrays("cancelled") == 1


def test_a_grid_has_one_steward(site: Site) -> None:
    site.submit("many", "data.limit=150", LONG, grid={"axes": AXES}, run={"shard_rows": 50, "lease_seconds": 6})
    cells = [site.run("many") / cell for cell in ("fr", "eu")]
    wait_for(lambda: all(list(ledger.openings(cell / "ledger")) for cell in cells))
    site.kill_jobs("many")
    assert site.end("many")["action"] == "done"
    assert site.arrays("many") == 2
    stewards = len(record.steward_jobs(site.run("many")))
    assert stewards in (3, 4), "one after each array, perhaps when one cell was done, and one that was not needed"
    for cell in cells:
        site.hala("verify", cell)
        assert not record.steward_jobs(cell)


def test_a_site_whose_jobs_may_not_submit(site: Site) -> None:
    """No steward is in the queue; the command says what to do instead, and ``--watch`` sees the run to its end."""
    recipe = site.folder / "killed.yaml"
    if not recipe.exists():
        pytest.skip("needs the recipe of another test")
    words = ("name=watched", "data.limit=100", "site.jobs_submit=false")
    said = site.hala("submit", recipe, *words).stdout
    assert "no steward follows" in said and "hala steward" in said and "*/10 * * * * " in said
    assert not record.steward_jobs(site.run("watched"))
    site.wait_for_rows("watched", 100)
    wait_for(lambda: lookup.state_of(site.run("watched")).finished)
    assert site.hala("steward", "watched", "--watch").stdout == "done: finished: all shards, and the last step\n"
