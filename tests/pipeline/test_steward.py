"""A steward on this machine: local workers killed, cancelled, failing; two at once; what a site wants at the end."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hala_hpc.cli.main import hala as program
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import ending, standing, steward
from hala_hpc.pipeline.decision import decide
from hala_hpc.run import decisions, lease
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Ledger
from hala_hpc.slurm import local, record
from hala_hpc.worker.job import TOO_SLOW, is_too_slow, work_until
from hala_hpc.worker.task import Outcome
from tests.conftest import Hala
from tests.tasks.mix import mixes


def call(*words: object) -> Result:
    return CliRunner().invoke(program, list(map(str, words)))


@pytest.fixture
def planned(tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Plan a run of six shards, and start nobody."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(60)))

    def plan(name: str = "r", *words: str, **engine: Any) -> Path:
        settings = {"workers": 2, "shard_rows": 10, "lease_seconds": 3, "flush_seconds": 0.2}
        recipe = write_recipe(name, data={"path": "rows.jsonl"}, engine={"kind": "echo"} | engine, run=settings)
        done = call("plan", recipe, "--create", *words)
        assert done.exception is None, done.exception
        return tmp_path / "runs" / name

    return plan


def decided(run: Path) -> list[str]:
    return [str(item.event.get("action")) for item in decisions.read(run) if item.kind == decisions.DECIDED]


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize(("damaged", "action"), [(1, "submit"), (3, "submit"), (4, "stop")])
def test_damaged_outputs_are_done_again_where_they_are_few(
    planned: Callable[..., Path], damaged: int, action: str
) -> None:
    """Of six shards half may be; more were rather written by another code than damaged."""
    run = planned()
    assert work_until(run, lambda: False) is Outcome.FINISHED
    outputs = sorted((run / "shards").glob("*/*.parquet"))
    for output in outputs[:damaged]:
        output.write_bytes(b"")
    reading = ending.read_again(standing.read_runs(run))
    decision = reading.applied(decide(steward.look(run)[1]), run.name)
    assert decision.action == action
    assert sum(output.exists() for output in outputs) == (6 if action == "stop" else 6 - damaged)
    assert ("refused by verify" if action == "stop" else "set aside, to be done again") in decision.reason


def test_an_output_that_is_damaged_again_is_a_persons_business(planned: Callable[..., Path]) -> None:
    """Else it would be done again until all submissions are used up."""
    run = planned()
    for action in ("submit", "stop"):
        assert work_until(run, lambda: False) is Outcome.FINISHED
        output = min((run / "shards").glob("*/*.parquet"))
        output.write_bytes(b"")
        reading = ending.read_again(standing.read_runs(run))
        assert reading.applied(decide(steward.look(run)[1]), run.name).action == action
    assert output.exists()


def test_killed_local_workers_are_replaced_to_the_end(
    planned: Callable[..., Path], hala: Hala, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(seconds=0.4, capacity=6)
    hala("resume", run)
    wait_until(lambda: list((run / "shards" / "000").iterdir()))
    for pid in sorted(local.workers(run)):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    actions = [decision.action for decision in steward.tend(run, watch=0.5)]
    assert actions[-1] == "done" and "submit" in actions
    assert hala("verify", run).stdout
    assert decided(run) == actions, "each is a line of the ledger"
    said = hala("steward", run, "--json").stdout
    assert json.loads(said)["action"] == "done" and decided(run) == actions, "nothing new, nothing noted"
    assert "done: finished" in hala("status", run).stdout.replace("\n", " ")
    assert "steward: " in hala("logs", run).stdout
    assert json.loads(hala("status", run, "--json").stdout)["steward"]["decided"]["action"] == "done"


def test_what_always_fails_stops_with_the_reason(planned: Callable[..., Path], hala: Hala, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    run = planned(broken=str(tmp_path / "broken"))
    dry = hala("steward", run, "--dry-run").stdout
    assert "submit: 6 shards missing" in dry and not decisions.read(run)
    actions = list(steward.tend(run, watch=0.5))
    assert [decision.action for decision in actions if decision.action != "wait"] == ["submit", "submit", "stop"]
    assert "got nothing done" in actions[-1].reason and "the engine does not start" in actions[-1].reason
    assert hala("steward", run, code=1).stdout.startswith("stop: 2 submissions in a row got nothing done")
    (tmp_path / "broken").unlink()  # a person looked
    hala("resume", run)
    assert list(steward.tend(run, watch=0.5))[-1].action == "done"


def test_a_cancelled_run_stays_so_until_a_person_resumes_it(planned: Callable[..., Path], hala: Hala) -> None:
    run = planned(seconds=0.4, capacity=3)
    hala("resume", run)
    wait_until(lambda: local.workers(run))
    hala("cancel", run)
    assert hala("steward", run, code=1).stdout.startswith("stop: a person cancelled it (hala resume r)")
    assert not local.workers(run)
    hala("resume", run, "run.workers=1")
    look = hala("steward", run, "--dry-run", "--json")
    assert json.loads(look.stdout)["action"] == "wait"
    hala("cancel", run)


def test_two_stewards_and_a_person_at_once_start_workers_once(planned: Callable[..., Path], hala: Hala) -> None:
    run = planned(seconds=0.4, capacity=3)
    words = (("steward", run), ("steward", run), ("resume", run))
    threads = [threading.Thread(target=hala, args=command) for command in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(entry.workers for entry in record.submitted(run)) == 2
    assert sum(item.kind == decisions.STARTING for item in decisions.read(run)) == 1
    hala("cancel", run)


def test_whoever_starts_workers_holds_a_lease_that_the_dead_lose(planned: Callable[..., Path]) -> None:
    run = planned()
    with steward.alone(run) as is_ours:
        assert is_ours()
        with pytest.raises(HalaError, match="another starts or cancels"), steward.alone(run, patience=0.5):
            pass
    with steward.alone(run, patience=0.0) as is_ours:
        assert is_ours(), "it was given back"
    dead = lease.Leases(RunDirectory(run), "dead", 3, 1)
    assert dead.claim_alone(lease.START) is not None  # and no heartbeat follows
    began = time.monotonic()
    with steward.alone(run, patience=30) as is_ours:
        assert is_ours() and time.monotonic() - began > 2
    assert not list((run / "leases" / lease.START).iterdir())


def test_the_sites_program_is_started_once_without_a_shell(planned: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "tell.sh"
    script.write_text('#!/bin/sh\necho "$HALA_OUTCOME|$HALA_RUN|$HALA_REASON|$1|$#" >>"$2"\n')
    script.chmod(0o755)
    words = f'site.at_end=["{script}","a b; touch x","{tmp_path}/told"]'
    run = planned("r", words)
    assert list(steward.tend(run, watch=0.5))[-1].action == "done"
    steward.once(run)
    assert (tmp_path / "told").read_text() == (
        f"finished|{run}|finished: all shards, and the last step|a b; touch x|2\n"
    )
    assert not (tmp_path / "x").exists()
    failing = planned("f", 'site.at_end=["/bin/sh","-c","echo no network >&2; exit 3"]', "site.mail=me@example.org")
    assert list(steward.tend(failing, watch=0.5))[-1].action == "done"
    [end] = [item.event for item in decisions.read(failing) if item.kind == decisions.AT_END]
    assert "ended with 3: no network" in end["error"] and "without Slurm nobody writes it" in end["error"]


def test_the_last_step_alone_is_handed_in_too(tmp_path: Path) -> None:
    run = mixes.finished(mixes.plan(tmp_path, {"all": {"rows": mixes.chats(9)}}))
    assert steward.look(run)[2].action == "done"
    (run / "final").rename(tmp_path / "final")
    assert steward.look(run)[2].reason.startswith("1 shard missing")
    assert list(steward.tend(run, watch=0.5))[-1].action == "done" and (run / "final").is_dir()


def test_a_worker_that_only_loads_its_model_is_not_put_back_for_ever(
    planned: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned("r", "site.slurm.minutes=1", "site.slurm.signal_seconds=30")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)

    def life(name: str, rows: int, **more: int) -> None:
        history = Ledger(run / "ledger" / f"{name}.jsonl", host="n1", executor="slurm", job="7", **more)
        history.write("progress", rows=rows, output_tokens=0)
        history.write("ended", outcome="stopped")
        history.close()

    life("a", 0)
    assert not is_too_slow(run)
    life("b", 0)
    assert is_too_slow(run) and TOO_SLOW
    life("c", 3)
    assert not is_too_slow(run)
    life("d", 0)
    life("e", 0, life=2)
    assert not is_too_slow(run), "two workers, but the time of one job: the one before got something done"
    life("f", 0)
    assert is_too_slow(run)


def test_a_run_of_before_there_were_stewards_goes_on(planned: Callable[..., Path]) -> None:
    run = planned()
    text = (run / "recipe.yaml").read_text()
    new = ("steward", "submissions", "days", "jobs_submit", "at_end", "mail")
    kept = [line for line in text.splitlines() if not line.strip().startswith(tuple(f"{key}:" for key in new))]
    assert len(kept) == len(text.splitlines()) - len(new)
    (run / "recipe.yaml").write_text("\n".join(kept) + "\n")
    assert list(steward.tend(run, watch=0.5))[-1].action == "done"
