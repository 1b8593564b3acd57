"""Leases: who gets a shard, who keeps it, who takes it over."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from hala_hpc.run import status
from hala_hpc.run.finder import Finder
from hala_hpc.run.lease import Heartbeat, Leases
from tests.run.helpers import TTL, bare_run, output, planned_run, silent, worker

fork = multiprocessing.get_context("fork")


def test_a_shard_is_claimed_once(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    lease = ada.claim(0)
    assert lease is not None
    assert ada.holds(lease)
    assert bo.claim(0) is None
    assert not bo.holds(lease)


def test_of_many_processes_one_gets_each_shard(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 50)
    everybody = fork.Barrier(4)
    won = fork.SimpleQueue()

    def compete(name: str) -> None:
        leases = worker(run, name)
        for shard in range(50):
            everybody.wait(30)
            if leases.claim(shard):
                won.put(shard)

    processes = [fork.Process(target=compete, args=(f"w{number}",)) for number in range(4)]
    for process in processes:
        process.start()
    claimed = [won.get() for _ in range(50)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert won.empty()
    assert sorted(claimed) == list(range(50))


def test_a_finished_shard_is_not_claimed(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    output(run, 0)
    assert worker(run, "ada").claim(0) is None
    assert list(run.lease_folder(0).iterdir()) == []


def test_a_released_shard_is_fresh_again(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    lease = ada.claim(0)
    assert lease is not None
    ada.release(lease)
    ada.release(lease)  # twice does no harm
    again = Finder(bo, 1, "x").next()
    assert again is not None
    assert again.attempt == 1
    ada.release(lease)  # not hers any more
    ada.fail(lease)
    assert bo.holds(again)


def test_a_failed_shard_counts_its_attempts_and_is_set_aside(tmp_path: Path) -> None:
    run = planned_run(tmp_path, [1])
    ada = worker(run, "ada", attempts=3)
    finder = Finder(ada, 1, "x")
    for attempt in (1, 2, 3):
        lease = finder.next()
        assert lease is not None
        assert lease.attempt == attempt
        ada.fail(lease)
        assert not ada.holds(lease)
    assert finder.next() is None
    assert finder.wait_for() is None
    assert Finder(worker(run, "bo", attempts=3), 1, "y").next() is None

    assert status.retry_failed(tmp_path, attempts=3) == 1
    lease = finder.next()
    assert lease is not None
    assert lease.attempt == 1
    assert status.retry_failed(tmp_path, attempts=3) == 0


def test_a_retry_leaves_a_last_attempt_that_lives(tmp_path: Path) -> None:
    run = planned_run(tmp_path, [1])
    ada = worker(run, "ada", attempts=1)
    lease = ada.claim(0)
    assert lease is not None
    assert status.retry_failed(tmp_path, attempts=1, ttl=TTL) == 0
    assert ada.holds(lease)
    silent(ada)
    assert status.retry_failed(tmp_path, attempts=1, ttl=TTL) == 1
    assert not ada.holds(lease)


def test_an_attempt_that_failed_since_the_listing_is_not_made_twice(tmp_path: Path) -> None:
    """A worker lists a folder once and works through it for hours; a poisoned shard must not start over with each."""
    run = bare_run(tmp_path, 2)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    late = Finder(bo, 2, "x")
    first = late.next()  # bo has listed both as fresh
    assert first is not None
    other = 1 - first.shard
    lease = ada.claim(other)
    assert lease is not None
    ada.fail(lease)
    second = late.next()
    assert second is not None
    assert (second.shard, second.attempt) == (other, 2)


def test_attempts_count_anew_once_a_shard_got_further(tmp_path: Path) -> None:
    """A training that outlives many dead nodes is not set aside, as long as it gets on between them."""
    run = planned_run(tmp_path, [1])
    for number in range(10):
        leases = worker(run, f"w{number}")
        lease = Finder(leases, 1, seed="").next()
        assert lease is not None and lease.attempt == min(number + 1, 2)
        renewed = leases.renew(lease)
        assert renewed.attempt == 1 and leases.holds(renewed) and leases.renew(renewed) == renewed
        assert [path.name for path in run.lease_folder(0).iterdir()] == ["000000.1"]
        assert Finder(worker(run, f"other{number}"), 1, seed="").next() is None
        silent(leases)


def test_a_renewal_whose_answer_was_lost_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned_run(tmp_path, [1])
    first, second = worker(run, "ada"), worker(run, "bo")
    first.claim(0, 1)
    lease = second.claim(0, 2)
    assert lease is not None
    unlink = Path.unlink

    def done_and_lost(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path == lease.path:
            raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", done_and_lost)
        with pytest.raises(TimeoutError):
            second.renew(lease)
    renewed = second.renew(lease)
    assert renewed.attempt == 1 and second.holds(renewed)
    assert [path.name for path in run.lease_folder(0).iterdir()] == ["000000.1"]


def test_a_lease_that_was_lost_is_not_renewed(tmp_path: Path) -> None:
    run = planned_run(tmp_path, [1])
    first, second, third = (worker(run, name) for name in ("ada", "bo", "cy"))
    assert first.claim(0, 1) and (lease := second.claim(0, 2)) and third.claim(0, 3)
    assert second.renew(lease) == lease and not second.holds(lease)
    assert sorted(path.name for path in run.lease_folder(0).iterdir()) == ["000000.1", "000000.2", "000000.3"]


def test_a_silent_worker_loses_its_shard_and_learns_of_it(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    ada, bo, cy = (worker(run, name) for name in ("ada", "bo", "cy"))
    lease = ada.claim(0)
    assert lease is not None
    silent(ada, TTL * 0.9)
    assert Finder(bo, 1, "x").next() is None
    silent(ada, TTL * 1.1)
    taken = Finder(bo, 1, "x").next()
    assert taken is not None
    assert taken.attempt == 2
    assert bo.holds(taken)
    assert not ada.holds(lease)
    assert Finder(cy, 1, "x").next() is None
    ada.now()  # she wakes up, which does not bring it back
    assert not ada.holds(lease)
    bo.fail(taken)  # nor does it that the other failed
    assert not ada.holds(lease)
    assert (third := Finder(cy, 1, "x").next()) is not None
    assert third.attempt == 3
    assert not ada.holds(lease)


def test_a_heartbeat_keeps_a_lease_for_as_long_as_it_beats(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    beats: list[float] = []
    ada, bo = Leases(run, "ada", 0.6, 3), Leases(run, "bo", 0.6, 3)
    lease = ada.claim(0)
    assert lease is not None
    with Heartbeat(bo, lambda: None):
        with Heartbeat(ada, lambda: beats.append(time.monotonic())):
            time.sleep(1.5)
            assert Finder(bo, 1, "x").next() is None
            assert ada.holds(lease)
        assert len(beats) >= 3
        time.sleep(0.9)
        assert Finder(bo, 1, "x").next() is not None


def test_who_had_no_heartbeat_itself_lets_others_have_one_before_it_judges_them(tmp_path: Path) -> None:
    """A file server that hangs keeps everybody from it: when it is back, all leases look stale."""
    run = bare_run(tmp_path, 1)
    ada, bo = Leases(run, "ada", 0.6, 3), Leases(run, "bo", 0.6, 3)
    bo.now()
    assert ada.claim(0) is not None
    time.sleep(0.7)  # neither can touch anything
    finder = Finder(bo, 1, "x")
    assert finder.next() is None
    ada.now()
    with Heartbeat(bo, lambda: None):
        time.sleep(0.3)
        assert finder.next() is None
        time.sleep(0.7)
        lease = finder.next()
    assert lease is not None and lease.attempt == 2
    assert not ada.holds(lease)


def test_fresh_shards_come_before_those_of_the_dead_and_the_failed(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 4)
    ada, bo, cy = (worker(run, name) for name in ("ada", "bo", "cy"))
    assert ada.claim(0)
    silent(ada)
    failed = bo.claim(1)
    assert failed is not None
    bo.fail(failed)
    finder = Finder(cy, 4, "x")
    found = [finder.next() for _ in range(5)]
    assert [(one.shard, one.attempt) if one else None for one in found[2:]] == [(0, 2), (1, 2), None]
    assert {(one.shard, one.attempt) for one in found[:2] if one} == {(2, 1), (3, 1)}


def test_every_shard_is_found_across_folders(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 2_001)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    finders = [Finder(ada, 2_001, "ada"), Finder(bo, 2_001, "bo")]
    found = [lease.shard for _ in range(1_001) for finder in finders if (lease := finder.next())]
    assert sorted(found) == list(range(2_001))


def test_a_worker_without_work_waits_for_signs_of_life(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 2)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    finder = Finder(bo, 2, "x")
    assert finder.wait_for() is None
    assert ada.claim(0)
    silent(ada, 1)
    assert finder.wait_for() == pytest.approx(TTL, abs=5)  # she may have died this moment
    ada.now()
    assert finder.wait_for() is None  # she is alive
    silent(ada, TTL * 0.75)
    seconds = finder.wait_for()
    assert seconds == pytest.approx(TTL * 0.25, abs=5)
    silent(ada)
    assert finder.wait_for() == 0.0
    output(run, 0)
    assert finder.wait_for() is None  # finished by her before she fell silent


@pytest.mark.parametrize("wrong", [0.0, 4e9])
def test_ages_do_not_depend_on_this_hosts_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    run = planned_run(tmp_path, [1, 1])
    ada, bo, cy = (worker(run, name) for name in ("ada", "bo", "cy"))
    assert ada.claim(0)
    assert bo.claim(1)
    silent(bo)
    monkeypatch.setattr(time, "time", lambda: wrong)
    finder = Finder(cy, 2, "x")
    taken = finder.next()
    assert taken is not None
    assert (taken.shard, taken.attempt) == (1, 2)
    assert finder.next() is None
    assert status.read(tmp_path, TTL, 3).running == 2


def test_clearing_removes_everybodys_leases_of_that_shard_only(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 2)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    assert ada.claim(0)
    assert (kept := ada.claim(1)) is not None
    silent(ada)
    assert bo.claim(0, attempt=2)
    bo.clear(0)
    assert [path.name for path in run.lease_folder(0).iterdir()] == ["000001.1"]
    assert ada.holds(kept)


def test_a_workers_name_is_its_own(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    worker(run, "ada")
    with pytest.raises(FileExistsError):
        worker(run, "ada")


def test_a_lease_costs_no_more_than_a_name(tmp_path: Path) -> None:
    """Leases are links to the beacon, so one touch keeps all of them alive."""
    run = bare_run(tmp_path, 3)
    ada = worker(run, "ada")
    assert all(ada.claim(shard) for shard in range(3))
    assert ada.beacon.stat().st_nlink == 4


@pytest.mark.parametrize("counted", [True, False])
def test_what_the_dead_held_is_given_back_at_once_by_who_saw_them_die(tmp_path: Path, counted: bool) -> None:
    run = bare_run(tmp_path, 3)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    assert ada.claim(0) and ada.claim(1) and bo.claim(2)
    output(run, 1)  # it died between this and the end of its lease, which nobody heeds any more
    dead = Leases(run, "ada", TTL, ada.attempts, of_dead=True)
    held = dead.held()
    for lease in held:
        (dead.fail if counted else dead.release)(lease)
    dead.close()
    assert [lease.shard for lease in held] == [0]
    assert not ada.beacon.exists() and bo.beacon.exists()
    taken = Finder(bo, 3, seed="bo").next()
    assert taken is not None and (taken.shard, taken.attempt) == (0, 1 + counted)


def test_who_wakes_up_late_does_not_set_aside_what_another_does(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    ada, bo = worker(run, "ada"), worker(run, "bo")
    late = ada.claim(0)
    silent(ada)
    taken = Finder(bo, 1, "x").next()
    assert late is not None and taken is not None and taken.attempt == 2
    ada.give_up(late)
    assert bo.holds(taken) and ada.given_up == set()
    bo.give_up(taken)
    assert bo.given_up == {0}
    assert [path.name for path in run.lease_folder(0).iterdir()] == ["000000.3.failed"]


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends it again, and the second finds the name taken: also for the last step, which nobody would do then."""
    run = bare_run(tmp_path, 1)
    ada, link = worker(run, "ada"), os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert ada.claim(0) is not None
    assert ada.claim_alone() is not None
