"""Workers that a signal kills start again in their job: the script's own bash, and on a real Slurm."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.config.schema import Recipe, Site
from hala_hpc.run import ledger
from hala_hpc.slurm import again
from hala_hpc.slurm.submit import preview
from tests.minislurm.cluster import Cluster
from tests.slurm.test_cluster import expected, texts, wait_for
from tests.slurm.test_steward import Site as Runs

SRUN = """#!/bin/bash
echo "life $HALA_LIFE: $*"
{deed}
"""
STARTS = "hala: the worker was killed by signal 9; it starts again"


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Runs the script's function with another ``srun``; the exit code of the script, and the lines of its log."""

    def run(deed: str, before: str = "set -euo pipefail", minutes: int = 60, **env: str) -> tuple[int, list[str]]:
        program, script, log = tmp_path / "srun", tmp_path / "job.sh", tmp_path / "job.log"
        program.write_text(SRUN.format(deed=deed))
        program.chmod(0o755)
        script.write_text("\n".join([before, *again.function(minutes, 90), 'srun --unbuffered "a b"', ""]))
        variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | env
        with log.open("ab") as out:
            out.write(b"slurmstepd: error: StepId=1.0 exceeded memory limit, in the job's last allocation\n")
            out.flush()
            done = subprocess.run(["bash", script], stdout=out, stderr=out, env=variables, timeout=30, check=False)
        return done.returncode, log.read_text().splitlines()[1:]

    return run


def starts(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("life")]


