"""Checkpoints that do not fit, of real trainings on a real small disk: waited for, or one line, and nothing is lost."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.tasks.train import checkpoints, paths
from tests.conftest import Hala, TinyModel
from tests.tasks.train.rank import trainings
from tests.work import work_python
from tests.worker.helpers import wait_until

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]
__all__ = ["work_python"]

NO_SPACE = "no space left on device"
Planned = Callable[..., Path]


@pytest.fixture
def planned(hala: Hala, tiny_model: TinyModel, data: Path, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A training that saves after each third step, on a tmpfs of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk]
    if said := subprocess.run(words, capture_output=True, text=True, check=False).stderr:
        pytest.skip(f"mount: {said.strip()}")

    def plan(**task: Any) -> Path:
        chat = {"path": str(data / "instructions/alpaca_52k"), "kind": "chat", "limit": 24}
        options = {"epochs": 4, "batch": {"sequences": 4, "per_device": 2}, "save": {"steps": 3, "keep": 1}}
        run = trainings.plan(hala, tiny_model("gemma2"), {"chat": chat}, **options, **task)
        shutil.copytree(run, disk / "tiny", symlinks=True)
        return disk / "tiny"

    yield plan
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(run: Path) -> Path:
    """Take all room but for some 100 kB, once there is a checkpoint."""
    wait_until(lambda: checkpoints.newest_step(run / paths.CHECKPOINTS) >= 3, 280)
    filler = run.parent / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(run).free - 100_000))
    return filler


def said(run: Path, launch: str) -> str:
    return (run / "logs" / f"{launch}.0.log").read_text()


@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpoint_waits_for_room(planned: Planned, work_python: Path, world: int) -> None:
    run = planned()
    ranks = trainings.start(work_python, run, world, "full")
    filler = fill(run)
    wait_until(lambda: NO_SPACE in said(run, "full"), 120)
    assert checkpoints.newest_step(run / paths.CHECKPOINTS) >= 3 and not checkpoints.faults(run / paths.CHECKPOINTS)
    threading.Timer(2.0, filler.unlink).start()
    assert trainings.wait(ranks) == [0] * world, said(run, "full")[-3000:]
    assert "waited for, no shard counts it" in said(run, "full") and "back after" in said(run, "full")
    assert not checkpoints.faults(run / paths.CHECKPOINTS) and (run / paths.EXPORTED).exists()
    losses = trainings.losses(run, "full")
    assert len(losses) == len(set(losses)) >= 6
    assert checkpoints.newest_step(run / paths.CHECKPOINTS) == len(losses)


def test_it_ends_with_one_line_where_that_takes_too_long(
    planned: Planned, work_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "RANK", "tests.tasks.train.rank.impatient_rank")
    run = planned()
    ranks = trainings.start(work_python, run, 1, "full")
    filler = fill(run)
    assert trainings.wait(ranks) == [2], said(run, "full")[-3000:]
    last = said(run, "full").splitlines()[-1]
    assert last.startswith(f"hala: error: {run}: {NO_SPACE}") and "free some space there; then `hala resume" in last
    [saved] = checkpoints.complete(run / paths.CHECKPOINTS)
    assert not checkpoints.faults(run / paths.CHECKPOINTS)
    filler.unlink()
    after = trainings.train_whole(work_python, run, 1, "again")
    assert f"resuming after step {saved.step}" in said(run, "again") and after
