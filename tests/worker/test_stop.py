"""Workers that are told to stop, or killed: what they had finished is kept, and the rest is done by others."""

import signal
import time
from pathlib import Path

import pytest

from hala_hpc.run import appending
from tests.worker.helpers import (
    REQUEUE,
    asked,
    directory,
    events,
    finish,
    leftovers,
    plan,
    proof,
    quarantined,
    rows,
    start,
    texts,
    unbroken,
    wait_until,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_keeps_what_is_finished_and_gives_the_rest_back(tmp_path: Path, number: int) -> None:
    run = plan(tmp_path, texts(100), capacity=5, seconds=0.1, run={"shard_rows": 50, "flush_seconds": 60.0})
    process = start(run)
    wait_until(lambda: asked(run).total() >= 25)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == REQUEUE
    assert signal.Signals(number).name in said
    assert [path for path in (run / "leases").rglob("*") if path.is_file()] == []
    assert events(run, "released")
    kept = appending.read(directory(run), 0) | appending.read(directory(run), 1)
    assert len(kept) >= asked(run).total() - 5 >= 20

    finish(run)
    assert rows(run) == unbroken(100)
    assert proof(run).proven
    twice = [text for text, count in asked(run).items() if count > 1]
    assert len(twice) <= 5  # those that were out
    assert leftovers(run) == []
    assert events(run, "claimed")[-1]["attempt"] == 1  # being stopped is no fault of the shard


def test_a_kill_costs_what_was_not_yet_flushed(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(200), capacity=8, seconds=0.1, run={"shard_rows": 200})
    process = start(run)
    flushed: set[int] = set()

    def enough() -> bool:
        flushed.update(appending.read(directory(run), 0))
        return len(flushed) >= 60

    wait_until(enough)
    process.kill()
    process.communicate()
    kept = appending.read(directory(run), 0)
    assert len(kept) < 200, "it was killed before its end"
    assert kept.keys() >= flushed

    finish(run)
    assert rows(run) == unbroken(200)
    again = {text for text, count in asked(run).items() if count > 1}
    assert again.isdisjoint(f"text {number}" for number in kept)
    assert events(run, "claimed")[-1]["attempt"] == 2
    assert leftovers(run) == []


def test_a_stop_does_not_blame_the_row_that_a_careful_worker_was_at(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(10), seconds=0.2)
    (directory(run).workers / "gone").touch()
    (directory(run).lease_folder(0) / "000000.2.failed").touch()  # two workers failed here before
    process = start(run)
    wait_until(lambda: asked(run).total() >= 3)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == REQUEUE
    (directory(run).lease_folder(0) / "000000.2.failed").unlink()
    finish(run)
    assert quarantined(run) == {}
    assert rows(run) == unbroken(10)


def test_however_often_it_is_told_to_stop_its_exit_code_asks_for_a_requeue(tmp_path: Path) -> None:
    """Slurm sends more than one signal, and sbatch scripts requeue on 85 alone."""
    run = plan(tmp_path, texts(100), capacity=3, seconds=0.1)
    process = start(run)
    wait_until(lambda: events(run, "claimed"))
    while process.poll() is None:
        process.terminate()
        time.sleep(0.003)
    process.communicate()
    assert process.returncode == REQUEUE
