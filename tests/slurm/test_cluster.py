"""The main job on a real Slurm, with the echo engine: what Slurm does to workers, and that no row minds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, Hala
from tests.minislurm.cluster import Cluster
from tests.slurm.looking import finished, rows_done, state

pytestmark = pytest.mark.slurm

ROWS = 1500


@pytest.fixture
def slurm_hala(cluster: Cluster, tmp_path: Path) -> Hala:
    hala = Hala(tmp_path)
    hala.env = dict(cluster.env)
    return hala


@pytest.fixture
def slow_recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A run of about 25 worker-seconds."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"id": {i}, "text": "line {i} of this text"}}\n' for i in range(ROWS)))

    def write(name: str, **slurm: Any) -> Path:
        return write_recipe(
            name,
            data={"path": str(source)},
            engine={"kind": "echo", "seconds": 0.5, "capacity": 30},
            run={"workers": 2, "shard_rows": 50, "lease_seconds": 6, "flush_seconds": 0.5},
            site={"executor": "slurm", "slurm": {"cpus_per_worker": 1, "gpus_per_worker": 2, "minutes": 5} | slurm},
        )

    return write


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.3)
    return value


def texts(hala: Hala, run: str) -> list[tuple[int, str]]:
    hala("verify", run)
    hala("collect", run)
    table = pq.read_table(hala.folder / "runs" / run / "final" / "data")
    return list(zip(table["id"].to_pylist(), table["text_ar"].to_pylist(), strict=True))


def expected(count: int = ROWS) -> list[tuple[int, str]]:
    prompt = "Translate everything that follows into Arabic:\n\n"
    return [(i, f"«{prompt}line {i} of this text»") for i in range(count)]


def nodes_of(cluster: Cluster, job: str) -> dict[str, str]:
    lines = cluster.run("squeue", "-h", "-j", job, "-t", "RUNNING", "-o", "%i %N").stdout.splitlines()
    return dict(line.split() for line in lines)


def test_killed_and_preempted_workers_lose_no_row(
    cluster: Cluster, slurm_hala: Hala, slow_recipe: Callable[..., Path]
) -> None:
    """The run goes on while one worker is killed and the other preempted; both come back."""
    job = slurm_hala.json("submit", slow_recipe("rough"))["jobs"][0]
    wait_for(rows_done(slurm_hala, "rough", 150))
    assert slurm_hala.json("status", "rough")["jobs"] == {"RUNNING": 2}
    preempted = nodes_of(cluster, job)[f"{job}_1"]
    cluster.run(
        "sbatch", "-p", "urgent", "-w", preempted, "--gres=gpu:2", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    killed = next(worker for worker in slurm_hala.json("status", "rough")["workers"] if worker["job"] == f"{job}_0")
    os.kill(pid_of(slurm_hala, "rough", killed["worker"]), 9)
    wait_for(finished(slurm_hala, "rough"), 120)
    assert texts(slurm_hala, "rough") == expected()
    workers = slurm_hala.json("status", "rough")["workers"]
    jobs = [worker["job"] for worker in workers]
    assert jobs.count(f"{job}_1") == 2, "the preempted worker came back"
    assert jobs.count(f"{job}_0") == 2, "the killed one too, in its own job"


def test_grace_time_and_time_limit_requeue(
    cluster: Cluster, slurm_hala: Hala, slow_recipe: Callable[..., Path]
) -> None:
    """SIGTERM with a grace time, then USR2 before the limit: the worker is back each time, and goes on row by row."""
    recipe = slow_recipe("limits", partition="grace", minutes=5, signal_seconds=60)
    job = slurm_hala.json("submit", recipe, "run.workers=1", "engine.capacity=5", "data.limit=1000")["jobs"][0]
    wait_for(rows_done(slurm_hala, "limits", 60))
    node = next(iter(nodes_of(cluster, job).values()))
    cluster.run("sbatch", "-p", "urgent", "-w", node, "--gres=gpu:2", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: len(state(slurm_hala, "limits").workers) >= 2, 90)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # the signal is due: Slurm looks twice a minute
    wait_for(lambda: len(state(slurm_hala, "limits").workers) >= 3, 120)
    outcomes = [event["outcome"] for event in _events(slurm_hala, "limits") if event["event"] == "ended"]
    assert outcomes[:2] == ["stopped", "stopped"]
    assert all(event["attempt"] == 1 for event in _events(slurm_hala, "limits") if event["event"] == "claimed")
    slurm_hala("cancel", "limits")
    wait_for(lambda: not nodes_of(cluster, job))
    slurm_hala("resume", "limits", "--workers", "3", "site.slurm.partition=main", "site.slurm.gpus_per_worker=1")
    wait_for(finished(slurm_hala, "limits"), 120)
    assert texts(slurm_hala, "limits") == expected(1000)


def test_by_hand_with_sbatch(cluster: Cluster, slurm_hala: Hala, slow_recipe: Callable[..., Path]) -> None:
    """``sbatch --array=… sbatch/translate_array.sbatch RUN`` starts the same worker."""
    slurm_hala("plan", slow_recipe("hand"), "data.limit=300", "--create")
    run = slurm_hala.folder / "runs" / "hand"
    script = ROOT / "sbatch" / "translate_array.sbatch"
    subprocess.run(
        ["sbatch", "--array=0-2", "--cpus-per-task=1", "--time=5", str(script), str(run)],
        check=True,
        env=cluster.env | {"HALA_PYTHON": str(sys.executable)},
        cwd=slurm_hala.folder,
    )
    wait_for(finished(slurm_hala, "hand"))
    assert texts(slurm_hala, "hand") == expected(300)
    assert len(slurm_hala.json("status", "hand")["workers"]) == 3
    assert slurm_hala("cancel", "hand").stdout.startswith("finished")


def test_submitted_from_inside_a_job(cluster: Cluster, slurm_hala: Hala, slow_recipe: Callable[..., Path]) -> None:
    recipe = slow_recipe("inner")
    command = f"cd {slurm_hala.folder} && {sys.executable} -m hala_hpc.cli submit {recipe} data.limit=60"
    log = slurm_hala.folder / "outer.log"
    cluster.run("sbatch", "-n1", "-c3", "-t", "2", "-o", str(log), "--wrap", command)
    wait_for(lambda: (slurm_hala.folder / "runs" / "inner").is_dir() and finished(slurm_hala, "inner")())
    assert texts(slurm_hala, "inner") == expected(60)


def test_what_slurm_refuses_is_kept_and_goes_on_elsewhere(slurm_hala: Hala, slow_recipe: Callable[..., Path]) -> None:
    refused = slurm_hala("submit", slow_recipe("wrong"), "data.limit=60", "site.slurm.partition=nowhere", code=2)
    assert "invalid partition" in refused.stderr.lower() and "hala resume wrong" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    slurm_hala("resume", "wrong", "site.slurm.partition=main")
    wait_for(finished(slurm_hala, "wrong"))
    assert texts(slurm_hala, "wrong") == expected(60)
    assert slurm_hala.json("status", "wrong")["changed"] == {"site.slurm.partition": "main"}


def test_an_array_whose_submitter_died_is_found_by_its_comment(
    cluster: Cluster, slurm_hala: Hala, slow_recipe: Callable[..., Path]
) -> None:
    """As after ``kill -9`` between sbatch's answer and its record: only the intent is on disk."""
    job = slurm_hala.json("submit", slow_recipe("orphan"), "data.limit=60")["jobs"][0]
    run = slurm_hala.folder / "runs" / "orphan"
    [file] = (run / "ledger").glob("submit-*.jsonl")
    file.write_text(file.read_text().splitlines()[0] + "\n")
    from hala_hpc.slurm import record

    [intent] = record.unanswered(run)
    said = cluster.run("squeue", "--me", "--noheader", "--states=all", "--format=%F|%k").stdout
    assert f"{job}|{intent.token}" in said.splitlines()
    slurm_hala("resume", "orphan")
    assert record.slurm_jobs(run) == [job]
    wait_for(finished(slurm_hala, "orphan"))
    assert texts(slurm_hala, "orphan") == expected(60)


