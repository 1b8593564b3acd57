"""What is submitted when Slurm's answers are lost, acted out by small programs in front of PATH."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from submitit.core.utils import DelayedSubmission

from hala_hpc.cli.main import hala
from hala_hpc.config.errors import HalaError
from hala_hpc.run.ledger import Ledger
from hala_hpc.slurm import allocation, record
from hala_hpc.slurm.queue import ask
from hala_hpc.worker.job import work_until
from hala_hpc.worker.task import Outcome
from tests.cli.test_plan_training import CONFIG
from tests.conftest import ROOT
from tests.data.tokenizer_kinds import KINDS, save

PROGRAMS = {
    "scontrol": """[ "$1" = show ] || { echo "$*" >>"$HERE/told"; exit 0; }
printf 'MaxArraySize = 1001\\nMaxJobCount = 10000\\n'""",
    # A queue of the arrays that sbatch took, of two tasks each, unless it is to be silent.
    "squeue": """echo "$*" >>"$HERE/squeue.asked"
[ ! -e "$HERE/silent" ] || { echo 'error: Unable to contact slurm controller' >&2; exit 1; }
case "$*" in
*%F*) cat "$HERE/queue" ;;
*) sed "s/^\\([0-9]*\\)|.*/\\1_0|$(cat "$HERE/state")|None\\n\\1_1|$(cat "$HERE/state")|None/" "$HERE/queue" ;;
esac""",
    # It hands the job in, and then has no answer.
    "sbatch": """echo asked >>"$HERE/asked"; job=$((6 + $(wc -l <"$HERE/asked"))); cp "$1" "$HERE/$job.sbatch"
[ -e "$HERE/drops" ] || sed -n "s/^#SBATCH --comment=/$job|/p" "$1" | tr -d "'" >>"$HERE/queue"
echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1""",
    "srun": "exit 0",
    "sacct": """echo "$*" >>"$HERE/sacct.asked"; [ -e "$HERE/sacct.says" ] || exit 1; cat "$HERE/sacct.says" """,
    "scancel": """echo "$*" >>"$HERE/cancelled"; [ "$1" = --state=PENDING ] || echo CANCELLED >"$HERE/state" """,
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which these programs keep what they were asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").write_text("RUNNING")
    (tmp_path / "queue").touch()
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(8)))
    recipe = {
        "name": "lost",
        "task": {"kind": "translate", "segments": {"tokens": 0}},
        "engine": {"kind": "echo"},
        "data": {"path": "rows.jsonl"},
        "run": {"workers": 2, "shard_rows": 2, "steward": False},  # arrays are counted here
        "site": {"executor": "slurm"},
    }
    (tmp_path / "lost.yaml").write_text(json.dumps(recipe))
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(hala, words)


def grid_recipe(slurm: Path) -> None:
    one = json.loads((slurm / "lost.yaml").read_text())
    axes = {"language": {"fr": {"task": {"target": "French"}}, "eu": {"task": {"target": "Basque"}}}}
    (slurm / "many.yaml").write_text(
        json.dumps(one | {"name": "many", "run": {"workers": 1, "steward": False}, "grid": {"axes": axes}})
    )


def pickled(folder: Path, job: str) -> Any:
    """What submitit's task of that name would call."""
    return DelayedSubmission.load(folder / "logs" / f"{job}_submitted.pkl").function


def ledger_of(run: Path, job: str, outcome: str) -> None:
    """The history of a worker that said how it ended."""
    history = Ledger(run / "ledger" / f"n1-{job}.jsonl", host="n1", executor="slurm", job=job)
    history.write("ended", outcome=outcome)
    history.close()


def asked(slurm: Path) -> int:
    return (slurm / "asked").read_text().count("asked") if (slurm / "asked").exists() else 0


def test_an_array_whose_answer_was_lost_is_found_by_its_comment(slurm: Path) -> None:
    done = call("submit", "lost.yaml")
    assert done.exception is None, done.exception
    run = slurm / "runs" / "lost"
    assert record.slurm_jobs(run) == ["7"] and asked(slurm) == 1
    assert sorted(path.name for path in (run / "logs").glob("7_*")) == ["7_0_submitted.pkl", "7_1_submitted.pkl"]
    again = call("resume", "lost")
    assert again.exception is None and asked(slurm) == 1, "both workers exist"


