"""The promise: two workers never publish the same shard twice, and no shard is lost.

Many real processes work on one run with a short lease, while some are stopped for longer than it and then go on, and
others are killed and replaced. A schedule is drawn from a seed; HALA_CHAOS_SEEDS=4,5,6 tries others.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hala_hpc.run import ledger
from hala_hpc.run.layout import RunDirectory
from tests.run.helpers import bare_run

SCRIPT = Path(__file__).with_name("chaos_worker.py")
SEEDS = [int(seed) for seed in os.environ.get("HALA_CHAOS_SEEDS", "1,2,3").split(",")]
SHARDS, WORKERS, TTL, PIECES = 100, 7, 0.5, 6
PATIENCE = 60.0


class Observer(threading.Thread):
    """Looks at the outputs all the time, and remembers each as it was when first seen."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(daemon=True)
        self._run = run
        self._over = threading.Event()
        self.first: dict[int, tuple[int, str]] = {}
        self.changes: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    def look(self) -> None:
        for shard in range(SHARDS):
            output = self._run.shard_output(shard)
            if shard in self.first and not output.exists():
                self.changes.append(f"{shard} vanished")
            elif output.exists():
                seen = (output.stat().st_ino, content(output))
                if self.first.setdefault(shard, seen) != seen:
                    self.changes.append(f"{shard} changed from {self.first[shard]} to {seen}")

    def close(self) -> None:
        self._over.set()
        self.join()
        self.look()


class Crowd:
    """The worker processes, and what is done to them."""

    def __init__(self, run: RunDirectory, seed: int) -> None:
        self._run = run
        self._chance = random.Random(seed)
        self._names = (f"w{number:03d}" for number in range(10_000))
        self._living: dict[str, subprocess.Popen[str]] = {}
        self._asleep: dict[str, float] = {}  # until when
        self.killed: set[str] = set()
        self.complaints: list[str] = []
        self.pauses = 0

    def keep_full(self) -> None:
        for name in [name for name, process in self._living.items() if process.poll() is not None]:
            self._bury(name)
        while len(self._living) < WORKERS:
            name = next(self._names)
            words = [sys.executable, SCRIPT, self._run.path, SHARDS, TTL, self._run.suffix, name]
            command = list(map(str, words))
            self._living[name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def disturb(self) -> None:
        """Stop one for up to three leases, or kill one, or neither."""
        now = time.monotonic()
        for name in [name for name, until in self._asleep.items() if until < now]:
            self._wake(name)
        name, what = self._chance.choice(sorted(self._living)), self._chance.random()
        if what < 0.5 and name not in self._asleep and len(self._asleep) < WORKERS - 2:
            self._living[name].send_signal(signal.SIGSTOP)
            self._asleep[name] = now + TTL * self._chance.uniform(0.5, 3.0)
            self.pauses += 1
        elif what > 0.9:
            self._living[name].kill()
            self.killed.add(name)

    def let_finish(self) -> None:
        """Everybody may go on and must come to an end without a complaint."""
        for name in list(self._asleep):
            self._wake(name)
        for name, process in list(self._living.items()):
            process.wait(PATIENCE)
            self._bury(name)

    def end(self) -> None:
        for process in self._living.values():
            process.kill()
            process.communicate()

    def _wake(self, name: str) -> None:
        del self._asleep[name]
        if name in self._living:
            self._living[name].send_signal(signal.SIGCONT)

    def _bury(self, name: str) -> None:
        process = self._living.pop(name)
        _, said = process.communicate()
        if name not in self.killed and process.returncode != 0:
            self.complaints.append(f"{name}: {process.returncode}: {said}")


def content(output: Path) -> str:
    if output.is_dir():
        return "".join(file.read_text() for file in sorted(output.glob("*.txt")))
    return output.read_text()


def published_by(run: RunDirectory) -> list[tuple[int, str]]:
    """What the workers say: (shard, worker)."""
    return [
        (event["shard"], file.stem)
        for file in run.ledger.glob("*.jsonl")
        for event in ledger.read(file)
        if event["event"] == "published"
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_shard_is_published_twice_and_none_is_lost(tmp_path: Path, seed: int) -> None:
    run = bare_run(tmp_path, SHARDS, suffix=".txt" if seed % 3 else "")  # every third: outputs are folders
    crowd, observer = Crowd(run, seed), Observer(run)
    observer.start()
    deadline = time.monotonic() + PATIENCE
    try:
        while len(observer.first) < SHARDS:
            assert time.monotonic() < deadline, f"{len(observer.first)} of {SHARDS} shards after {PATIENCE} s"
            crowd.keep_full()
            crowd.disturb()
            time.sleep(0.03)
        crowd.let_finish()
    finally:
        crowd.end()
        observer.close()

    assert crowd.complaints == []
    assert observer.changes == []
    names = sorted(path.name for path in (run.shards / "000").iterdir())
    assert names == [f"{shard:06d}{run.suffix}" for shard in range(SHARDS)]
    assert crowd.pauses > 2
    assert crowd.killed
    said = published_by(run)
    times = Counter(shard for shard, _ in said)
    assert [shard for shard, count in times.items() if count > 1] == []
    for shard, name in said:
        assert content(run.shard_output(shard)) == "".join(f"{name} {piece}\n" for piece in range(PIECES))
    for shard in set(range(SHARDS)) - times.keys():  # killed between the output and the line of its ledger
        assert content(run.shard_output(shard)).split()[0] in crowd.killed
