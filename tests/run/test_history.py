import json
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import history
from hala_hpc.run.history import Span
from hala_hpc.run.layout import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "ledger").mkdir()
    return RunDirectory(tmp_path)


def ledger(run: RunDirectory, name: str, *events: dict[str, Any]) -> None:
    (run.ledger / f"{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def started(time: float, host: str = "n1") -> dict[str, Any]:
    return {"event": "started", "time": time, "host": host, "job": "5_0"}


def progress(time: float, rows: int, tokens: int) -> dict[str, Any]:
    return {"event": "progress", "time": time, "rows": rows, "prompt_tokens": 0, "output_tokens": tokens}


def shard(event: str, time: float, number: int, **told: Any) -> dict[str, Any]:
    return {"event": event, "time": time, "shard": number, "attempt": 1, **told}


def test_spans_end_as_the_ledger_says(run: RunDirectory) -> None:
    ledger(
        run,
        "a",
        started(100),
        shard("claimed", 101, 0),
        shard("claimed", 105, 1),
        shard("published", 106, 0),
        shard("failed", 107, 1, error="OSError: gone"),
        shard("claimed", 107, 4),
        shard("deferred", 107, 4, done=0),
        shard("claimed", 108, 5),
        shard("abandoned", 108, 5, done=1),
        shard("claimed", 108, 2),
        shard("released", 109, 2),
        shard("claimed", 110, 3),
        progress(111, 5, 50),
    )
    (worker,) = history.read(run).workers
    endings = {span.shard: (span.start, span.end, span.ending) for span in worker.spans}
    assert endings == {
        0: (101, 106, "done"),
        1: (105, 107, "failed"),
        2: (108, 109, "given back"),
        3: (110, 111, "not ended"),
        5: (108, 108, "failed"),
    }, "a claim that is given back while the engine loads is no work at a shard"
    assert worker.ending == "not ended"
    assert [(one.shard, one.error) for one in worker.troubles] == [(1, "OSError: gone")]


def test_ledgers_of_no_worker_and_torn_lines_are_passed_over(run: RunDirectory) -> None:
    ledger(run, "submissions", {"event": "started", "time": 1}, {"event": "submitted", "time": 2})
    ledger(run, "a", started(10), {"event": "ended", "time": 20, "outcome": "finished"})
    with (run.ledger / "a.jsonl").open("a") as file:
        file.write('{"event": "clai')
    found = history.read(run)
    assert [(worker.name, worker.ending) for worker in found.workers] == [("a", "finished")]
    assert found.worker_seconds == 10


def test_rates_keep_the_sum_and_follow_the_workers(run: RunDirectory) -> None:
    ledger(run, "a", started(0), progress(50, 100, 1_000), progress(100, 100, 1_000))
    ledger(run, "b", started(50), progress(100, 300, 0))
    rates = history.rates(history.read(run), bins=20)
    assert sum(rate.rows for rate in rates) * 5 == pytest.approx(400)
    assert sum(rate.tokens for rate in rates) * 5 == pytest.approx(1_000)
    assert [rate.rows for rate in rates] == pytest.approx([2.0] * 10 + [6.0] * 10)
    assert [rate.workers for rate in rates] == pytest.approx([1.0] * 10 + [2.0] * 10)


def test_a_crash_is_told_for_each_of_its_shards(run: RunDirectory) -> None:
    crash = {"event": "crashed", "time": 5, "error": "the engine died", "shards": [3, 4]}
    ledger(run, "a", started(0), crash, {"event": "failed", "time": 6, "error": "HalaError: no"})
    assert [one.shard for one in history.read(run).troubles] == [3, 4, None]


def test_what_is_drawn_does_not_grow_with_the_run() -> None:
    spans = [Span("a", number, number * 0.9, number * 0.9 + 0.8, "done") for number in range(10_000)]
    spans.insert(5_000, Span("a", 77, 4_500.0, 4_501.0, "failed"))
    joined = history.joined(spans, 15.0)
    assert [(one.ending, one.start, round(one.end, 1)) for one in joined] == [
        ("done", 0.0, 8999.9),
        ("failed", 4500, 4501),
    ]
    assert len(history.joined(spans, 0.05)) == len(spans)


def test_a_run_that_nobody_worked_on_has_no_history(run: RunDirectory) -> None:
    found = history.read(run)
    assert (found.workers, history.rates(found), found.worker_seconds) == ((), [], 0)


def test_processes_of_a_worker_are_no_workers(run: RunDirectory) -> None:
    ledger(run, "a", started(0), {"event": "ended", "time": 10, "outcome": "finished"})
    for process in ("a+1", "a+2"):
        ledger(run, process, started(0) | {"part_of": "a"}, progress(10, 5, 50))
    past = history.read(run)
    assert [worker.name for worker in past.whole] == ["a"] and len(past.workers) == 3
    assert past.worker_seconds == 10
    assert [(rate.rows, rate.workers) for rate in history.rates(past, bins=1)] == [(1.0, 1.0)]
