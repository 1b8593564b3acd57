"""A steward and a Slurm that does not answer, refuses or is late: acted out by small programs in front of PATH."""

import json
import time
from pathlib import Path

import pytest

from hala_hpc.pipeline import standing, steward
from hala_hpc.run import decisions
from hala_hpc.run.ledger import Ledger
from hala_hpc.slurm import commands, record
from tests.slurm.test_lost import asked, call, pickled
from tests.slurm.test_lost import slurm as slurm

TAKES = """echo asked >>"$HERE/asked"; job=$((6 + $(wc -l <"$HERE/asked"))); cp "$1" "$HERE/$job.sbatch"
if [ -e "$HERE/refuses" ] && grep -q -- "$(cat "$HERE/refuses")" "$1"; then
    echo "sbatch: error: $(cat "$HERE/words")" >&2; exit 1
fi
sed -n "s/^#SBATCH --comment=/$job|/p" "$1" | tr -d "'" >>"$HERE/queue"; echo "Submitted batch job $job" """


@pytest.fixture
def run(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two workers whose jobs 8 (they) and 7 (the steward) Slurm has taken; nobody works yet."""
    (slurm / "bin" / "sbatch").write_text(f"#!/bin/bash\n{TAKES}\n")
    recipe = json.loads((slurm / "lost.yaml").read_text())
    recipe["run"] |= {"steward": True, "lease_seconds": 0.2}
    recipe["site"]["slurm"] = {"mem_gb": 8, "minutes": 20}
    (slurm / "lost.yaml").write_text(json.dumps(recipe))
    done = call("submit", "lost.yaml")
    assert done.exception is None, done.exception
    assert "a steward follows them" in done.output and asked(slurm) == 2
    monkeypatch.setattr(standing, "LATE_SECONDS", ())
    return slurm / "runs" / "lost"


def ended(slurm: Path, state: str, task_states: str = "") -> None:
    """All tasks have ended so, by squeue; by sacct where ``task_states`` says more."""
    (slurm / "state").write_text(state)
    later = int(time.time()) + 5
    lines = [f"8_{task}|{task_states}|{later}" for task in range(2)] if task_states else []
    (slurm / "sacct.says").write_text("\n".join(lines) + "\n")


def told(slurm: Path) -> list[str]:
    """What Slurm was asked to change, oldest first."""
    return (slurm / "told").read_text().splitlines()


def test_the_steward_is_a_small_job_handed_in_first_and_then_told_what_to_wait_for(slurm: Path, run: Path) -> None:
    text = (slurm / "7.sbatch").read_text()
    for line in ("--begin=now+120", "--job-name=hala-lost-steward", "--cpus-per-task=1", "--time=30"):
        assert line in text, text
    assert "--requeue" in text and "--gres" not in text and "--mem" not in text
    assert told(slurm) == ["update JobId=7 StartTime=now Dependency=afterany:8_0?afterany:8_1"], "four shards for two"
    assert pickled(run, "7") == steward.Steward(str(run))
    assert record.slurm_jobs(run) == ["8"] and record.steward_jobs(run) == ["7"]
    shown = json.loads(call("status", "lost", "--json").output)
    assert shown["jobs"] == {"RUNNING": 2} and shown["steward"]["jobs"] == {"7": "RUNNING"}


def test_while_workers_live_another_steward_waits_for_them(slurm: Path, run: Path) -> None:
    decision, is_new = steward.once(run)
    assert decision.action == "wait" and decision.after == ("8",) and is_new
    assert decision.watched == ("8_0", "8_1") and decision.seconds == 0
    assert steward.once(run) == (decision, False), "the same is noted once"
    (slurm / "state").write_text("PENDING")
    assert steward.follow(run, decision) == "7", "one is in the queue already"
    (slurm / "state").write_text("RUNNING")  # as the steward itself is by then
    assert steward.follow(run, decision) == "9" and "--begin=now+120" in (slurm / "9.sbatch").read_text()
    assert told(slurm)[-1] == "update JobId=9 StartTime=now Dependency=afterany:8_0?afterany:8_1"


def test_a_steward_has_a_successor_before_it_looks_and_none_after_the_end(slurm: Path, run: Path) -> None:
    assert steward.guard(run) == "" and asked(slurm) == 3
    (slurm / "state").write_text("PENDING")
    assert steward.guard(run) == "" and asked(slurm) == 3, "one is enough"
    call("cancel", "lost")
    (slurm / "state").write_text("PENDING")
    assert steward.once(run)[0].action == "stop"
    assert (slurm / "cancelled").read_text().splitlines()[-1] == "--state=PENDING 7 9"


def test_a_worker_that_is_gone_is_replaced_while_others_work(slurm: Path, run: Path) -> None:
    """By one, once; each time the next look is later. Whom a person cancelled stays away."""
    squeue = slurm / "bin" / "squeue"
    text = squeue.read_text()

    def lose(*tasks: str) -> None:
        """And job 10 has a single task."""
        words = [f"s/^{task}|[A-Z]*/{task}|NODE_FAIL/" for task in tasks]
        changes = ";".join((*words, "s/^10_0|/10|/", "/^10_1|/d"))
        squeue.write_text(f"{text.rstrip()} | sed '{changes}'\n")

    lose("8_0")
    decision, _ = steward.once(run)
    assert decision.action == "submit" and decision.instead_of == ("8_0",), decision
    assert "4 shards missing, 1 worker gone while others work" in decision.reason
    assert "array" not in (slurm / "10.sbatch").read_text(), "one worker"
    assert told(slurm)[-1] == "update JobId=9 StartTime=now+60 Dependency=afterany:10?afterany:8_1"
    decision, _ = steward.once(run)
    assert decision.action == "wait" and decision.seconds == 60, "it is replaced once"
    (slurm / "sacct.says").write_text(f"8_1|CANCELLED by 0|0:0|{int(time.time())}\n")
    lose("8_0", "8_1")
    assert steward.once(run)[0].action == "wait"
    (slurm / "sacct.says").write_text("")
    decision, _ = steward.once(run)
    assert decision.action == "submit" and decision.instead_of == ("8_1",) and decision.seconds == 120


def test_resume_hands_in_a_steward_where_workers_have_none(slurm: Path, run: Path) -> None:
    """As where the steward was refused."""
    for file in (run / "ledger").glob("steward-*.jsonl"):
        if "intended" in file.read_text():
            file.unlink()
    [_, workers] = (slurm / "queue").read_text().splitlines()
    (slurm / "queue").write_text(f"{workers}\n")
    (slurm / "state").write_text("PENDING")
    assert "a steward follows them, and hands in what is missing then (slurm 9)" in call("resume", "lost").output
    assert told(slurm)[-1] == "update JobId=9 StartTime=now Dependency=afterany:8_0?afterany:8_1"
    assert "slurm 9" in call("resume", "lost").output and asked(slurm) == 3, "it is in the queue already"


def test_a_silent_slurm_is_waited_for_and_nothing_is_handed_in(slurm: Path, run: Path) -> None:
    (slurm / "silent").touch()
    decision, _ = steward.once(run)
    assert decision.action == "wait" and "Slurm does not answer" in decision.reason and asked(slurm) == 2


def test_more_memory_after_a_memory_kill_is_on_record_and_asked_for(slurm: Path, run: Path) -> None:
    ended(slurm, "OUT_OF_MEMORY", "OUT_OF_MEMORY|0:125")
    decision, _ = steward.once(run)
    assert decision.action == "submit" and decision.changes == ("site.slurm.mem_gb=12",), decision
    assert "--mem=12288M" in (slurm / "10.sbatch").read_text()
    assert told(slurm)[-1] == "update JobId=9 StartTime=now Dependency=afterany:10_0?afterany:10_1", "the next steward"
    said = call("status", "lost").output
    assert "site.slurm.mem_gb=12.0 (was 8" in said and "submit: 4 shards missing" in " ".join(said.split())
    assert "[site.slurm.mem_gb=12], job 10" in call("logs", "lost").output


def test_memory_that_slurm_refuses_stops_a_run_that_gets_nothing_done(slurm: Path, run: Path) -> None:
    ended(slurm, "OUT_OF_MEMORY", "OUT_OF_MEMORY|0:125")
    (slurm / "refuses").write_text("mem=12288M")
    (slurm / "words").write_text("Memory specification can not be satisfied")
    decision, _ = steward.once(run)
    assert decision.action == "stop" and "Memory specification can not be satisfied" in decision.reason
    assert json.loads(call("status", "lost", "--json").output)["changed"] == {}, "what was refused is taken back"
    history = Ledger(run / "ledger" / "n1-8_0.jsonl", host="n1", executor="slurm", job="8_0")
    history.write("progress", rows=1, working_on={"0": 1}, output_tokens=0)
    history.close()
    decision, _ = steward.once(run)
    assert decision.action == "submit" and decision.changes == () and "so as before" in decision.reason


def test_a_full_queue_is_waited_for(slurm: Path, run: Path) -> None:
    ended(slurm, "NODE_FAIL", "NODE_FAIL|0:0")
    (slurm / "refuses").write_text("job-name=hala-lost$")
    (slurm / "words").write_text(
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    )
    for _ in range(3):
        decision, _ = steward.once(run)
        assert decision.action == "wait" and "Slurm takes no more jobs for now" in decision.reason, decision
    (slurm / "refuses").unlink()
    assert steward.once(run)[0].action == "submit", "what was refused is no submission that got nothing done"


def test_all_tasks_cancelled_by_a_person_or_by_one_of_them(slurm: Path, run: Path) -> None:
    ended(slurm, "CANCELLED", "CANCELLED by 0|0:0")
    assert steward.look(run)[2].reason == "root cancelled all of its jobs with scancel"
    later = int(time.time()) + 5
    (slurm / "sacct.says").write_text(f"8_0|CANCELLED by 0|0:0|{later}\n8_1|FAILED|1:0|{later}\n")
    assert steward.look(run)[2].action == "submit"
    (slurm / "sacct.says").unlink()  # without accounting the queue says that much
    assert steward.look(run)[2].reason == "somebody cancelled all of its jobs with scancel"


def test_a_worker_of_a_dead_job_is_not_waited_for_however_fresh_its_heartbeat(slurm: Path, run: Path) -> None:
    beacon = run / "leases" / "workers" / "n1-8_0"
    history = Ledger(run / "ledger" / "n1-8_0.jsonl", host="n1", executor="slurm", job="8_0")
    history.close()
    beacon.touch()
    ended(slurm, "NODE_FAIL", "NODE_FAIL|0:0")
    assert standing.situation(standing.read_runs(run)).busy == 0
    by_hand = Ledger(run / "ledger" / "shell.jsonl", host="login", executor="", job="")
    by_hand.close()
    (run / "leases" / "workers" / "shell").touch()
    assert standing.situation(standing.read_runs(run)).busy == 1


def test_cancel_ends_the_steward_and_what_it_would_do(slurm: Path, run: Path) -> None:
    done = json.loads(call("cancel", "lost", "--json").output)
    assert done["arrays"] == ["8"] and (slurm / "cancelled").read_text() == "7 8\n"
    decision, _ = steward.once(run)
    assert decision.action == "stop" and decision.reason == "a person cancelled it" and asked(slurm) == 2
    assert [item.kind for item in decisions.read(run)] == ["starting", "cancelled", "decided"]


REFUSES = "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2; exit 1"


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "refused"])
def test_what_slurm_did_not_cancel_is_not_on_record_as_cancelled(slurm: Path, run: Path, is_silent: bool) -> None:
    """Its workers go on, so the steward after them must, too."""
    scancel = (slurm / "bin" / "scancel").read_text()
    if is_silent:
        (slurm / "silent").touch()
    else:
        (slurm / "bin" / "scancel").write_text(f"#!/bin/bash\n{REFUSES}\n")
    refused = call("cancel", "lost")
    assert refused.exit_code != 0 and str(refused.exception).startswith("not cancelled: "), refused.exception
    assert [item.kind for item in decisions.read(run)] == ["starting"]
    (slurm / "silent").unlink(missing_ok=True)
    ended(slurm, "NODE_FAIL", "NODE_FAIL|0:0")
    decision, _ = steward.once(run)
    assert decision.action == "submit", decision
    (slurm / "bin" / "scancel").write_text(scancel)
    (slurm / "state").write_text("RUNNING")
    assert call("cancel", "lost").exception is None
    assert steward.look(run)[2].reason == "a person cancelled it"


def test_what_slurm_took_is_cancelled_though_it_says_nothing_after_that(slurm: Path, run: Path) -> None:
    (slurm / "bin" / "scancel").write_text('#!/bin/bash\ntouch "$HERE/silent"\n')
    done = call("cancel", "lost")
    assert done.exception is None, done.exception
    assert "cancelled 1 Slurm array" in done.output and "does not say yet whether they ended" in done.output
    assert decisions.is_cancelled(decisions.read(run))


def test_caps_count_from_the_last_time_that_a_person_started_workers(slurm: Path, run: Path) -> None:
    ended(slurm, "NODE_FAIL", "NODE_FAIL|0:0")
    call("resume", "lost", "run.submissions=1")
    for number, action in ((1, "submit"), (2, "stop")):
        history = Ledger(run / "ledger" / f"n1-{number}.jsonl", host="n1", executor="slurm", job=f"{number}_0")
        history.write("progress", rows=number, working_on={"0": number}, output_tokens=0)
        history.close()
        decision, _ = steward.once(run)
        assert decision.action == action, decision
    assert "1 submission without a person (run.submissions)" in decision.reason


@pytest.mark.parametrize(
    ("text", "minutes"), [("2-00:30:00", 2910), ("01:00:00", 60), ("UNLIMITED", None), ("", None), ("INFINITE", None)]
)
def test_time_limits_of_partitions(text: str, minutes: int | None) -> None:
    assert commands.parse_minutes(text) == minutes
