"""What Slurm prints, read by pure functions; texts as a real Slurm 22.05 printed them."""

import os
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import commands, queue
from hala_hpc.slurm.commands import (
    ENDED,
    JobState,
    Limits,
    association_of,
    counted,
    outside_any_job,
    parse_associations,
    parse_config,
    parse_qos,
    parse_states,
    run,
    variable_of,
)
from hala_hpc.slurm.queue import Queue, TaskEnd, advice
from hala_hpc.slurm.submit import chunks

RETURNING = [
    "CONFIGURING", "PENDING", "PREEMPTED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD",
    "RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
]  # fmt: skip
"""States of a task that works or can do so (again)."""
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
    assert Queue(found).live == 3
    assert parse_states("slurm_load_jobs error: Invalid job id specified\n") == []


@pytest.mark.parametrize(
    "state",
    [*RETURNING, "COMPLETING", "A_STATE_OF_A_LATER_SLURM"],
)
def test_a_task_that_can_come_back_counts_as_a_worker(state: str) -> None:
    assert Queue([JobState("1_0", state, "None")]).live == 1


def test_a_task_that_is_over_is_no_worker() -> None:
    assert Queue([JobState("1_0", state, "None") for state in sorted(ENDED)]).live == 0
    assert not ENDED & set(RETURNING)


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


ENDS = """2|CANCELLED by 0|0:0|1780000002
2.batch|CANCELLED|0:15|1780000002
2.0|CANCELLED|0:9|1780000002
3|PENDING|0:0|Unknown
1_0|COMPLETED|0:0|1780000000
1_0.batch|COMPLETED|0:0|1780000000
1_1|FAILED|0:9|1780000003
1_1.batch|CANCELLED|0:9|1780000003
1_2|TIMEOUT|0:0|1780000060
1_2.batch|CANCELLED|0:15|1780000061
1_2.0|CANCELLED|0:15|1780000060
1_3|FAILED|3:0|1780000004
1_3.batch|FAILED|3:0|1780000004
4_[0-1,3-5]|PENDING|0:0|Unknown
5_0|OUT_OF_MEMORY|0:125|1780000007
5_0.batch|OUT_OF_MEMORY|0:125|1780000007
5_0.extern|COMPLETED|0:0|1780000007
5_1|FAILED|137:0|1780000008
5_1.batch|FAILED|137:0|1780000008
5_1.0|OUT_OF_MEMORY|0:125|1780000008
5_2|FAILED|1:0|1780000008
5_2.batch|FAILED|1:0|1780000008
5_2.0|CANCELLED|0:9|1780000007
5_2.1|FAILED|1:0|1780000008
5_3|FAILED|9:0|1780000008
5_3.batch|FAILED|9:0|1780000008
5_3.0|CANCELLED|0:9|1780000007
6|NODE_FAIL|1:0|1780000009
"""


def test_how_tasks_ended_out_of_accounting() -> None:
    """Numbers 1 to 4 as our test cluster printed them; 5 as sites with cgroups do, of a batch script and of a step.

    The workers of the last two of 5 were killed. One started again in its job, and then ended by itself.
    """
    ends = {one.job: (one.state, one.by) for one in queue.parse(ENDS)}
    assert ends == {
        "2": ("CANCELLED", 0),
        "1_0": ("COMPLETED", None),
        "1_1": ("KILLED", None),
        "1_2": ("TIMEOUT", None),
        "1_3": ("FAILED", None),
        "5_0": ("OUT_OF_MEMORY", None),
        "5_1": ("OUT_OF_MEMORY", None),
        "5_2": ("FAILED", None),
        "5_3": ("KILLED", None),
        "6": ("NODE_FAIL", None),
    }
    assert queue.parse("sacct: error: Slurm accounting storage is disabled\n") == []


def test_what_ended_badly_or_is_held_is_told_with_what_to_do() -> None:
    ends = [TaskEnd(f"7_{task}", state) for task, state in enumerate(["OUT_OF_MEMORY"] * 3 + ["TIMEOUT", "COMPLETED"])]
    ends += [TaskEnd("7_8", "CANCELLED", by=os.getuid()), TaskEnd("7_9", "CANCELLED", by=os.getuid() + 1)]
    queue = Queue(parse_states("7_5|PENDING|JobHeldAdmin\n7_6|RUNNING|None\n"), ends=ends)
    asked = {"mem_gb": 8.0, "minutes": 10, "signal_seconds": 90}
    held, memory, time, others = advice(queue, Path("/runs/big"), asked)
    assert held == "1 held in the queue: scontrol release 7, or hala cancel /runs/big"
    assert memory == "3 tasks ended by OUT_OF_MEMORY: raise site.slurm.mem_gb (8 now)"
    assert time.startswith("1 task ended by TIMEOUT: raise site.slurm.minutes (10 now), ")
    assert others.startswith("1 task ended by CANCELLED: by others than you")
    unlaunched = Queue(parse_states("7_5|PENDING|launch failed requeued held\n7_6|REQUEUE_HOLD|JobLaunchFailure\n"))
    [line, *_] = advice(unlaunched, Path("/runs/big"), asked)
    assert line.startswith("2 held in the queue, for a node could not launch them: ") and "hala steward" in line
    late = advice(queue, Path("/runs/big"), asked, has_progress=True)
    assert any("raise site.slurm.signal_seconds (90 now)" in line for line in late)


def test_of_a_finished_run_only_what_waits_in_the_queue_is_told() -> None:
    tasks = parse_states("7_0|PENDING|JobHeldAdmin\n7_1|PENDING|BeginTime\n7_2|RUNNING|None\n7_3|FAILED|None\n")
    told = advice(Queue(tasks), Path("/runs/big"), {}, finished=True)
    assert told == ["finished, but 2 tasks still in the queue: hala cancel /runs/big"]
    assert advice(Queue(tasks[2:]), Path("/runs/big"), {}, finished=True) == []
    assert advice(Queue(silence="away"), Path("/runs/big"), {}, finished=True) == []


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
    with pytest.raises(HalaError, match=r"Access/permission denied: 1 task may still be running"):
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
