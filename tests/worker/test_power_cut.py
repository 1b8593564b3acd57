"""The power fails after any write of a small run: what was said to be durable is there, and the run goes on to its end.

Each run is recorded once, unbroken, on a file system of our own by FUSE; a cut at any of its changes is then a folder
that is made from the journal (see ``power_cuts``). So a cut costs a fraction of a second, and thousands can be tried:
a few hundred here, all of them with several seeds by ``-m exhaustive``.
"""

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config import compose
from hala_hpc.run import appending, files, publishing
from hala_hpc.tasks.train import checkpoints
from hala_hpc.worker import job
from tests.worker.power_cuts import SCENARIOS, Scenario, every_cut, losses, recorded

SEEDS = 8
SOME = {"rows": 150, "last step": 150, "checkpoints": 400}
"""Cuts in the short form."""


@pytest.fixture(autouse=True)
def _recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each of the same few recipes is parsed once: that takes ten times as long as all else after a cut."""
    parsed = cache(lambda text, path, options: compose.thaw(path, options))
    monkeypatch.setattr(job, "thaw", lambda path, options: parsed(path.read_text(), path, options))
    yield


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_nothing_that_was_durable_is_lost(scenario: Scenario, tmp_path: Path) -> None:
    operations = recorded(scenario, tmp_path)
    cuts = random.Random(1).sample(every_cut(operations, SEEDS), SOME[scenario.name])
    assert list(losses(scenario, tmp_path, operations, cuts)) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_nothing_that_was_durable_is_lost_at_any_cut(scenario: Scenario, tmp_path: Path) -> None:
    operations = recorded(scenario, tmp_path)
    cuts = every_cut(operations, SEEDS)
    assert len(cuts) > 900
    assert list(losses(scenario, tmp_path, operations, cuts)) == []


fsync = files.fsync


def nothing(path: Path) -> None:
    """In the place of an fsync."""


def only_folders(path: Path) -> None:
    if path.is_dir():
        fsync(path)


def only_files(path: Path) -> None:
    if not path.is_dir():
        fsync(path)


@pytest.mark.parametrize(
    ("name", "module", "function", "mutant"),
    [
        ("rows", appending, "fsync", nothing),  # a folder in which rows are kept
        ("rows", appending.os, "fsync", lambda descriptor: None),  # every file and folder
        ("rows", publishing, "fsync", only_folders),
        ("rows", publishing, "fsync", only_files),
        ("rows", files, "fsync_tree", nothing),
        ("last step", publishing, "fsync_tree", nothing),
        ("last step", files, "fsync", only_files),
        ("checkpoints", checkpoints, "fsync", nothing),
        ("checkpoints", checkpoints, "fsync_tree", nothing),
    ],
)
def test_an_fsync_that_is_left_out_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: Any, function: str, mutant: Callable[..., None]
) -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, mutant)
        operations = recorded(scenario, tmp_path)
    cuts = reversed(every_cut(operations, 1))  # of the disk that forgets all it may
    assert any(loss for cut in cuts for loss in losses(scenario, tmp_path, operations, [cut]))
