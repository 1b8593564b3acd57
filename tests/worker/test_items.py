"""The loop for items: which comes next, what a failure, a stop and a kill cost, and who puts the whole together."""

import itertools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.engines.base import NoEngine
from hala_hpc.run import ledger, status
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Heartbeat, Leases
from hala_hpc.run.manifest import Manifest
from hala_hpc.run.verify import verify
from hala_hpc.worker import items, storage
from hala_hpc.worker.storage import StorageAway
from hala_hpc.worker.task import Outcome
from tests.conftest import ROOT
from tests.worker.letters import ATTEMPTS, TTL, Letters, planned, work


def letters(*names: str, **more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "source": name[0]} | more.get(name, {}) for name in names]


def state(run: Path) -> status.Status:
    return status.read(run, TTL, ATTEMPTS)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [event for file in (run / "ledger").glob("*.jsonl") for event in ledger.read(file)]
    return [event for event in found if event["event"] == kind]


def test_items_of_a_source_come_after_each_other(tmp_path: Path) -> None:
    run, task = planned(tmp_path / "run", letters("a1", "b1", "a2", "b2", "c1", "a3")), Letters()
    assert work(run, "one", task) is Outcome.FINISHED
    sources = [name[0] for name in task.done]
    assert len(task.done) == 6 and sum(x != y for x, y in itertools.pairwise(sources)) == 2
    assert task.opened == 1, "what is loaded is the task's business"
    assert (run / "final" / "letters").read_text() == "a1b1a2b2c1a3"
    assert verify(run, task.checker(None)).proven  # type: ignore[arg-type]
    assert not list((run / "partial" / "000").iterdir()) and not list((run / "leases" / "000").iterdir())
    assert [event["steps"] for event in events(run, "published")] == [4] * 6


def test_one_that_fails_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters("a", "b", "c", b={"fails": True}))
    assert work(run, "one", Letters()) is Outcome.FINISHED
    seen = state(run)
    assert (seen.done, seen.failed) == (2, 1), "tried as often as the recipe says, then set aside"
    assert len(events(run, "failed")) == ATTEMPTS
    assert not (run / "final").exists()


def test_a_worker_that_can_do_none_leaves_them_to_others(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters(*"abcde", **{name: {"fails": True} for name in "abcde"}))
    with pytest.raises(HalaError, match=r"3 items in a row failed.*never works"):
        work(run, "one", Letters())
    assert state(run).waiting == 5


def test_one_that_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    run, task = planned(tmp_path / "run", letters("a", "b", a={"refused": True})), Letters()
    assert work(run, "one", task) is Outcome.FINISHED
    assert (state(run).failed, task.done) == (1, ["b"])
    assert len(events(run, "failed")) == 1
    assert status.retry_failed(run, ATTEMPTS) == 1, "`hala resume` takes it up again"


def test_what_a_file_server_withholds_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "FIRST_PAUSE", 0.05)
    run, task = planned(tmp_path / "run", letters("a", a={"away": ATTEMPTS - 1})), Letters()
    assert work(run, "one", task) is Outcome.FINISHED
    assert (state(run).failed, task.done) == (0, ["a"])
    assert [event["attempt"] for event in events(run, "claimed")] == list(range(1, ATTEMPTS + 1))


def test_a_source_that_is_not_there_is_no_refusal_of_the_item(tmp_path: Path) -> None:
    source = str(tmp_path / "model")
    assert items._is_away(HalaError("no model here"), source)
    (tmp_path / "model").mkdir()
    assert not items._is_away(HalaError("no model here"), source)
    assert not items._is_away(HalaError("no such letter"), "ORG/MODEL")


def test_a_place_without_an_engine_counts_against_no_item(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters("a", a={"no_engine": True}))
    for name in ("one", "two"):
        with pytest.raises(NoEngine):
            work(run, name, Letters())
    assert (state(run).failed, state(run).waiting) == (0, 1)
    assert [event["attempt"] for event in events(run, "claimed")] == [1, 1]


def test_a_last_step_that_fails_is_told_and_the_next_worker_tries_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Letters):
        def finish(self, run: RunDirectory, plan: Manifest) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.5)
    run = planned(tmp_path / "run", letters("a", "b"))
    with pytest.raises(HalaError, match=r"all items are done, .*no space left on device.*hala resume run") as caught:
        work(run, "one", Full())
    assert isinstance(caught.value, StorageAway)
    assert state(run).done == 2 and not (run / "final").exists()
    assert work(run, "two", Letters()) is Outcome.FINISHED
    assert (run / "final" / "letters").read_text() == "ab"


def test_a_last_step_is_left_to_the_worker_that_is_at_it(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters("a", "b"))
    other = Leases(RunDirectory(run, ""), "other", TTL, ATTEMPTS)
    assert other.claim_alone() is not None and other.claim_alone() is None
    with Heartbeat(other, lambda: None):
        assert work(run, "one", Letters()) is Outcome.FINISHED
    assert state(run).done == 2 and not (run / "final").exists()


def test_a_last_step_is_taken_over_from_a_worker_that_is_silent(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters("a", "b"))
    assert Leases(RunDirectory(run, ""), "dead", TTL, ATTEMPTS).claim_alone() is not None
    (run / ".final.0123456789ab.tmp").mkdir()
    assert work(run, "one", Letters()) is Outcome.FINISHED
    assert (run / "final" / "letters").read_text() == "ab"
    assert not list(run.glob(".final*")) and not list(run.glob("leases/last/*"))


def test_a_stop_keeps_what_was_done_of_an_item(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters("a", a={"slow": 0.3}))
    kept, stop = run / "partial" / "000" / "000000.kept", threading.Event()

    def should_stop() -> bool:
        if (kept / "1").exists():
            stop.set()
        return stop.is_set()

    assert work(run, "one", Letters(), should_stop) is Outcome.STOPPED
    assert sorted(path.name for path in kept.iterdir()) == ["0", "1"]
    seen = state(run)
    assert (seen.waiting, seen.failed) == (1, 0)
    assert work(run, "two", Letters()) is Outcome.FINISHED
    assert len(events(run, "progress")) < 2 + 2 + 5, "two steps were not done again"
    assert [event["attempt"] for event in events(run, "claimed")] == [1, 1], "a stop counts against nobody"


def test_a_killed_worker_costs_the_step_it_was_at(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters("a", "b", a={"killed": 2}))
    command = [sys.executable, "-m", "tests.worker.letters", run]
    assert subprocess.run([*command, "one"], cwd=ROOT, check=False).returncode == -9
    assert not (run / "final").exists()
    task = Letters()
    assert work(run, "two", task) is Outcome.FINISHED
    assert "a" in task.done and (run / "final" / "letters").read_text() == "ab"
    attempts = {(event["shard"], event["attempt"]) for event in events(run, "claimed")}
    assert (0, 2) in attempts, "taken over when the lease was stale"


def test_many_workers_put_the_whole_together_once(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", letters(*"abcdefghijkl", a={"slow": 0.1}))
    command = [sys.executable, "-m", "tests.worker.letters", run]
    workers = [subprocess.Popen([*command, f"w{number}"], cwd=ROOT) for number in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert (run / "final" / "letters").read_text() == "abcdefghijkl"
    assert len(events(run, "published")) == 12
