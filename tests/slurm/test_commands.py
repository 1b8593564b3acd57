"""What Slurm prints, read by pure functions; texts as a real Slurm 22.05 printed them."""

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm.commands import (
    JobState,
    Limits,
    counted,
    live_workers,
    outside_any_job,
    parse_config,
    parse_states,
    parse_submit_limit,
    run,
)
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
        "FAILED": 1,
        "PENDING (BeginTime)": 1,
    }
    assert live_workers(found) == 3
    assert parse_states("slurm_load_jobs error: Invalid job id specified\n") == []


@pytest.mark.parametrize(("text", "limit"), [("", None), ("\n\n", None), ("50\n\n20\n", 20)])
def test_submit_limit(text: str, limit: int | None) -> None:
    assert parse_submit_limit(text) == limit


def test_arrays_respect_the_limits_of_the_site() -> None:
    assert chunks(64, Limits(1001, 10_000)) == [64]
    assert chunks(2500, Limits(1001, 10_000)) == [1001, 1001, 498]
    assert chunks(64, Limits(1001, 10_000, submit=50), queued=10) == [40]
    assert chunks(64, Limits(1001, 30)) == [30]
    with pytest.raises(HalaError, match="may have 50 jobs and has 50"):
        chunks(64, Limits(1001, 10_000, submit=50), queued=50)


def test_a_missing_command_says_what_to_do() -> None:
    with pytest.raises(HalaError, match=r"not found .is this a Slurm login node"):
        run("no-such-slurm-command")


def test_variables_of_an_outer_job_do_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    with outside_any_job():
        assert "SLURM_JOB_ID" not in os.environ and "SBATCH_PARTITION" not in os.environ
        assert os.environ["SLURM_CONF"] == "/etc/slurm/slurm.conf"
    assert os.environ["SLURM_JOB_ID"] == "7"
