"""What hala says when Slurm refuses, is silent, or answers late: programs in the place of Slurm's own act it out.

They are shell scripts, for a real controller cannot be made to lose an answer at will; what a real one does is tested
in test_cluster.
"""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import commands, record
from tests.conftest import Hala

CONFIG = "echo 'MaxArraySize = 1001'; echo 'MaxJobCount = 10000'; echo 'AccountingStorageEnforce = none'"
SUBMIT = """echo "$@" >> "$CALLS/sbatch"; env | grep -E '^(SBATCH|SLURM)_' >> "$CALLS/environment"
grep -- '--comment=' "${@: -1}" | sed 's/.*--comment=//' >> "$CALLS/comments"
n=$(( $(wc -l < "$CALLS/sbatch") + 100 )); """
TAKEN = SUBMIT + 'echo "Submitted batch job $n"'
LOST = SUBMIT + 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
SILENT = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
DENIED = "echo 'scancel: error: Kill job error on job id 101: Access/permission denied' >&2; exit 1"


class Programs:
    """Shell scripts called like Slurm's commands, first on the PATH; ``calls`` holds what they were called with."""

    def __init__(self, folder: Path, hala: Hala) -> None:
        self.folder, self.calls = folder / "bin", folder / "calls"
        self.folder.mkdir()
        self.calls.mkdir()
        hala.env |= {"PATH": f"{self.folder}:{hala.env['PATH']}", "CALLS": str(self.calls)}
        self(scontrol=CONFIG, sbatch=TAKEN, squeue="true", scancel="true", sacctmgr="true", srun="true")

    def __call__(self, **scripts: str) -> None:
        for name, text in scripts.items():
            path = self.folder / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def lines(self, name: str) -> list[str]:
        path = self.calls / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, hala: Hala) -> Programs:
    return Programs(tmp_path, hala)


@pytest.fixture
def recipe(tmp_path: Path, write_recipe: Callable[..., Path]) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(8)))
    site = {"name": "c", "executor": "slurm"}
    return write_recipe("r", data={"path": "rows.jsonl"}, run={"workers": 2, "shard_rows": 2}, site=site)


def test_a_silent_slurm_is_said_to_be_and_workers_are_not_doubled(slurm: Programs, hala: Hala, recipe: Path) -> None:
    hala("submit", recipe, "--site", "local")
    assert hala.json("status", "r")["idle"] is True, "Slurm answers and has forgotten the job"
    slurm(squeue=SILENT)
    said = hala("status", "r").stdout
    assert "Slurm does not answer" in said and "nobody works on it" not in said and "0 of 8" in said
    told = hala.json("status", "r")
    assert (told["slurm_answers"], told["idle"]) == (False, False)
    assert "whether workers exist is not known" in hala("resume", "r", code=2).stderr
    assert len(slurm.lines("sbatch")) == 1
    slurm(squeue='[[ "$*" == *%T* ]] && echo "101_0|REQUEUE_HOLD|JobHeldUser"; true')
    assert "nobody works on it" not in hala("status", "r").stdout, "a held job may come back"
    assert hala.json("resume", "r")["workers"] == 1, "one of two is there"


def test_cancel_says_what_scancel_said(slurm: Programs, hala: Hala, recipe: Path) -> None:
    hala("submit", recipe, "--site", "local")
    slurm(squeue='[[ "$*" == *%T* ]] && echo "101_0|RUNNING|None"; true', scancel=DENIED)
    said = hala("cancel", "r", code=2).stderr
    assert "Access/permission denied" in said and "the jobs go on" in said
    slurm(scancel='echo "$@" >> "$CALLS/scancel"')
    assert hala.json("cancel", "r") == {"jobs": ["101"], "local_workers": 0, "still_stopping": 0}
    assert slurm.lines("scancel") == ["101"]
    slurm(squeue="true")
    assert "nothing to cancel" in hala("cancel", "r").stdout


