"""A worker whom nothing disturbs: what it writes, what it asks, how it goes from shard to shard."""

import datetime
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.data import shards
from hala_hpc.engines.base import Completion
from hala_hpc.pipeline import lookup, planning
from hala_hpc.run import appending
from hala_hpc.run.appending import PartialFile
from hala_hpc.run.finder import Finder
from hala_hpc.worker.job import work_until
from hala_hpc.worker.rows.shard import AnswerCache
from hala_hpc.worker.task import Outcome
from tests.worker.helpers import (
    asked,
    directory,
    events,
    finish,
    leftovers,
    plan,
    proof,
    quarantined,
    rows,
    texts,
    unbroken,
)


def test_every_row_is_done_and_nothing_is_left_over(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(95))
    finish(run)
    assert rows(run) == unbroken(95)
    assert proof(run).proven
    assert leftovers(run) == []
    assert len(events(run, "published")) == 10
    assert events(run)[-1] == events(run)[-1] | {"event": "ended", "outcome": "finished"}


def test_equal_texts_are_asked_once(tmp_path: Path) -> None:
    run = plan(tmp_path, ["same", "other"] * 30, seconds=0.05)
    finish(run)
    assert asked(run) == {"same": 1, "other": 1}
    assert proof(run).done == 60
    assert events(run, "progress")[-1]["remembered"] == 58


def test_the_memory_forgets_what_was_not_used_for_longest() -> None:
    memory = AnswerCache(most_characters=10)
    for name in (b"a", b"b"):
        memory.put(name, Completion(id="1", text="12345"))
    assert memory.get(b"a")
    memory.put(b"c", Completion(id="1", text="12345"))
    assert memory.get(b"a")
    assert memory.get(b"b") is None
    assert memory.get(b"c")


def test_the_next_shard_is_claimed_before_the_last_rows_are_back(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(40), capacity=4, seconds=0.1)
    finish(run)
    order = [(event["event"], event["shard"]) for event in events(run, "claimed", "published")]
    published = [shard for what, shard in order if what == "published"]
    for shard, following in itertools.pairwise(published):
        assert order.index(("claimed", following)) < order.index(("published", shard))


def test_a_worker_does_not_wait_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last shards are being written when nothing is left to claim: their leases are no silent worker's."""
    run, seen, write, wait_for = plan(tmp_path, texts(20)), list[list[str]](), shards.write_output, Finder.wait_for

    def slowly(*given: Any) -> None:
        time.sleep(0.3)
        write(*given)

    def looked(finder: Finder) -> float | None:
        seen.append(leftovers(run))
        return wait_for(finder)

    monkeypatch.setattr(shards, "write_output", slowly)
    monkeypatch.setattr(Finder, "wait_for", looked)
    assert work_until(run, lambda: False) is Outcome.FINISHED
    assert seen == [[]]
    assert rows(run) == unbroken(20)


def test_rows_that_fail_or_are_cut_off_stand_in_quarantine_with_the_reason(tmp_path: Path) -> None:
    run = plan(
        tmp_path, [*texts(25), "a bad one", "a long one", "x" * 300], fail_on="bad", cut_on="long", max_characters=200
    )
    finish(run)
    verdict = proof(run)
    assert verdict.proven
    assert verdict.quarantined == {"failed": 1, "truncated": 1, "too long": 1}
    assert verdict.done == 25
    assert quarantined(run)["a bad one"] == "failed: fail_on 'bad'"


def test_a_shard_that_was_complete_but_not_published_needs_no_engine(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(10), start_seconds=100.0)
    kept = PartialFile(directory(run), 0, "dead")
    for number, text in enumerate(texts(10)):
        kept.add({"row": number, "new": {"text_ar": f"«{text}»"}})
    kept.flush()
    finish(run)
    assert rows(run) == unbroken(10)
    assert asked(run) == {}
    assert appending.read(directory(run), 0) == {}


def test_turns_may_hold_values_that_json_has_no_word_for(tmp_path: Path) -> None:
    """WildChat's turns have a timestamp each."""
    at = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    turns = [
        {"role": "user", "content": "hi", "at": at, "image": b"\x00\xff"},
        {"role": "assistant", "content": "yo", "at": None, "image": None},
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "w.parquet")
    recipe = {
        "name": "w",
        "task": {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}},
        "engine": {"kind": "echo"},
        "data": {"path": [str(tmp_path / "w.parquet")]},
        "run": {"root": str(tmp_path)},
    }
    (tmp_path / "w.json").write_text(json.dumps(recipe))
    wanted = lookup.load(tmp_path / "w.json", "local", ())
    run = planning.plan_run(wanted, planning.check(wanted), tmp_path / "w").path
    finish(run)
    assert proof(run).proven
    assert [turn["at"] for turn in rows(run)[0]["messages_ar"]] == [at, None]
    assert rows(run)[0]["messages_ar"][0]["content"] == "«hi»"
