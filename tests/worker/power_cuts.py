"""Small runs on a file system that remembers what was not durable, and how each goes on after a power cut.

A run is done once, unbroken, on the FUSE file system of ``tests.faultfs``, which notes every change in a journal; so
does the run, of all that the product says to be durable. Each cut then costs no run from its start: the journal says
what the disk may hold after any number of changes, that is written to a plain folder, and the run goes on from there.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.data import shards
from hala_hpc.data.outputs import collect
from hala_hpc.run import appending, manifest, publishing
from hala_hpc.run.collect import collect_folders
from hala_hpc.run.layout import RunDirectory
from hala_hpc.tasks.mix import assemble
from hala_hpc.tasks.train.checkpoints import Checkpoints
from hala_hpc.worker.job import work_until
from hala_hpc.worker.task import Outcome
from tests.faultfs import journal
from tests.faultfs.mount import Mounted, mounted
from tests.tasks.mix import mixes
from tests.worker.helpers import plan, rows, texts, unbroken

ROWS, PER_SHARD = 24, 8
STEPS = 4
MIXED = 12


@dataclass(frozen=True)
class Scenario:
    """``record`` does all of it, unbroken; ``go_on`` checks what was said, and does the rest, in another folder."""

    name: str
    record: Callable[[Mounted], None]
    go_on: Callable[[Path, Path, Sequence[dict[str, Any]]], None]


# --- a run of rows ----------------------------------------------------------------------------------------------------


def plan_rows(inputs: Path, disk: Path) -> Path:
    quick = {"root": str(disk / "runs"), "shard_rows": PER_SHARD, "flush_seconds": 0.005, "lease_seconds": 60.0}
    return plan(inputs, texts(ROWS), run=quick, capacity=1, seconds=0.004)


def record_rows(disk: Mounted) -> None:
    inputs = disk.path.parent / "inputs"
    inputs.mkdir()
    run = plan_rows(inputs, disk.path)
    disk.mark(planned=True)
    with noting(disk):
        assert work_until(run, lambda: False) is Outcome.FINISHED
    collect.collect(run, disk.path / "out")
    disk.mark(collected=True)
    assert rows(run) == unbroken(ROWS)


def go_on_with_rows(disk: Path, inputs: Path, said: Sequence[dict[str, Any]]) -> None:
    path, out = disk / "runs" / "r", disk / "out"
    if {"planned": True} not in said and not path.exists():
        plan_rows(inputs, disk)
    hold(path, said)
    assert work_until(path, lambda: False) is Outcome.FINISHED
    run, planned = manifest.open_run(path)
    for shard in planned:
        report = shards.check_output(shard, run.shard_output(shard.id), planned.facts, ())
        assert report.problems == (), f"shard {shard.id}: {report.problems}"
    assert rows(path) == unbroken(ROWS)
    if {"collected": True} not in said and not out.exists():
        collect.collect(path, out)
    verdict = collect.verify(out)
    assert verdict.problems == [] and verdict.rows == ROWS


def hold(path: Path, said: Sequence[dict[str, Any]]) -> None:
    """Hold what is there after a cut against what had been said."""
    run, planned = manifest.open_run(path)
    assert (path / "recipe.yaml").read_text().startswith("# ")
    for shard in [mark["published"] for mark in said if "published" in mark]:
        problems = shards.check_output(planned[shard], run.shard_output(shard), planned.facts, ()).problems
        assert problems == (), f"shard {shard} was published: {problems}"
    for shard, numbers in [mark["kept"] for mark in said if "kept" in mark]:
        if not run.shard_output(shard).exists():
            lost = set(numbers) - appending.read(run, shard).keys()
            assert not lost, f"rows {sorted(lost)} of shard {shard} were kept"


@contextmanager
def noting(disk: Mounted) -> Iterator[None]:
    """Within: what the product returns from, having said it to be durable, is noted in the journal."""
    flush, publish = appending.Appender.flush, publishing.publish

    def flush_and_note(self: appending.Appender) -> None:
        numbers = [json.loads(line.partition(b"\t")[0])["row"] for line in self._pending]
        flush(self)
        if numbers and isinstance(self, appending.PartialFile):
            disk.mark(kept=[int(self.path.name[:6]), numbers])

    def publish_and_note(run: RunDirectory, shard: int, *how: Any) -> bool:
        won = publish(run, shard, *how)
        if won:
            disk.mark(published=shard)
        return won

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appending.Appender, "flush", flush_and_note)
        patch.setattr(publishing, "publish", publish_and_note)
        yield


# --- the last step of a run of items ----------------------------------------------------------------------------------


def plan_mix(inputs: Path, disk: Path) -> Path:
    run = {"root": disk / "runs", "shard_rows": MIXED // 2, "lease_seconds": 60.0}
    return mixes.plan(inputs, {"talk": {"rows": mixes.chats(MIXED)}}, run=run)


def record_mix(disk: Mounted) -> None:
    inputs = disk.path.parent / "inputs"
    inputs.mkdir()
    run = plan_mix(inputs, disk.path)
    disk.mark(planned=True)
    assert work_until(run, lambda: False, "one") is Outcome.FINISHED
    disk.mark(final=True)
    collect_folders(run, disk.path / "out")
    disk.mark(collected=True)


def go_on_with_mix(disk: Path, inputs: Path, said: Sequence[dict[str, Any]]) -> None:
    path, out = disk / "runs" / "mix", disk / "out"
    if {"planned": True} not in said and not path.exists():
        plan_mix(inputs, disk)
    assert {"final": True} not in said or assemble.faults(path / "final", MIXED) == []
    assert work_until(path, lambda: False, "two") is Outcome.FINISHED
    assert assemble.faults(path / "final", MIXED) == []
    if {"collected": True} not in said and not out.exists():
        collect_folders(path, out)
    assert collect.verify(out).rows == MIXED


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save(checkpoints: Checkpoints, step: int) -> None:
    """As a trainer does: it makes folders and files, and syncs none of them."""
    weights = checkpoints.path(step) / "model" / "weights.bin"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(bytes([step]) * 5_000)
    (checkpoints.path(step) / "trainer_state.json").write_text(json.dumps({"step": step}))
    checkpoints.mark(step, world=1, stage=0, seconds=0.1)


def record_checkpoints(disk: Mounted) -> None:
    checkpoints = Checkpoints(disk.path / "training" / "checkpoints", keep=1)
    for step in range(1, STEPS + 1):
        save(checkpoints, step)
        disk.mark(saved=step)


def go_on_with_checkpoints(disk: Path, inputs: Path, said: Sequence[dict[str, Any]]) -> None:
    checkpoints = Checkpoints(disk / "training" / "checkpoints", keep=1)
    at = max((mark["saved"] for mark in said), default=0)
    found = checkpoints.newest_whole(print)
    step = found.step if found else 0
    assert step >= at, f"step {at} was saved, and {step} is the newest that is whole"
    for later in range(step + 1, STEPS + 2):
        checkpoints.set_aside()
        save(checkpoints, later)
    last = checkpoints.newest_whole(print)
    assert last is not None and last.step == max(step, STEPS + 1)
    assert (last.path / "model" / "weights.bin").read_bytes() == bytes([last.step]) * 5_000


SCENARIOS = (
    Scenario("rows", record_rows, go_on_with_rows),
    Scenario("last step", record_mix, go_on_with_mix),
    Scenario("checkpoints", record_checkpoints, go_on_with_checkpoints),
)


# --- cuts -------------------------------------------------------------------------------------------------------------


def recorded(scenario: Scenario, folder: Path) -> list[journal.Operation]:
    """The journal of an unbroken run. Its inputs are in ``folder / "inputs"``."""
    with mounted(folder) as disk:
        scenario.record(disk)
        return journal.read(disk.journal)


Cut = tuple[int, int]
"""After how many changes, and the seed of what is left of those that were not synced."""


def every_cut(operations: Sequence[journal.Operation], seeds: int) -> list[Cut]:
    """Every boundary with so many seeds."""
    return [(at, seed) for at in journal.boundaries(operations) for seed in range(seeds)]


def losses(
    scenario: Scenario, folder: Path, operations: Sequence[journal.Operation], cuts: Sequence[Cut]
) -> Iterator[str]:
    """Go on after each cut, and say at which something was lost. A state of the disk that was tried is passed over."""
    seen: set[tuple[int, int]] = set()
    memory = Path("/dev/shm")  # where an fsync costs nothing
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as scratch:
        for at, disk in journal.disks(operations, {at for at, _ in cuts}):
            for seed in [seed for boundary, seed in cuts if boundary == at]:
                image = disk.after_cut(seed)
                if (state := (image.key(), len(disk.marks))) in seen:
                    continue
                seen.add(state)
                place = Path(scratch, "after")
                image.write(place)
                try:
                    scenario.go_on(place, folder / "inputs", disk.marks)
                except Exception as error:  # noqa: BLE001 (whatever goes wrong after a cut is a loss)
                    yield f"{scenario.name}, {at} changes, seed {seed}: {type(error).__name__}: {error}"
                finally:
                    shutil.rmtree(place)
