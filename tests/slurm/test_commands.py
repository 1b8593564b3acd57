"""What Slurm prints, read by pure functions; texts as a real Slurm 22.05 printed them."""

import os
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import commands
from hala_hpc.slurm.commands import (
    ENDED,
    RETURNING,
    JobState,
    counted,
    live_workers,
    outside_any_job,
    parse_states,
    run,
    variable_of,
)
from hala_hpc.slurm.limits import Limits, association_of, parse_associations, parse_config, parse_qos
from hala_hpc.slurm.queue import hints
from hala_hpc.slurm.submit import chunks

CONFIG = """Configuration data as of 2026-11-21T08:40:00
AccountingStorageEnforce = associations,limits
MaxArraySize            = 2001
MaxJobCount             = 20000
Slurmctld(primary) at vm is UP
"""
QUEUE = """2_[3-4]|PENDING|Resources
2_0|RUNNING|None
2_1|FAILED|NonZeroExitCode
2_2|PENDING|BeginTime
"""


def test_configuration() -> None:
    config = parse_config(CONFIG)
    assert (config["MaxArraySize"], config["AccountingStorageEnforce"]) == ("2001", "associations,limits")


def test_states() -> None:
    found = parse_states(QUEUE)
    assert found[1] == JobState("2_0", "RUNNING", "None")
    assert counted(found) == {
        "PENDING (Resources)": 1,
        "RUNNING": 1,
        "FAILED (NonZeroExitCode)": 1,
        "PENDING (BeginTime)": 1,
    }
    assert live_workers(found) == 3
    assert parse_states("slurm_load_jobs error: Invalid job id specified\n") == []


@pytest.mark.parametrize(
    "state",
    [*sorted(RETURNING), "COMPLETING", "A_STATE_OF_A_LATER_SLURM"],
)
def test_a_task_that_can_come_back_counts_as_a_worker(state: str) -> None:
    assert live_workers([JobState("1_0", state, "None")]) == 1


def test_a_task_that_is_over_is_no_worker() -> None:
    assert live_workers([JobState("1_0", state, "None") for state in sorted(ENDED)]) == 0
    assert not ENDED & RETURNING


ASSOCIATIONS = """big|debug||1|normal
big|prof||5000|long
big|prof|gpu|40|
other|prof||7|
"""


def test_the_limit_is_that_of_the_account_cluster_and_partition_asked_for() -> None:
    found = parse_associations(ASSOCIATIONS)
    asked = [
        ("big", "debug", ""),
        ("big", "prof", ""),
        ("big", "prof", "gpu"),
        ("big", "prof", "cpu"),
        ("big", "x", ""),
    ]
    limits = [one.submit if (one := association_of(found, *words)) else None for words in asked]
    assert limits == [1, 5000, 40, 5000, None]


def test_the_limit_of_a_qos_is_its_smallest() -> None:
    assert parse_qos("normal||\nlong|20|8\nshort|5|\n") == {"normal": None, "long": 8, "short": 5}


def test_what_ended_badly_or_is_held_is_told_with_what_to_do() -> None:
    tasks = parse_states("7_0|OUT_OF_MEMORY|OutOfMemory\n7_1|TIMEOUT|TimeLimit\n7_2|PENDING|JobHeldAdmin\n")
    held, memory, time = hints(tasks, "big", 10, has_progress=False)
    assert "scontrol release 7" in held and "site.slurm.mem_gb" in memory and "site.slurm.minutes (10)" in time
    assert len(hints(tasks, "big", 10, has_progress=True)) == 2, "a limit that lets work be done is no fault"


def test_arrays_respect_the_limits_of_the_site() -> None:
    assert chunks(64, Limits(1001, 10_000)) == [64]
    assert chunks(2500, Limits(1001, 10_000)) == [1001, 1001, 498]
    assert chunks(64, Limits(1001, 10_000, submit=50), queued=10) == [40]
    assert chunks(64, Limits(1001, 30)) == [30]
    with pytest.raises(HalaError, match="may have 50 jobs and has 50"):
        chunks(64, Limits(1001, 10_000, submit=50), queued=50)


def test_a_missing_command_says_what_to_do() -> None:
    with pytest.raises(HalaError, match=r"not found .are you on a login node"):
        run("no-such-slurm-command")


def test_variables_of_an_outer_job_do_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    with outside_any_job():
        assert "SLURM_JOB_ID" not in os.environ and "SBATCH_PARTITION" not in os.environ
        assert os.environ["SLURM_CONF"] == "/etc/slurm/slurm.conf"
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_outside_of_jobs_a_persons_own_variables_reach_sbatch_where_the_recipe_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name in ("SBATCH_ACCOUNT", "SLURM_ACCOUNT", "SBATCH_PARTITION", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(name, "mine")
    with outside_any_job(["partition", "time"]):
        assert os.environ["SBATCH_ACCOUNT"] == os.environ["SLURM_ACCOUNT"] == "mine"
        assert "SBATCH_PARTITION" not in os.environ and "SBATCH_TIMELIMIT" not in os.environ
    assert os.environ["SBATCH_PARTITION"] == "mine"
    assert [variable_of(name) for name in ("mem", "array", "gpus-per-node")] == [
        "SBATCH_MEM_PER_NODE",
        "SBATCH_ARRAY_INX",
        "SBATCH_GPUS_PER_NODE",
    ]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH for programs that act as Slurm does when its controller is away or says no."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def program(folder: Path, name: str, lines: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


def test_a_forgotten_job_is_no_silence_and_a_dead_controller_is_no_empty_queue(fake_slurm: Path) -> None:
    program(fake_slurm, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert commands.states(["7"]) == []
    program(fake_slurm, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(HalaError, match="Unable to contact"):
        commands.states(["7"])
    program(fake_slurm, "squeue", "exec sleep 60")
    old, commands.ASK_SECONDS = commands.ASK_SECONDS, 0.2
    try:
        with pytest.raises(HalaError, match="no answer"):
            commands.states(["7"])
    finally:
        commands.ASK_SECONDS = old


def test_cancelled_is_what_scancel_accepted(fake_slurm: Path) -> None:
    program(fake_slurm, "squeue", "echo '7_0|RUNNING|None'")
    program(
        fake_slurm, "scancel", "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2; exit 1"
    )
    with pytest.raises(HalaError, match=r"Access/permission denied: 1 tasks may be at work still"):
        commands.cancel(["7"])
    program(fake_slurm, "squeue", "echo '7_0|COMPLETING|None'")
    assert commands.cancel(["7"]) == [], "it ended by itself meanwhile"


def test_four_lines_of_one_cause_are_one_line(fake_slurm: Path) -> None:
    lines = (
        "error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host",
        "fatal: Could not establish a configuration source",
    )
    program(fake_slurm, "scontrol", "; ".join(f"echo 'scontrol: {line}' >&2" for line in lines) + "; exit 1")
    with pytest.raises(HalaError) as caught:
        run("scontrol", "show", "config")
    assert str(caught.value) == "scontrol: no Slurm is set up here (are you on a login node? try --site local)"