def test_a_submission_without_an_answer_keeps_the_run_and_is_not_made_twice(slurm: Path) -> None:
    (slurm / "drops").touch()
    done = call("submit", "lost.yaml")
    assert isinstance(done.exception, HalaError) and "Socket timed out" in str(done.exception)
    assert "the run is made; hala resume lost" in str(done.exception)
    run = slurm / "runs" / "lost"
    assert len(record.unanswered(run)) == 1
    early = call("resume", "lost")
    assert isinstance(early.exception, HalaError) and "may take them yet" in str(early.exception) and asked(slurm) == 1
    [intent] = record.unanswered(run)
    (slurm / "queue").write_text(f"7|{intent.token}\n")  # now it has come through
    assert call("resume", "lost").exception is None and asked(slurm) == 1
    assert record.slurm_jobs(run) == ["7"]


def test_what_slurm_did_not_take_is_handed_in_again_after_a_while(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (slurm / "drops").touch()
    call("submit", "lost.yaml")
    monkeypatch.setattr(record, "LATE_SECONDS", 0.0)
    (slurm / "drops").unlink()
    assert call("resume", "lost", "--workers", "1").output.startswith("1 worker for 4 missing shards (0 had failed): ")
    assert asked(slurm) == 2


def test_a_silent_slurm_is_said_and_nothing_is_doubled(slurm: Path) -> None:
    call("submit", "lost.yaml")
    (slurm / "silent").touch()
    told = call("status", "lost")
    assert "Slurm does not answer" in told.output and "nobody works on it" not in told.output
    assert json.loads(call("status", "lost", "--json").output)["slurm_answers"] is False
    refused = call("resume", "lost")
    assert isinstance(refused.exception, HalaError) and "Slurm does not answer" in str(refused.exception)
    assert asked(slurm) == 1
    refused = call("cancel", "lost")
    assert isinstance(refused.exception, HalaError) and str(refused.exception).startswith("not cancelled")
    (slurm / "silent").unlink()
    done = json.loads(call("cancel", "lost", "--json").output)
    assert done["arrays"] == ["7"] and done["still"] == 0
    assert "nobody works on it" in call("status", "lost").output
    assert call("cancel", "lost").output.startswith("nobody works on it")


@pytest.mark.parametrize("state", ["REQUEUE_HOLD", "COMPLETING", "STOPPED"])
def test_nobody_works_on_it_is_said_only_where_no_job_can_come_back(slurm: Path, state: str) -> None:
    call("submit", "lost.yaml")
    (slurm / "state").write_text(state)
    assert "nobody works on it" not in call("status", "lost").output
    assert call("resume", "lost").exception is None and asked(slurm) == 1


def test_watching_asks_slurm_once_in_half_a_minute(slurm: Path) -> None:
    from hala_hpc.slurm.queue import QueueView

    call("submit", "lost.yaml")
    watched = QueueView(slurm / "runs" / "lost")
    first = watched.now()
    (slurm / "state").write_text("COMPLETED")
    assert watched.now() is first and ask(slurm / "runs" / "lost").live == 0


def test_ends_that_only_slurm_knows_are_asked_of_accounting_once(slurm: Path) -> None:
    call("submit", "lost.yaml")
    (slurm / "state").write_text("OUT_OF_MEMORY")
    later = int(time.time()) + 5
    (slurm / "sacct.says").write_text(f"7_0|OUT_OF_MEMORY|0:125|{later}\n7_1|OUT_OF_MEMORY|0:125|{later}\n")
    told = call("status", "lost").output
    assert "2 tasks ended by OUT_OF_MEMORY: raise site.slurm.mem_gb" in told
    assert "nobody works on it: hala resume" in told
    assert (slurm / "sacct.asked").read_text().count("--jobs=7\n") == 1, "one question for all tasks"
    assert json.loads(call("status", "lost", "--json").output)["ends"] == {"OUT_OF_MEMORY": 2}
    # Of one whose worker said how it ended, nothing is asked; what ended before workers were last handed in is history.
    ledger_of(slurm / "runs" / "lost", "7_0", "finished")
    assert json.loads(call("status", "lost", "--json").output)["ends"] == {"OUT_OF_MEMORY": 1}
    (slurm / "sacct.says").write_text("7_1|OUT_OF_MEMORY|0:125|1700000000\n")
    assert json.loads(call("status", "lost", "--json").output)["ends"] == {}
    (slurm / "sacct.says").unlink()  # no accounting: as far as the queue remembers
    assert json.loads(call("status", "lost", "--json").output)["ends"] == {"OUT_OF_MEMORY": 1}


def test_a_task_that_outlives_its_run_is_told(slurm: Path) -> None:
    call("submit", "lost.yaml")
    assert work_until(slurm / "runs" / "lost", lambda: False) is Outcome.FINISHED
    (slurm / "state").write_text("REQUEUE_HOLD")
    told = " ".join(call("status", "lost").output.split())
    assert "finished, but 2 tasks still in the queue: hala cancel" in told
    for task in ("7_0", "7_1"):
        ledger_of(slurm / "runs" / "lost", task, "finished")
    (slurm / "silent").touch()
    assert "does not answer" not in call("status", "lost").output, "nobody is left, so nothing is asked"


def test_a_grid_asks_once_for_all_its_cells(slurm: Path) -> None:
    grid_recipe(slurm)
    assert call("submit", "many.yaml").exception is None
    (slurm / "squeue.asked").unlink(missing_ok=True)
    told = call("status", "many").output
    assert "jobs: 2 RUNNING" in told
    assert (slurm / "squeue.asked").read_text().count("--jobs") == 1
    (slurm / "state").write_text("FAILED")
    assert "nobody works on it: hala resume" in call("status", "many").output
    (slurm / "silent").touch()
    assert "Slurm does not answer" in call("status", "many").output
    assert json.loads(call("status", "many", "--json").output)["slurm_answers"] is False


def test_a_grid_whose_answer_was_lost_is_found_by_its_comment(slurm: Path) -> None:
    grid_recipe(slurm)
    assert call("submit", "many.yaml").exception is None
    folder = slurm / "runs" / "many"
    assert record.slurm_jobs(folder) == ["7"] and asked(slurm) == 1
    assert [record.slurm_jobs(folder / cell) for cell in ("fr", "eu")] == [["7_0"], ["7_1"]]
    assert [pickled(folder, f"7_{task}").run for task in range(2)] == [str(folder / cell) for cell in ("fr", "eu")]
    again = call("resume", "many")
    assert "nothing to start" in again.output and asked(slurm) == 1


def test_a_grid_that_came_through_late_is_adopted_by_resume(slurm: Path) -> None:
    grid_recipe(slurm)
    (slurm / "drops").touch()
    assert isinstance(call("submit", "many.yaml").exception, HalaError)
    folder = slurm / "runs" / "many"
    [intent] = record.unanswered(folder)
    assert [Path(run).name for run in intent.runs] == ["fr", "eu"]
    (slurm / "queue").write_text(f"7|{intent.token}\n")
    assert call("resume", "many").exception is None and asked(slurm) == 1
    assert [Path(pickled(folder, f"7_{task}").run).name for task in range(2)] == ["fr", "eu"]


def test_a_grid_with_a_single_run_is_a_job_without_tasks_to_slurm(slurm: Path) -> None:
    grid_recipe(slurm)
    recipe = json.loads((slurm / "many.yaml").read_text())
    del recipe["grid"]["axes"]["language"]["eu"]
    (slurm / "many.yaml").write_text(json.dumps(recipe))
    assert call("submit", "many.yaml").exception is None
    folder = slurm / "runs" / "many"
    assert pickled(folder, "7").run == str(folder / "fr"), "where submitit looks for it in that job"
    for path in (folder, folder / "fr"):
        assert record.slurm_jobs(path) == record.open_tasks(path) == ["7"], path
    ledger_of(folder / "fr", "7", "finished")
    assert not record.open_tasks(folder) and not record.open_tasks(folder / "fr")


def test_a_trainings_two_arrays_whose_answers_were_lost_are_found(slurm: Path) -> None:
    model = save(KINDS["byte level"]([]), slurm / "model")
    (model / "config.json").write_text(json.dumps(CONFIG))
    (slurm / "chat.jsonl").write_text('{"instruction": "Say it.", "output": "word word"}\n' * 8)
    one = json.loads((slurm / "lost.yaml").read_text())
    task = {"kind": "train", "datasets": {"chat": {"path": "chat.jsonl"}}, "batch": {"sequences": 4}}
    recipe = {"name": "sft", "task": task, "model": {"name": str(model)}, "run": {"steward": False}}
    recipe["site"] = one["site"]
    (slurm / "sft.yaml").write_text(json.dumps(recipe))
    done = call("submit", "sft.yaml")
    assert done.exception is None, done.exception
    run = slurm / "runs" / "sft"
    assert record.slurm_jobs(run) == ["7", "8"] and asked(slurm) == 2 and not record.unanswered(run)
    assert "--dependency=afterany:7" in (slurm / "8.sbatch").read_text(), "the launcher waits for what it is"
    assert [pickled(run, job).run for job in ("7", "8")] == [str(run / "prepare" / "chat"), str(run)]
    call("resume", "sft")
    assert asked(slurm) == 2, "both are at work"
    for job in ("7", "8"):  # the launcher finished the preparation, and went on
        ledger_of(run / "prepare" / "chat", job, "finished")
    assert record.open_tasks(run) == ["8"]


def test_requeueing_is_tried_until_it_works(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation.time, "sleep", lambda _: None)
    silent = "echo 'slurm_requeue error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    (slurm / "bin" / "scontrol").write_text(
        f'#!/bin/bash\necho "$*" >>"$HERE/tries"; [ $(wc -l <"$HERE/tries") -ge 4 ] || {{ {silent}; }}\n'
    )
    told: list[str] = []
    allocation.requeue("7_0", told.append)
    assert (slurm / "tries").read_text() == "requeue 7_0\n" * 4 and len(told) == 3


