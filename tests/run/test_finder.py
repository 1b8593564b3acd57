"""What a look for work asks of the file server, by the real calls; and that nothing is overlooked for it."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import lease
from hala_hpc.run.finder import LISTED_AGAIN, MOST_WATCHED, Finder
from hala_hpc.run.layout import FAN_OUT, RunDirectory
from tests.run.helpers import bare_run, output, silent, worker

FOLDERS = 40
SHARDS = FOLDERS * FAN_OUT
OPEN = (3 * FAN_OUT + 5, 3 * FAN_OUT + 6, 17 * FAN_OUT, SHARDS - 1)
"""Shards of three folders that are not finished; all others are."""
UNFINISHED = 3


@pytest.fixture(scope="module")
def nearly_done(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = bare_run(tmp_path_factory.mktemp("nearly"), SHARDS)
    for shard in set(range(SHARDS)) - set(OPEN):
        run.shard_output(shard).touch()
    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often folders were listed, and files linked, since the test cleared it."""
    counts = Counter[str]()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def through(*words: Any, **named: Any) -> Any:
            counts[name] += 1
            return call(*words, **named)

        return through

    for name in ("listdir", "scandir", "link", "stat"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return counts


def listings(calls: Counter[str]) -> int:
    return calls["listdir"] + calls["scandir"]


def test_an_idle_worker_lists_only_what_is_not_finished(nearly_done: RunDirectory, calls: Counter[str]) -> None:
    busy = worker(nearly_done, "busy")
    held = [busy.claim(shard) for shard in OPEN]
    assert all(held)
    idle = worker(nearly_done, "idle")
    finder = Finder(idle, SHARDS, "idle")
    calls.clear()
    assert finder.next() is None and finder.wait_for() is not None
    assert listings(calls) <= FOLDERS + 2 * UNFINISHED + 10, "the first look has to see what is finished"
    for _ in range(5):
        calls.clear()
        assert finder.next() is None and finder.wait_for() is not None
        assert listings(calls) <= UNFINISHED + 10 and calls["link"] == 0
        assert listings(calls) == UNFINISHED, "leases of unfinished folders, once for both questions"
    for item in held:
        assert item is not None
        busy.release(item)
    calls.clear()
    again = finder.next()
    assert again is not None, "what is given back is seen"
    assert listings(calls) <= UNFINISHED
    idle.release(again)
    busy.close()
    idle.close()


def test_what_others_finish_is_not_listed_any_more(tmp_path: Path, calls: Counter[str]) -> None:
    run = bare_run(tmp_path, 3 * FAN_OUT)
    for shard in range(50, 3 * FAN_OUT):
        run.shard_output(shard).touch()
    busy, idle = worker(run, "busy"), worker(run, "idle")
    held = [busy.claim(shard) for shard in range(50)]
    finder = Finder(idle, 3 * FAN_OUT, "x")
    assert finder.next() is None
    for item in held[:3]:
        assert item is not None
        output(run, item.shard)
        busy.clear(item.shard)
    calls.clear()
    assert finder.next() is None
    assert listings(calls) == 1 and calls["link"] == 0, "three outputs are asked for by name"
    for item in held[3 : 4 + LISTED_AGAIN]:
        assert item is not None
        output(run, item.shard)
        busy.clear(item.shard)
    calls.clear()
    assert finder.next() is None
    assert listings(calls) == 2, "so many are listed"
    for item in held[4 + LISTED_AGAIN :]:
        assert item is not None
        output(run, item.shard)
        busy.clear(item.shard)
    assert finder.next() is None
    calls.clear()
    assert finder.next() is None and finder.wait_for() is None
    assert listings(calls) == 0, "all is finished, and stays so"


def test_an_output_that_is_taken_away_is_seen_by_workers_that_knew_it(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 2 * FAN_OUT)
    for shard in range(2 * FAN_OUT):
        run.shard_output(shard).touch()
    finder = Finder(worker(run, "ada"), 2 * FAN_OUT, "x")
    assert finder.next() is None
    run.shard_output(1234).unlink()
    lease.reopen(run)
    again = finder.next()
    assert again is not None and again.shard == 1234


def test_leases_left_by_a_kill_after_publishing_are_no_work(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 2)
    dead = worker(run, "dead")
    assert dead.claim(0) and dead.claim(1)
    finder = Finder(worker(run, "ada"), 2, "x")
    assert finder.next() is None, "it lives"
    output(run, 0)  # published, and not cleared
    silent(dead)
    taken = finder.next()
    assert taken is not None and (taken.shard, taken.attempt) == (1, 2)
    output(run, 1)
    assert finder.next() is None and finder.wait_for() is None


def test_of_many_leases_each_worker_watches_some_and_all_are_watched(tmp_path: Path, calls: Counter[str]) -> None:
    run = bare_run(tmp_path, 300)
    busy = [worker(run, f"busy{number}") for number in range(300)]
    assert all(leases.claim(shard) for shard, leases in enumerate(busy))
    assert busy[77].claim(77, 2) is not None
    names = [f"idle{number}" for number in range(30)]
    finders = [Finder(worker(run, name), 300, name) for name in names]
    calls.clear()
    assert finders[0].next() is None
    assert calls["stat"] <= MOST_WATCHED + 20
    silent(busy[77])
    assert any(finder.next() is not None for finder in finders), "some of them watches the silent one"


def test_every_shard_is_handed_out_once_in_whatever_order(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 2 * FAN_OUT + 10)
    for shard in range(0, 2 * FAN_OUT, 3):
        run.shard_output(shard).touch()
    finders = [Finder(worker(run, name), 2 * FAN_OUT + 10, name) for name in ("ada", "bo")]
    handed_out: list[int] = []
    while both := [item.shard for finder in finders if (item := finder.next()) is not None]:
        handed_out += both
    assert sorted(handed_out) == [shard for shard in range(2 * FAN_OUT + 10) if shard >= 2 * FAN_OUT or shard % 3]
