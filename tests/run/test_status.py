"""What a run's directory tells of it."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import endings, lease, ledger, status
from hala_hpc.run.layout import RunDirectory
from tests.run.helpers import TTL, output, planned_run, silent, worker

NOW = 1_700_000_000.0


def write_ledger(run: RunDirectory, name: str, *events: dict[str, Any]) -> None:
    lines = [json.dumps({"event": "started", "time": NOW, "host": "n1", "job": "7_1"}), *map(json.dumps, events)]
    (run.ledger / f"{name}.jsonl").write_text("\n".join(lines) + '\n{"torn')


def progress(seconds: float, rows: int, **working_on: int) -> dict[str, Any]:
    held = {key.removeprefix("s"): value for key, value in working_on.items()}
    tokens = {"prompt_tokens": rows * 10, "output_tokens": rows * 20}
    return {"event": "progress", "time": NOW + seconds, "rows": rows, "quarantined": 1, **tokens, "working_on": held}


def test_counts_rates_and_what_is_left(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "r", [10, 20, 30, 40, 50])
    ada, bo, cy = (worker(run, name, attempts=2) for name in ("ada", "bo", "cy"))
    output(run, 0)
    assert bo.claim(0) is None
    assert ada.claim(1)
    assert bo.claim(2)  # dies: may be taken over
    gone = cy.claim(3, attempt=2)
    assert gone is not None
    cy.fail(gone)  # was the last attempt
    silent(bo)
    write_ledger(
        run,
        "ada",
        progress(100, 10, s0=10),
        {"event": "failed", "time": NOW + 101, "shard": 9, "error": "no such file"},
        progress(700, 70, s1=5),
        progress(800, 90, s1=15),
    )
    write_ledger(run, "bo", progress(50, 500, s2=7), {"event": "crashed", "time": NOW + 60, "error": "the engine died"})
    (run.ledger / "submit-1.jsonl").write_text('{"event": "submitted", "time": 1, "jobs": []}\n')

    state = status.read(run.path, TTL, attempts=2)

    assert (state.shards, state.done, state.running, state.waiting, state.failed) == (5, 1, 1, 2, 1)
    assert (state.rows, state.rows_done, state.quarantined) == (150, 10 + 15 + 7, 0)
    assert state.rows_per_second == pytest.approx(0.2)  # of the living, over the last minutes
    assert state.tokens_per_second == pytest.approx(0.2 * 30)
    assert state.seconds_left == pytest.approx((150 - 32) / 0.2)
    assert [(one.worker, one.alive, one.rows) for one in state.workers] == [("ada", True, 90), ("bo", False, 500)]
    assert [(one["worker"], one["event"]) for one in state.errors] == [("bo", "crashed"), ("ada", "failed")]
    assert not state.finished
    assert status.missing(run.path) == [1, 2, 3, 4]


def test_a_run_that_nobody_works_on(tmp_path: Path) -> None:
    planned_run(tmp_path / "r", [10, 20])
    state = status.read(tmp_path / "r", TTL, attempts=2)
    assert (state.done, state.running, state.waiting, state.failed) == (0, 0, 2, 0)
    assert state.seconds_left is None
    assert state.workers == []


def test_a_finished_run_has_no_running_shards_whatever_leases_were_left(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "r", [10, 20])
    ada = worker(run, "ada")
    assert all(ada.claim(shard) for shard in range(2))
    for shard in range(2):
        output(run, shard)
    state = status.read(run.path, TTL, attempts=3)
    assert state.finished
    assert (state.running, state.failed, state.rows_done) == (0, 0, 30)
    assert status.retry_failed(run.path, attempts=1) == 0


def test_a_run_that_one_may_only_read(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "r", [10])
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    run.leases.chmod(0o500)
    try:
        assert status.read(run.path, TTL, attempts=3).waiting == 1
    finally:
        run.leases.chmod(0o700)


def test_the_clock_file_is_not_left_behind(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "r", [10])
    before = time.time()
    status.read(run.path, TTL, attempts=3)
    assert {path.name for path in run.leases.iterdir()} == {"000", "workers"}
    assert time.time() - before < 60


def published(seconds: float, shard: int, errors: int, **sums: int) -> dict[str, Any]:
    return {"event": "published", "time": NOW + seconds, "shard": shard, "attempt": 1, "errors": errors, **sums}


def test_sums_at_the_ends_of_ledgers_say_what_whole_ledgers_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quarantine of finished shards: by the sums, without reading more; by all lines once outputs were taken away."""
    run = planned_run(tmp_path / "r", [10] * 6)
    for shard in range(4):
        output(run, shard)
    sums = [{"published_shards": 1, "published_errors": 3}, {"published_shards": 2, "published_errors": 4}]
    write_ledger(run, "ada", published(1, 0, 3, **sums[0]), published(2, 1, 1, **sums[1]), progress(3, 20) | sums[1])
    write_ledger(run, "bo", published(1, 2, 0, **sums[0]), progress(2, 20) | sums[0], published(3, 3, 2, **sums[1]))
    write_ledger(run, "cy", progress(1, 0))  # has published nothing yet
    whole: list[Path] = []
    read = endings.published

    def watched(file: Path) -> Iterator[tuple[int, float, int]]:
        whole.append(file)
        return read(file)

    monkeypatch.setattr(endings, "published", watched)
    state = status.read(run.path, TTL, attempts=2)
    assert (state.quarantined, state.unknown_quarantine, whole) == (8, 0, [])
    run.shard_output(0).unlink()
    lease.reopen(run)
    state = status.read(run.path, TTL, attempts=2)
    assert (state.quarantined, state.unknown_quarantine, len(whole)) == (3, 0, 3), "by shard: 1, 0 and 2"
    output(run, 0)
    (run.ledger / "bo.jsonl").unlink()
    assert status.read(run.path, TTL, attempts=2).quarantined == 4
    assert status.read(run.path, TTL, attempts=2).unknown_quarantine == 2, "no ledger has them, and no footer"


def test_only_the_ends_of_long_ledgers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned_run(tmp_path / "r", [10] * 3)
    output(run, 0)
    sums = {"published_shards": 1, "published_errors": 2}
    lines = [progress(5 * step, step, s1=1) | sums for step in range(3000)]
    error = {"event": "failed", "time": NOW + 14_990, "shard": 2, "error": "no such file"}
    write_ledger(run, "ada", published(0, 0, 2, **sums), *lines[:-1], error, lines[-1])
    old = [{"event": "published", "time": NOW, "shard": 0, "errors": 2}, *(progress(s, s) for s in range(3000))]
    parsed: list[bytes] = []
    parse = ledger.parsed

    def watched(content: Iterable[bytes]) -> Iterator[ledger.Event]:
        content = list(content)
        parsed.extend(content)
        return parse(content)

    monkeypatch.setattr(ledger, "parsed", watched)
    state = status.read(run.path, TTL, attempts=2)
    assert (state.quarantined, state.unknown_quarantine) == (2, 0) and len(parsed) < 12, "of three thousand lines"
    (ada,) = state.workers
    assert (ada.rows, ada.rows_per_second) == (2999, pytest.approx(0.2)), "over the last five minutes"
    assert [one["error"] for one in state.errors] == ["no such file"]
    write_ledger(run, "ada", *old)  # of a version before there were sums: it is read whole
    assert status.read(run.path, TTL, attempts=2).quarantined == 2
