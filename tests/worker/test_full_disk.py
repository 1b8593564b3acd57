"""A disk that is full, for real: a small tmpfs."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import files
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Manifest
from hala_hpc.worker import storage
from hala_hpc.worker.job import main
from hala_hpc.worker.task import Outcome
from tests.worker import letters
from tests.worker.helpers import events, plan, proof, rows, start, unbroken, wait_until

NO_SPACE = "no space left on device"
SmallDisk = Callable[[str], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"mount: {done.stderr.strip()}")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize(("command", "form"), [(("plan", "--create"), "jsonl"), (("submit",), "csv")])
def test_a_run_that_does_not_fit_is_refused_and_leaves_nothing(
    small_disk: SmallDisk, tmp_path: Path, hala: Any, command: tuple[str, ...], form: str
) -> None:
    """What does not fit is the manifest of many shards, or the copy of a file that cannot be read from its middle."""
    disk = small_disk("64k")
    lines = [json.dumps({"text": f"text {number}"}) if form == "jsonl" else f"text {number}" for number in range(8_000)]
    (tmp_path / f"d.{form}").write_text("\n".join([*(["text"] if form == "csv" else []), *lines]) + "\n")
    recipe = {
        "name": "r",
        "task": {"kind": "translate", "segments": {"tokens": 0}},
        "engine": {"kind": "echo"},
        "data": {"path": [f"d.{form}"]},
        "run": {"root": str(disk / "runs"), "shard_rows": 1},
    }
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    done = hala(*command, "r.json", code=2)
    assert done.stderr.strip().startswith("hala: error: ")
    assert "no space left" in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) == 1
    assert list((disk / "runs").iterdir()) == []


def test_a_disk_that_fills_is_waited_for(small_disk: SmallDisk, tmp_path: Path) -> None:
    disk = small_disk("240k")
    run = plan(tmp_path, [f"text {n}" for n in range(1_500)], run={"root": str(disk / "runs"), "shard_rows": 20})
    process = start(run)
    wait_until(lambda: any(NO_SPACE in event["error"] for event in events(run, "unreachable")) or is_full(disk))
    time.sleep(1.0)
    assert process.poll() is None and 0 < len(rows(run)) < 1_500
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"{run}: {NO_SPACE}" in said and "back after" in said
    assert proof(run).proven and rows(run) == unbroken(1_500)
    assert {event["attempt"] for event in events(run, "claimed")} == {1}


def test_where_that_takes_too_long_it_ends_with_one_line_and_a_larger_disk_lets_it_finish(
    small_disk: SmallDisk, tmp_path: Path, hala: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.5)
    disk = small_disk("240k")
    run = plan(tmp_path, [f"text {n}" for n in range(1_500)], run={"root": str(disk / "runs"), "shard_rows": 20})
    assert main([str(run)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"hala: error: {run}: {NO_SPACE}") and "free some space there; then `hala resume r`" in line
    assert 0 < len(rows(run)) < 1_500
    leases = [path.name for path in (run / "leases" / "000").iterdir()]
    assert leases == []
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    hala("resume", run, "site.executor=debug")
    assert hala.json("verify", run)["proven"]
    assert rows(run) == unbroken(1_500)
    assert events(run, "ended")[-1]["outcome"] == "finished"


def test_an_item_waits_for_room_however_often_it_does_not_fit(
    small_disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A few bytes fit all the time: that says nothing."""
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(storage, "LONGEST_WAIT", 0.1)
    disk = small_disk("400k")
    run = letters.planned(disk / "run", [{"name": "a", "bytes": 600_000}])
    timer = threading.Timer(4.0, subprocess.run, [["mount", "-o", "remount,size=64m", disk]])
    timer.start()
    assert letters.work(run, "one", letters.Letters()) is Outcome.FINISHED
    timer.join()
    assert (run / "final" / "letters").read_text() == "a"
    assert f"{run}: {NO_SPACE}" in capfd.readouterr().out
    assert events(run, "failed") == [] and {event["attempt"] for event in events(run, "claimed")} == {1}


def test_the_last_step_waits_for_room(
    small_disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Large(letters.Letters):
        tries = 0

        def finish(self, run: RunDirectory, plan: Manifest) -> None:
            self.tries += 1
            with files.whole_directory(run.final) as folder:
                (folder / "letters").write_bytes(bytes(600_000))

    monkeypatch.setattr(storage, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(storage, "LONGEST_WAIT", 0.1)
    disk, task = small_disk("400k"), Large()
    run = letters.planned(disk / "run", [{"name": "a"}])
    timer = threading.Timer(2.0, subprocess.run, [["mount", "-o", "remount,size=64m", disk]])
    timer.start()
    assert letters.work(run, "one", task) is Outcome.FINISHED
    timer.join()
    assert task.tries > 3 and (run / "final" / "letters").stat().st_size == 600_000
    said = capfd.readouterr().out
    assert f"{run}: {NO_SPACE}" in said and "back after" in said
    assert not list(run.glob(".final*"))


def is_full(disk: Path) -> bool:
    return shutil.disk_usage(disk).free < 4_096
