"""The run's own file system fails, by FUSE: a worker waits, or ends with one line; no row and no attempt is lost."""

import errno
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import appending, status
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Manifest
from hala_hpc.worker import storage
from hala_hpc.worker.job import main, work_until
from hala_hpc.worker.task import Outcome
from tests.faultfs.mount import Mounted, mounted
from tests.tasks.mix import mixes
from tests.worker import letters
from tests.worker.helpers import directory, events, leftovers, plan, proof, rows, start, texts, unbroken, wait_until

ROWS = 60


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path) as disk:
        yield disk


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(storage, "LONGEST_WAIT", 0.2)


def planned(folder: Path, disk: Mounted, **engine: Any) -> Path:
    return plan(folder, texts(ROWS), run={"root": str(disk.path / "runs")}, capacity=4, **engine)


def hold_all(run: Path) -> None:
    """Every row is there, each was asked for once, and at the first attempt."""
    assert proof(run).proven and rows(run) == unbroken(ROWS) and leftovers(run) == []
    log = run.parents[2] / f"{run.name}.log"
    assert sorted(log.read_text().splitlines()) == sorted(map(repr, texts(ROWS)))
    assert {event["attempt"] for event in events(run, "claimed")} == {1}


def has_kept_rows(run: Path) -> bool:
    return any((run / "partial").rglob("*.jsonl"))


@contextmanager
def failing(disk: Mounted, run: Path, seconds: float, *ops: str, **fault: Any) -> Iterator[None]:
    """From the first row that is kept on, for so long, operations on the run fail."""

    def fail() -> None:
        wait_until(lambda: has_kept_rows(run))
        disk.fail(*ops, path="^/runs", **fault)
        time.sleep(seconds)
        disk.heal()

    thread = threading.Thread(target=fail)
    thread.start()
    try:
        yield
    finally:
        thread.join()


ERRORS = ("EIO", "ESTALE", "ETIMEDOUT", "ENOSPC", "EDQUOT", "EROFS")
FAULTS = [(error, ("*",)) for error in ERRORS] + [
    ("EIO", (op,)) for op in ("fsync", "writes", "link", "unlink", "open")
]


@pytest.mark.parametrize(("error", "ops"), FAULTS)
def test_what_fails_for_a_moment_is_done_again(
    tmp_path: Path, disk: Mounted, capfd: pytest.CaptureFixture[str], error: str, ops: tuple[str, ...]
) -> None:
    run = planned(tmp_path, disk, seconds=0.02)
    with failing(disk, run, 1.0, *ops, error=error):
        assert work_until(run, lambda: False) is Outcome.FINISHED
    said = capfd.readouterr().out
    assert f"{os.strerror(getattr(errno, error)).lower()}" in said and "waited for, no shard counts it" in said
    assert "back after 1 seconds" in said
    hold_all(run)