def test_cancelled_is_said_of_jobs_that_end(
    cluster: Cluster, slurm_hala: Hala, slow_recipe: Callable[..., Path]
) -> None:
    job = slurm_hala.json("submit", slow_recipe("stopped"))["jobs"][0]
    done = slurm_hala.json("cancel", "stopped")
    assert (done["arrays"], done["still"]) == ([job], 0)
    assert not nodes_of(cluster, job)
    # A task that is still COMPLETING may be one that comes back, so it is cancelled once more.
    wait_for(lambda: slurm_hala("cancel", "stopped").stdout.startswith("nobody works on it"))


def test_without_accounting(slow_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with_nothing = Cluster(accounting=False).start()
    try:
        with_nothing.guard()
        hala = Hala(tmp_path)
        hala.env = dict(with_nothing.env)
        hala("submit", slow_recipe("plain"), "data.limit=200")
        assert set(hala.json("status", "plain")["jobs"]) <= {"RUNNING", "PENDING", "PENDING (Resources)"}
        wait_for(finished(hala, "plain"))
        assert texts(hala, "plain") == expected(200)
        findings = {finding["what"]: finding["state"] for finding in _doctor(hala)}
        assert findings["accounting"] == "warning" and findings["slurm"] == "ok"
    finally:
        with_nothing.stop()


def _doctor(hala: Hala) -> list[dict[str, str]]:
    import json

    words = ("doctor", "site.executor=slurm", "--site", "local", "--json")
    done = hala(*words)
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def _events(hala: Hala, run: str) -> list[dict[str, Any]]:
    from hala_hpc.run import ledger

    files = (hala.folder / "runs" / run / "ledger").glob("*.jsonl")
    return sorted((event for file in files for event in ledger.read(file)), key=lambda event: float(event["time"]))


def pid_of(hala: Hala, run: str, worker: str) -> int:
    from hala_hpc.run import ledger

    return int(ledger.first(hala.folder / "runs" / run / "ledger" / f"{worker}.jsonl")["pid"])


def test_a_tenth_is_done_again_in_an_array_of_its_own(slurm_hala: Hala, slow_recipe: Callable[..., Path]) -> None:
    hala = slurm_hala
    hala("submit", slow_recipe("first"), "engine.seconds=0.01")
    wait_for(finished(hala, "first"), 120)
    there = texts(hala, "first")
    redone = hala.json("redo", "first", "--where", "id % 10 == 3", "task.prompt='again: {text}'")
    assert redone["redo"]["rows"] == ROWS // 10 and len(redone["jobs"]) == 1
    wait_for(finished(hala, "first-v2"), 120)
    now = texts(hala, "first-v2")
    assert [pair for pair in now if pair[0] % 10 != 3] == [pair for pair in there if pair[0] % 10 != 3]
    assert [text for number, text in now if number % 10 == 3] == [
        f"«again: line {number} of this text»" for number in range(3, ROWS, 10)
    ]
