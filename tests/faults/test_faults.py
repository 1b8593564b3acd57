"""Faults on a real Slurm, one a run and all at the same time: each run ends proven, by itself, with the rows of an
unbroken one. docs/operations.md has the seconds that they took.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.pipeline import lookup
from hala_hpc.run import ledger
from hala_hpc.slurm import commands, record
from tests.conftest import ROOT
from tests.damaged import flipped
from tests.faults.site import CRASHES, KEPT, ROWS, STARTED, FaultSite, crash, slurm
from tests.minislurm.cluster import Cluster, missing
from tests.minislurm.daemon import processes_with, send, start_time
from tests.slurm.test_cluster import expected, nodes_of, wait_for

pytestmark = pytest.mark.slurm

SETTINGS = {"SlurmdTimeout": "20", "JobAcctGatherParams": "OverMemoryKill"}
"""A node that is silent for so long has failed; without cgroups it is accounting that kills for memory."""
DISK_MB = 4
OUTAGE_SECONDS = 40.0
FULL_DISK = "full-disk"


@dataclass(frozen=True)
class Fault:
    """``injure`` is called when both workers are at the run. ``arrays``: of workers, handed in by the end."""

    name: str
    injure: Callable[[FaultSite, str], None]
    arrays: int = 1
    sections: dict[str, Any] = field(default_factory=dict)
    begin: Callable[[FaultSite, str], None] | None = None
    is_ready: Callable[[FaultSite, str], bool] = FaultSite.is_ready


def nothing(site: FaultSite, name: str) -> None:
    """An unbroken run, to compare with."""


def kill_one(site: FaultSite, name: str) -> None:
    os.kill(site.pids(name)[0], signal.SIGKILL)


def freeze_one(site: FaultSite, name: str) -> None:
    """For more than twice its lease."""
    pid = site.pids(name)[0]
    os.kill(pid, signal.SIGSTOP)
    site.later(15, lambda: os.kill(pid, signal.SIGCONT))


def requeue_one(site: FaultSite, name: str) -> None:
    site.cluster.run("scontrol", "requeue", f"{site.job(name)}_0")


def crash_a_node(site: FaultSite, name: str) -> None:
    """It stays away: Slurm gives it up, and the run is done without it."""
    crash(site.cluster, CRASHES)


def drain_a_node(site: FaultSite, name: str) -> None:
    """And the worker there has to go: it comes back on another one."""
    job = f"{site.job(name)}_0"
    node = nodes_of(site.cluster, site.job(name))[job]
    site.cluster.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    site.cluster.run("scontrol", "requeue", job)


def fill_the_disk(site: FaultSite, name: str) -> None:
    filler = site.run(name).parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    site.later(8, filler.unlink)


def damage_partials(site: FaultSite, name: str) -> None:
    """What the killed workers left of two shards: one is cut in the middle of a row, of one a byte is flipped."""
    site.kill_all(name)
    first, second, *_ = sorted(site.run(name).glob("partial/*/*.jsonl"), key=lambda path: -path.stat().st_size)
    with first.open("r+b") as file:
        file.truncate(first.stat().st_size // 2)
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)


def is_published(site: FaultSite, name: str) -> bool:
    return len(list(site.run(name).glob("shards/*/*.parquet"))) >= 3


def damage_outputs(site: FaultSite, name: str) -> None:
    """Of published shards: a bit is flipped in one, one is cut short, one is emptied."""
    first, second, third, *_ = sorted(site.run(name).glob("shards/*/*.parquet"))
    flipped(first, 8 * 200)
    second.write_bytes(second.read_bytes()[:-100])
    third.write_bytes(b"")


def remove_leases(site: FaultSite, name: str) -> None:
    shutil.rmtree(site.run(name) / "leases", ignore_errors=True)


def remove_ledger(site: FaultSite, name: str) -> None:
    """And the workers die: how many there were and what they did, nobody knows."""
    site.kill_all(name)
    shutil.rmtree(site.run(name) / "ledger", ignore_errors=True)


def move_the_run(site: FaultSite, name: str) -> None:
    """To another place, with a link where it was."""
    run = site.run(name)
    run.rename(site.folder / "elsewhere")
    run.symlink_to(site.folder / "elsewhere")


def take_the_source_away(site: FaultSite, name: str) -> None:
    source = site.folder / f"{name}.jsonl"
    source.rename(site.folder / "moved.jsonl")
    site.later(8, lambda: source.symlink_to(site.folder / "moved.jsonl"))


def _killed_at(site: FaultSite, name: str, submission: int) -> None:
    """Kill `hala submit` when Slurm has taken one of its jobs, before that is on record.

    A program in front of the real one ends who called it.
    """
    folder = site.folder / f"bin-{name}"
    folder.mkdir()
    real = shutil.which("sbatch", path=site.cluster.env["PATH"])
    count = f"echo >>{folder}/asked; [ $(wc -l <{folder}/asked) -eq {submission} ]"
    (folder / "sbatch").write_text(
        f'#!/bin/bash\nif {count}; then {real} "$@" >/dev/null; kill -9 $PPID; else exec {real} "$@"; fi\n'
    )
    (folder / "sbatch").chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "hala_hpc.cli", "submit", str(site.recipe(name, {}))]
    done = subprocess.run(command, env=env, cwd=site.folder, capture_output=True, check=False)
    site.injured[name] = time.time()
    assert done.returncode == -signal.SIGKILL, done.stderr
    kind = (record.STEWARD, record.WORKERS)[submission - 1]
    assert len(record.unanswered(site.run(name), kind)) == 1


def kill_the_submit(site: FaultSite, name: str) -> None:
    """It has handed in a steward, and no workers."""
    _killed_at(site, name, 1)


def kill_the_submit_late(site: FaultSite, name: str) -> None:
    """It has handed in workers, and told the steward nothing of it."""
    _killed_at(site, name, 2)


def kill_the_steward(site: FaultSite, name: str) -> None:
    """The workers' jobs die, batch scripts and all, and the steward as soon as it looks: the next one does it."""
    for process in processes_with(f"SLURM_ARRAY_JOB_ID={site.job(name)}"):
        send(process, signal.SIGKILL)
    [(_, steward)] = wait_for(lambda: _stewards(site, name), 60)
    for pid in steward:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _stewards(site: FaultSite, name: str) -> list[tuple[str, list[int]]]:
    """Their jobs that are at work and have a successor in the queue, each with its processes."""
    jobs = record.steward_jobs(site.run(name))
    states = {task.job: task.state for task in commands.states(jobs)}
    if "PENDING" not in states.values():
        return []
    at_work = [job for job in jobs if states.get(job) == "RUNNING"]
    return [(job, [pid for pid, _ in processes_with(f"SLURM_JOB_ID={job}")]) for job in at_work]