def test_it_ends_with_one_line_where_that_takes_too_long_and_goes_on_later(
    tmp_path: Path, disk: Mounted, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.5)
    run = planned(tmp_path, disk, seconds=0.02)
    with failing(disk, run, 3.0, "write", "create", "fsync", error="EDQUOT"):
        assert main([str(run)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(rf"hala: error: {run}: disk quota exceeded.*for \d seconds \(free some of your quota", line)
    assert "hala resume r" in line
    state = status.read(run, 60.0, 5)
    assert (state.failed, list((run / "leases" / "000").iterdir())) == (0, [])
    kept = {number for shard in range(ROWS // 10) for number in appending.read(directory(run), shard)}
    assert work_until(run, lambda: False) is Outcome.FINISHED
    assert proof(run).proven and rows(run) == unbroken(ROWS)
    assert {event["attempt"] for event in events(run, "claimed")} == {1}
    twice = [text for text in texts(ROWS) if (tmp_path / "r.log").read_text().splitlines().count(repr(text)) > 1]
    assert not {f"text {number}" for number in kept} & set(twice)


def test_a_stop_does_not_wait_for_it(tmp_path: Path, disk: Mounted, capfd: pytest.CaptureFixture[str]) -> None:
    """The job is to be requeued: that the storage is away is no error of it."""
    run = planned(tmp_path, disk, seconds=0.02)
    with failing(disk, run, 3.0, "*", error="EIO"):
        began = time.monotonic()
        assert work_until(run, lambda: time.monotonic() > began + 2) is Outcome.STOPPED
        assert time.monotonic() < began + 10
    assert "input/output error" in capfd.readouterr().out


def test_a_file_server_that_hangs_costs_no_attempt(tmp_path: Path, disk: Mounted) -> None:
    """All workers are kept from their heartbeats for longer than a lease; each lets the others have one again first."""
    run = planned(tmp_path, disk, seconds=0.4)
    workers = [start(run) for _ in range(2)]
    wait_until(lambda: len(events(run, "claimed")) >= 2 and has_kept_rows(run))
    disk.fail("*", path="^/runs", hang=4.0, times=1)
    for worker in workers:
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said
    hold_all(run)


def test_a_worker_that_starts_without_it_says_so(
    tmp_path: Path, disk: Mounted, capfd: pytest.CaptureFixture[str]
) -> None:
    run = planned(tmp_path, disk)
    disk.fail("*", error="ESTALE", path="^/runs")
    assert main([str(run)]) == 2
    disk.heal()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("hala: error: ") and "stale file handle" in line.lower()


@pytest.mark.parametrize("error", ["EIO", "EROFS"])
def test_an_item_is_given_back_and_done_again(
    tmp_path: Path, disk: Mounted, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    sources = {"talk": {"rows": mixes.chats(30)}}
    run = mixes.plan(tmp_path, sources, run={"root": disk.path / "runs", "shard_rows": 10})
    disk.fail("fsync", "mkdir", error=error, path="^/runs/mix")
    timer = threading.Timer(1.0, disk.heal)
    timer.start()
    assert work_until(run, lambda: False, "one") is Outcome.FINISHED
    timer.join()
    assert proof(run).proven and len(mixes.rows(run)) == 30
    assert events(run, "failed") == []
    assert {event["attempt"] for event in events(run, "claimed")} == {1}


@pytest.mark.parametrize("error", ["EIO", "ESTALE", "EROFS"])
def test_a_last_step_waits_for_its_storage(tmp_path: Path, disk: Mounted, error: str) -> None:
    run = letters.planned(disk.path / "runs" / "r", [{"name": "a"}, {"name": "b"}])

    class Fails(letters.Letters):
        """From the moment on that it puts the whole together, for a second."""

        tries = 0

        def finish(self, run: RunDirectory, plan: Manifest) -> None:
            self.tries += 1
            if self.tries == 1:
                disk.fail("*", error=error, path="^/runs")
                threading.Timer(1.0, disk.heal).start()
            super().finish(run, plan)

    task = Fails()
    assert letters.work(run, "one", task) is Outcome.FINISHED
    assert task.tries > 1 and (run / "final" / "letters").read_text() == "ab"
    assert not list(run.glob(".final*")) and not list(run.glob("leases/last/*"))


@pytest.mark.parametrize("command", ["status", "verify", "logs", "collect"])
def test_commands_say_it_in_one_line(tmp_path: Path, disk: Mounted, hala: Any, command: str) -> None:
    run = planned(tmp_path, disk)
    assert work_until(run, lambda: False) is Outcome.FINISHED
    disk.fail("*", error="EIO", path="^/runs")
    done = hala(command, run, code=2)
    disk.heal()
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("hala: error: ") and "input/output error" in line.lower()


def test_a_plan_on_a_disk_that_is_read_only_is_refused(tmp_path: Path, disk: Mounted, hala: Any) -> None:
    run = planned(tmp_path, disk)
    disk.fail("writes", error="EROFS")
    done = hala("plan", "--create", tmp_path / "r.json", "name=other", code=2)
    disk.heal()
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("hala: error: ") and "read-only file system" in line.lower()
    assert [path.name for path in run.parent.iterdir()] == [run.name]
