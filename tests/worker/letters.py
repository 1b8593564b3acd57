"""A toy task of items, to try the loop on: each writes its letter, step by step, and does as its entry says.

``python -m tests.worker.letters RUN`` is a worker on it.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.engines.base import NoEngine
from hala_hpc.run import files, ledger, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Leases
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import CheckShard, ShardReport
from hala_hpc.worker.items import Item, ItemLoop
from hala_hpc.worker.task import Context, Outcome

TTL, ATTEMPTS, STEPS = 1.0, 3, 4


class Letters:
    """The task; ``opened`` and ``done`` tell what its workers did, in order."""

    environment, loop, suffix = "work", "items", ""

    def __init__(self) -> None:
        self.opened = 0
        self.done: list[str] = []

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        raise AssertionError("see planned()")

    def checker(self, facts: Facts) -> CheckShard:
        del facts
        return lambda shard, path: ShardReport(done=int((path / "letter").read_text() != ""))

    def open(self, run: RunDirectory, plan: Manifest) -> "Work":
        del run, plan
        self.opened += 1
        return Work(self)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        if not run.final.exists():
            with files.whole_directory(run.final) as folder:
                outputs = (run.shard_output(shard) / "letter" for shard in range(len(plan)))
                (folder / "letters").write_text("".join(path.read_text() for path in outputs))


class Work:
    """An entry may ask for more than its letter: ``fails``, ``refused``, ``away`` (so often), ``no_engine``, ``killed``
    (once, at that step), ``slow``, ``bytes`` (so many beside the letter)."""

    def __init__(self, task: Letters) -> None:
        self._task = task

    def do(self, item: Item) -> dict[str, Any]:
        entry = item.entry
        for step in range(STEPS):
            item.check_stop()
            kept = item.kept / str(step)
            if kept.exists():
                continue
            if entry.get("fails"):
                raise RuntimeError("this letter never works")
            if entry.get("no_engine"):
                raise NoEngine("no engine here")
            if len(tries := list(item.kept.glob("away-*"))) < entry.get("away", 0):
                (item.kept / f"away-{len(tries)}").touch()
                try:
                    (item.kept / "source").read_text()
                except FileNotFoundError as error:
                    raise HalaError("the source cannot be read") from error
            if entry.get("refused"):
                raise HalaError("no such letter")
            if entry.get("killed") == step:
                kept.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(entry.get("slow", 0.0))
            kept.touch()
            item.tell(f"step {step + 1} of {STEPS}")
        item.place.mkdir()
        if size := entry.get("bytes"):
            files.write_durably(item.place / "more", bytes(size))
        (item.place / "letter").write_text(entry["name"])
        self._task.done.append(entry["name"])
        return {"steps": STEPS}

    def close(self) -> None:
        pass


def planned(path: Path, letters: Sequence[dict[str, Any]]) -> Path:
    """A run of such items; ``source`` of an entry is what is kept loaded for it."""
    shards = [
        Shard(number, "letters", letter.get("source", ""), 0, number, 1, 0, 1, "")
        for number, letter in enumerate(letters)
    ]
    facts = Facts("", len(letters), 0, 0, len(letters), unit="benchmarks", items=list(letters), assembled=True)
    return manifest.create(path, "name: letters\n", lambda _: (shards, facts)).path


def work(path: Path, name: str, task: Letters, should_stop: Any = lambda: False) -> Outcome:
    """One worker on the run, to its end."""
    plan = manifest.read(path / "manifest.parquet")
    run = RunDirectory(path, plan.facts.suffix)
    leases = Leases(run, name, TTL, ATTEMPTS)
    history = ledger.Ledger(run.ledger / f"{name}.jsonl", host="here", job="", pid=os.getpid())
    recipe = Recipe(name="letters")
    context = Context(run, recipe, plan, task, leases, history, _no_engine, should_stop)
    try:
        return ItemLoop(context, task).work()
    finally:
        leases.close()
        history.close()


def _no_engine() -> Any:
    raise AssertionError("items start their own")


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], Letters())