def test_a_refused_submission_keeps_the_plan(slurm: Programs, hala: Hala, recipe: Path) -> None:
    slurm(sbatch="echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    said = hala("submit", recipe, "--site", "local", code=2).stderr
    assert "invalid partition" in said and "the run is planned: `hala resume" in said
    slurm(sbatch=TAKEN)
    assert hala.json("resume", "r", "site.slurm.partition=gpu")["jobs"] == ["101"]


def test_an_answer_that_was_lost_is_found_and_nothing_is_submitted_twice(
    slurm: Programs, hala: Hala, recipe: Path
) -> None:
    slurm(sbatch=LOST, squeue=SILENT)
    said = hala("submit", recipe, "--site", "local", code=2).stderr
    assert "the jobs may exist all the same" in said
    run = hala.folder / "runs" / "r"
    assert len(record.unanswered(run)) == 1 and record.submitted(run) == []
    assert "whether workers exist is not known" in hala("resume", "r", code=2).stderr
    (mark,) = slurm.lines("comments")
    looks = f"""if [[ "$*" == *%k* ]]; then echo "101|101|{mark}"; else echo "101_[0-1]|PENDING|Resources"; fi"""
    slurm(squeue=looks + '; if [[ "$*" != *%k* ]]; then echo "101_1|PENDING|Resources"; fi')
    assert "nobody works" not in hala("status", "r").stdout
    assert [one.jobs for one in record.submitted(run)] == [["101"]]
    assert hala.json("resume", "r")["workers"] == 0
    assert len(slurm.lines("sbatch")) == 1


def test_an_answer_lost_while_squeue_works_is_no_loss(slurm: Programs, hala: Hala, recipe: Path) -> None:
    slurm(sbatch=LOST, squeue='[[ "$*" == *%k* ]] && echo "101|101|$(tail -n1 $CALLS/comments)"; true')
    assert hala.json("submit", recipe, "--site", "local")["jobs"] == ["101"]


def test_a_persons_own_variables_reach_sbatch_where_the_recipe_is_silent(
    slurm: Programs, hala: Hala, recipe: Path
) -> None:
    hala.env |= {"SBATCH_ACCOUNT": "def-prof", "SBATCH_PARTITION": "debug", "SBATCH_ARRAY_INX": "0-9"}
    hala("submit", recipe, "--site", "local", "site.slurm.partition=gpu")
    seen = slurm.lines("environment")
    assert "SBATCH_ACCOUNT=def-prof" in seen
    assert not [line for line in seen if line.startswith(("SBATCH_PARTITION", "SBATCH_ARRAY_INX"))]


def test_watching_asks_slurm_seldom(slurm: Programs, hala: Hala, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hala_hpc.cli import status

    hala("submit", recipe, "--site", "local")
    slurm(squeue='echo "$@" >> "$CALLS/squeue"')
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(slurm.calls))
    asked = status.Asked(hala.folder / "runs" / "r")
    for _ in range(20):
        asked()
    assert len(slurm.lines("squeue")) == 1


def test_a_changed_key_reaches_workers_and_stays(slurm: Programs, hala: Hala, recipe: Path) -> None:
    from hala_hpc.cli import common

    hala("submit", recipe, "--site", "local")
    run = hala.folder / "runs" / "r"
    before = (run / "recipe.yaml").read_bytes()
    hala("resume", "r", "run.stall_seconds=7200", "site.slurm.minutes=30", "site.scratch=/scratch")
    hala("resume", "r", "site.slurm.minutes=45")
    thawed = common.thawed(run)
    assert (thawed.run.stall_seconds, thawed.site.slurm.minutes, thawed.site.scratch) == (7200.0, 45, "/scratch")
    assert (run / "recipe.yaml").read_bytes() == before


def test_no_traceback_without_slurm_at_all(hala: Hala, recipe: Path) -> None:
    hala.env["PATH"] = "/usr/bin:/bin"
    said = hala("submit", recipe, "--site", "local", code=2).stderr
    assert len(said.splitlines()) == 1 and said.startswith("hala: error: scontrol")
    assert not (hala.folder / "runs" / "r").exists()


def test_local_workers_are_cancelled_before_they_write_anything(
    tmp_path: Path, hala: Hala, write_recipe: Callable[..., Path]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(400)))
    path = write_recipe("r", data={"path": "rows.jsonl"}, engine={"kind": "echo", "seconds": 5.0})
    (pid,) = hala.json("submit", path, "run.workers=1")["jobs"]
    assert hala.json("cancel", "r") == {"jobs": [], "local_workers": 1, "still_stopping": 0}
    (one,) = record.submitted(tmp_path / "runs" / "r")
    assert not record.is_alive(one, pid)
    assert "nothing to cancel" in hala("cancel", "r").stdout


def test_what_slurm_forgot_is_no_error_and_silence_is_one(slurm: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    slurm(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert commands.states(["1"]) == []
    slurm(squeue=SILENT)
    with pytest.raises(commands.SlurmSilent, match="Unable to contact"):
        commands.states(["1"])
    slurm(squeue="sleep 5")
    with pytest.raises(commands.SlurmSilent, match="did not answer for 0 s"):
        commands.states(["1"], seconds=0.2)
    slurm(squeue="echo 'squeue: error: Invalid user' >&2; exit 1")
    with pytest.raises(HalaError, match="squeue: Invalid user"):
        commands.states(["1"])


def test_requeueing_goes_on_until_slurm_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(commands.time, "sleep", pauses.append)
    answers = iter([HalaError("down"), subprocess.CalledProcessError(1, "scontrol"), None])

    def act() -> None:
        if (error := next(answers)) is not None:
            raise error

    said: list[str] = []
    commands.until_it_works(act, said.append)
    assert len(pauses) == 2 and 0 < pauses[0] <= 2 < pauses[1] * 2 <= 8
    assert "down; again in" in said[0]


def test_a_node_without_scontrol_ends_orderly_and_says_so(tmp_path: Path) -> None:
    from hala_hpc.worker.array import _requeue

    (tmp_path / "ledger").mkdir()

    def handler(_: int, __: None) -> None:
        raise FileNotFoundError("scontrol")

    _requeue(handler, tmp_path)
    (path,) = (tmp_path / "ledger").glob("*.jsonl")
    assert "cannot requeue: no scontrol here" in [json.loads(line) for line in path.open()][-1]["error"]