def resume_twice(site: FaultSite, name: str) -> None:
    """Two people at the same time."""
    site.command("plan", site.recipe(name, {}), "--create")
    command = [sys.executable, "-m", "hala_hpc.cli", "resume", name]
    site.injured[name] = time.time()
    people = [subprocess.Popen(command, cwd=site.folder, stdout=subprocess.PIPE) for _ in range(2)]
    assert [person.wait(60) for person in people] == [0, 0]


def at_once(site: FaultSite, name: str) -> bool:
    """As soon as there is such a run."""
    return (site.run(name) / "manifest.parquet").exists()


FAULTS = (
    Fault("unbroken", nothing),
    Fault("node-crashed", crash_a_node, sections={"site": slurm(cpus_per_worker=9, extra={"exclude": "n1,n2"})}),
    Fault("no-memory", nothing, arrays=2, sections={"site": slurm(mem_gb=0.05)}, is_ready=at_once),
    Fault("damaged-partials", damage_partials, sections={"run": {"shard_rows": ROWS // 2}}),
    Fault("damaged-outputs", damage_outputs, arrays=2, is_ready=is_published),
    Fault("no-ledger", remove_ledger, arrays=0),  # that of the only one went with it
    Fault("frozen-one", freeze_one),
    Fault("requeued-one", requeue_one),
    # Not on the node that the other one's task goes to, or has to wait for.
    Fault("drained-node", drain_a_node, sections={"site": slurm(extra={"exclude": f"n3,{CRASHES}"})}),
    Fault(FULL_DISK, fill_the_disk),
    Fault("killed-one", kill_one),
    Fault("no-leases", remove_leases),
    Fault("moved-run", move_the_run),
    Fault("moved-source", take_the_source_away),
    Fault("killed-steward", kill_the_steward, arrays=2),
    Fault("killed-submit", nothing, begin=kill_the_submit, is_ready=at_once),
    Fault("killed-submit-late", nothing, begin=kill_the_submit_late, is_ready=at_once),
    Fault("two-resumes", nothing, begin=resume_twice, is_ready=at_once),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultSite]:
    """All runs begin one after the other, and each has its fault as soon as it is far enough."""
    if reason := missing():
        pytest.skip(f"no Slurm: {reason}")
    cluster = Cluster(settings=SETTINGS).start()
    folder = tmp_path_factory.mktemp("faults")
    disk = folder / "disk"
    here = FaultSite(cluster, folder)
    with pytest.MonkeyPatch.context() as patch:
        try:
            cluster.guard()
            for name in set(os.environ) - cluster.env.keys():
                patch.delenv(name)
            for name, value in (cluster.env | {"PYTHONPATH": f"{ROOT / 'src'}"}).items():
                patch.setenv(name, value)
            patch.chdir(folder)
            disk.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", disk]
            mounted = subprocess.run(words, capture_output=True, text=True, check=False)
            here.no_disk = mounted.stderr.strip()
            _begin(here, disk)
            yield here
        finally:
            here.close()
            cluster.stop()
            subprocess.run(["umount", "--lazy", disk], check=False)
            shutil.rmtree(cluster.dir)


def _begin(site: FaultSite, disk: Path) -> None:
    """The faults come beside this, for a submission takes seconds where all the cores are busy."""
    watcher = threading.Thread(target=_injure, args=(site,))
    watcher.start()
    try:
        for fault in FAULTS:
            if fault.name == FULL_DISK and site.no_disk:
                continue
            if fault.begin is not None:
                fault.begin(site, fault.name)
            else:
                sections = fault.sections | ({"run": {"root": str(disk)}} if fault.name == FULL_DISK else {})
                site.begin(fault.name, **sections)
    finally:
        watcher.join()


def _injure(site: FaultSite) -> None:
    """What goes wrong with it is told by the test of that fault."""
    left = {fault.name: fault for fault in FAULTS if fault.name != FULL_DISK or not site.no_disk}
    until = time.monotonic() + STARTED
    while left and time.monotonic() < until:
        for name, fault in list(left.items()):
            try:
                if not fault.is_ready(site, name):
                    continue
                site.injured.setdefault(name, time.time())
                fault.injure(site, name)
            except (OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
                site.problems[name] = repr(error)
            del left[name]
        time.sleep(0.2)
    site.problems.update(dict.fromkeys(left, f"not so far within {STARTED:g} s"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_run_with_a_fault_ends_by_itself_as_an_unbroken_one(
    site: FaultSite, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    if fault.name == FULL_DISK and site.no_disk:
        pytest.skip(f"no tmpfs: {site.no_disk}")
    assert fault.name not in site.problems, site.problems[fault.name]
    end = site.end(fault.name)
    assert end["action"] == "done", end
    assert site.proven_rows(fault.name) == expected(ROWS)
    errors = [error["error"] for error in lookup.state_of(site.run(fault.name)).errors]
    assert site.arrays(fault.name) == fault.arrays, errors
    recovery = site.recovery(fault.name)
    record_property("recovery", str(recovery))
    print(f"{fault.name}: {recovery}")


def test_a_controller_that_is_away_for_40_seconds(
    site: FaultSite, record_property: Callable[[str, object], None]
) -> None:
    """A worker's requeue waits for it, and commands say within seconds that there is no answer."""
    site.begin("away", run={"workers": 1}, engine={"capacity": 6})
    wait_for(lambda: site.kept("away") >= KEPT)
    site.cluster.daemons.end(["slurmctld"], patience=5)
    site.injured["away"] = time.time()
    os.kill(site.pids("away")[0], signal.SIGUSR2)  # what Slurm sends before the end of the job's time
    site.later(OUTAGE_SECONDS, lambda: site.cluster.start_daemon("slurmctld"))
    command = [sys.executable, "-m", "hala_hpc.cli", "submit", str(site.recipe("submitted", {}))]
    submission = subprocess.Popen(command, cwd=site.folder, stderr=subprocess.PIPE, text=True)
    told = site.command("status", "away")
    assert "Slurm does not answer" in told and "nobody works on it" not in told
    assert time.time() - site.injured["away"] < 20, "squeue itself would try for a minute and more"
    assert "Slurm does not answer" in site.command("resume", "away", code=2)
    assert "not cancelled" in site.command("cancel", "away", code=2)
    _, said = submission.communicate(timeout=60)
    assert submission.returncode == 2 and "Unable to contact slurm controller" in said
    assert len(said.splitlines()) == 1 and not site.run("submitted").exists()
    log = next(site.run("away").glob("logs/*_0_log.out"))
    wait_for(lambda: "trying again" in log.read_text())
    assert site.end("away")["action"] == "done"
    assert site.proven_rows("away") == expected(ROWS) and site.arrays("away") == 1
    record_property("recovery", str(site.recovery("away")))
    print(f"away: {site.recovery('away')}")


def test_a_slurmd_that_is_killed_for_40_seconds(
    site: FaultSite, record_property: Callable[[str, object], None]
) -> None:
    """Its worker lives on under slurmstepd, though Slurm gives the node up and starts the task once more elsewhere."""
    site.begin("no-slurmd", engine={"capacity": 1})
    wait_for(lambda: site.is_ready("no-slurmd"))
    task, worker = f"{site.job('no-slurmd')}_0", site.pids("no-slurmd")[0]
    node = nodes_of(site.cluster, site.job("no-slurmd"))[task]
    daemon = site.cluster.daemons.process(node)
    assert daemon is not None
    site.injured["no-slurmd"] = time.time()
    send(daemon, signal.SIGKILL)
    site.later(OUTAGE_SECONDS, lambda: site.cluster.start_daemon(node))
    state = ("squeue", "--noheader", "--array", "--format=%T", f"--jobs={task}")
    wait_for(lambda: site.cluster.run(*state).stdout.strip() == "PENDING", OUTAGE_SECONDS)
    assert start_time(worker) is not None, "kill -9 of slurmd ends nothing else"
    assert site.end("no-slurmd")["action"] == "done"
    assert site.proven_rows("no-slurmd") == expected(ROWS) and site.arrays("no-slurmd") == 1
    lives = [opening for _, opening in ledger.openings(site.run("no-slurmd") / "ledger") if opening.get("job") == task]
    assert len(lives) == 2, "the one that lived on, and the one that Slurm started"
    record_property("recovery", str(site.recovery("no-slurmd")))
    print(f"no-slurmd: {site.recovery('no-slurmd')}")