@pytest.mark.parametrize("script", ["translate_array", "train_multinode"])
def test_the_scripts_for_people_requeue_as_workers_do(slurm: Path, script: str) -> None:
    text = (ROOT / "sbatch" / f"{script}.sbatch").read_text()
    function = text[text.index("requeue() {") : text.index("\n}\n") + 3]
    (slurm / "bin" / "scontrol").write_text(
        '#!/bin/bash\necho "$*" >>"$HERE/tries"\n'
        '[ $(wc -l <"$HERE/tries") -lt 3 ] || exit 0\necho "$ANSWER" >&2; exit 1\n'
    )
    ends = []
    for answer in ("Unable to contact slurm controller", "Requested operation is presently disabled"):
        lines = f"sleep() {{ :; }}; run=/r\n{function}\nrequeue 7_0"
        done = subprocess.run(
            ["bash", "-c", lines], env=os.environ | {"ANSWER": answer}, capture_output=True, text=True
        )
        ends.append((done.returncode, done.stderr))
        (slurm / "tries").unlink()
    assert ends[0] == (0, "")
    assert ends[1] == (1, "cannot requeue: Requested operation is presently disabled; hala resume /r\n")


def test_a_worker_that_cannot_requeue_says_so_in_status(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hala_hpc.worker.job import requeue

    call("submit", "lost.yaml")
    (slurm / "bin" / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(slurm / "bin"))
    assert requeue(slurm / "runs" / "lost") is Outcome.STOPPED
    monkeypatch.undo()
    monkeypatch.chdir(slurm)
    assert "cannot requeue: no scontrol here; hala resume lost" in " ".join(call("status", "lost").output.split())


def test_local_workers_are_cancelled_before_they_have_a_ledger_and_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hala_hpc.run import ledger, status
    from hala_hpc.slurm import local

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(400)))
    recipe = {
        "name": "here",
        "task": {"kind": "translate", "segments": {"tokens": 0}},
        "engine": {"kind": "echo", "seconds": 5, "capacity": 1},
        "data": {"path": "rows.jsonl"},
        "run": {"workers": 2, "shard_rows": 50},
        "site": {"slurm": {"gpus_per_worker": 2}},
    }
    (tmp_path / "here.yaml").write_text(json.dumps(recipe))
    pids = set(map(int, json.loads(call("submit", "here.yaml", "--site", "local", "--json").output)["jobs"]))
    run = tmp_path / "runs" / "here"
    assert set(local.live(run)) == pids == local.workers(run)
    assert sorted(number for gpus in local.live(run).values() for number in gpus) == [0, 1, 2, 3]
    assert not status.read(run, 60, 5).workers, "what is submitted is no worker yet"
    again = json.loads(call("resume", "here", "--json").output)
    assert again["workers"] == 0, "both are about to start"
    assert call("cancel", "here").output.startswith("cancelled 0 Slurm arrays and 2 local workers")
    assert not local.live(run)
    assert call("cancel", "here").output.startswith("nobody works on it")
    started = [ledger.first(file) for file in (run / "ledger").glob("*.jsonl")]
    assert sum("host" in one for one in started) <= 2