def test_what_a_signal_killed_is_run_again_with_the_same_words(job: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = job('[ "$HALA_LIFE" -gt 1 ] || exit 137')
    assert code == 0
    assert lines == ["life 1: --unbuffered a b", f"{STARTS} (1 of 3)", "life 2: --unbuffered a b"]


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed_each_time_ends_its_job(
    job: Callable[..., tuple[int, list[str]]], number: signal.Signals
) -> None:
    code, lines = job(f"exit {128 + number}")
    assert code == 128 + number and len(starts(lines)) == 1 + again.MOST
    assert lines[-1] == f"hala: the worker was killed by signal {number}, after 3 new starts: its job ends"


@pytest.mark.parametrize("ends", [0, 1, 2, 128 + signal.SIGTERM, 128 + signal.SIGINT, 253])
def test_other_ends_are_the_jobs_own(job: Callable[..., tuple[int, list[str]]], ends: int) -> None:
    code, lines = job(f"exit {ends}")
    assert code == ends and len(lines) == 1


@pytest.mark.parametrize(
    "words",
    [
        "slurmstepd-n1: error: StepId=6.0 exceeded memory limit (393494528 > 314572800), being killed",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "srun: error: n1: task 0: Out Of Memory",
    ],
)
def test_not_after_a_memory_kill(job: Callable[..., tuple[int, list[str]]], words: str) -> None:
    """As Slurm's accounting and its cgroups print it, in various versions; what an earlier job printed is not ours."""
    code, lines = job(f"echo '{words}'; exit 137")
    assert code == 137 and lines[1:] == [
        words,
        "hala: the worker was killed by signal 9, for lack of memory: its job ends",
    ]
    code, lines = job('[ "$HALA_LIFE" -gt 1 ] || { echo "CUDA out of memory"; exit 137; }')
    assert code == 0, "what a worker says is none of Slurm's words"


def test_not_where_the_time_is_nearly_over(job: Callable[..., tuple[int, list[str]]]) -> None:
    """The notice of the time limit comes once."""
    over = "hala: the worker was killed by signal 9, and the time of its job is nearly over: it ends"
    assert job("exit 137", minutes=2)[1][-1] == over
    later, soon = (str(int(time.time()) + seconds) for seconds in (600, 100))
    assert job("exit 137", SLURM_JOB_END_TIME=soon)[1][-1] == over
    assert job("exit 137", minutes=1, SLURM_JOB_END_TIME=later)[1][-1].endswith("after 3 new starts: its job ends")


def test_not_where_the_job_is_to_end(job: Callable[..., tuple[int, list[str]]]) -> None:
    """Slurm sends SIGTERM to the script too."""
    code, lines = job("kill -TERM $PPID; exit 137", before="")
    assert code == -signal.SIGTERM and len(starts(lines)) == 1


def test_only_workers_start_again() -> None:
    """A training's launcher does not: its ranks may be left, in a step of their own."""
    recipe = Recipe(name="r", site=Site(executor="slurm"))
    assert "\nsrun() {\n" in preview(recipe, Path("/runs/r"), "serve", 2)
    assert "srun() {" not in preview(recipe, Path("/runs/r"), "work", 1, ranks=2)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Runs:
    return Runs(cluster, tmp_path)


def started(run: Path) -> list[ledger.Event]:
    """What the workers wrote as they started, in their order."""
    openings = [opening for _, opening in ledger.openings(run / "ledger")]
    return sorted(openings, key=lambda opening: float(opening["time"]))


def lives(run: Path) -> list[int]:
    return [opening.get("life", 0) for opening in started(run)]


def said(site: Runs, name: str) -> str:
    return "".join(file.read_text() for file in sorted((site.run(name) / "logs").glob("*_log.out")))


@pytest.mark.slurm
def test_a_killed_worker_goes_on_in_its_own_job(site: Runs) -> None:
    """In seconds, not after its lease, and with nobody's help."""
    site.submit(
        "alone",
        "data.limit=200",
        engine={"kind": "echo", "seconds": 0.5, "capacity": 10},
        run={"workers": 1, "shard_rows": 50, "lease_seconds": 600, "flush_seconds": 0.5},
        site={"executor": "slurm", "slurm": {"cpus_per_worker": 1, "minutes": 20}},
    )
    site.wait_for_rows("alone", 20)
    began = time.monotonic()
    site.cluster.run("scancel", "--signal=KILL", f"{site.jobs['alone']}.0")
    assert site.end("alone")["action"] == "done"
    assert time.monotonic() - began < 120, "not after its lease"
    assert texts(site.hala, "alone") == expected(200)
    assert site.arrays("alone") == 1 and [event["action"] for event in site.decided("alone")] == ["done"]
    assert lives(site.run("alone")) == [1, 2] and f"{STARTS} (1 of 3)" in said(site, "alone")
    claims = [event for file in (site.run("alone") / "ledger").glob("*.jsonl") for event in ledger.read(file)]
    assert max(event["attempt"] for event in claims if event["event"] == "claimed") == 2


@pytest.mark.slurm
def test_a_requeued_worker_does_not_wait_for_itself(site: Runs) -> None:
    """Killed as its job is requeued, it gave nothing back; it comes back to the same host."""
    site.submit(
        "requeued",
        "data.limit=200",
        engine={"kind": "echo", "seconds": 0.5, "capacity": 10},
        run={"workers": 1, "shard_rows": 200, "lease_seconds": 600, "flush_seconds": 0.5},
        site={"executor": "slurm", "slurm": {"cpus_per_worker": 1, "minutes": 20}},
    )
    site.wait_for_rows("requeued", 20)
    began = time.monotonic()
    [(_, opening)] = ledger.openings(site.run("requeued") / "ledger")
    os.kill(opening["pid"], signal.SIGKILL)
    site.cluster.run("scontrol", "requeue", site.jobs["requeued"])
    assert site.end("requeued")["action"] == "done"
    assert time.monotonic() - began < 120, "not after its lease"
    first, *_, last = lives(site.run("requeued"))
    assert first == last == 1, "the last one in another allocation"
    assert texts(site.hala, "requeued") == expected(200) and site.arrays("requeued") == 1


@pytest.mark.slurm
def test_a_row_that_kills_its_worker_is_set_aside_in_one_job(site: Runs) -> None:
    site.submit(
        "poisoned",
        "data.limit=100",
        engine={"kind": "echo", "seconds": 0.1, "capacity": 10, "die_on": "line 77 of"},
        run={"workers": 1, "shard_rows": 50, "lease_seconds": 600, "flush_seconds": 0.5},
        site={"executor": "slurm", "slurm": {"cpus_per_worker": 1, "minutes": 20}},
    )
    assert site.end("poisoned")["action"] == "done"
    verdict = site.hala.json("verify", "poisoned")
    assert verdict["proven"] and verdict["quarantined"] == {"worker died": 1} and verdict["done"] == 99
    assert lives(site.run("poisoned")) == [1, 2, 3, 4] and site.arrays("poisoned") == 1


@pytest.mark.slurm
def test_a_worker_that_is_killed_each_time_comes_to_its_steward(site: Runs) -> None:
    """Each time as soon as it has started: the fourth time its job ends as before, and more memory is asked for."""
    site.submit("hopeless", "data.limit=100", "run.workers=1", "site.slurm.mem_gb=1", "site.slurm.minutes=20")
    for life in range(again.MOST + 1):
        *_, last = wait_for(lambda number=life: started(site.run("hopeless"))[number:])
        os.kill(last["pid"], signal.SIGKILL)
    assert site.end("hopeless")["action"] == "done"
    assert texts(site.hala, "hopeless") == expected(100)
    first = site.decided("hopeless")[0]
    assert first["action"] == "submit" and "1 task ended by KILLED: 2 GB instead of 1" in first["reason"]
    assert lives(site.run("hopeless")) == [1, 2, 3, 4, 1] and site.arrays("hopeless") == 2
    assert "by signal 9, after 3 new starts: its job ends" in said(site, "hopeless")
