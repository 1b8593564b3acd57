"""An output appears whole, once; a kill at any moment leaves nothing or all of it."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.run import appending
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.publishing import publish
from tests.run.helpers import bare_run

fork = multiprocessing.get_context("fork")
STEPS = ("fsync", "link", "rename", "unlink")
forms = pytest.mark.parametrize("suffix", [".txt", ""], ids=["file", "folder"])


def build(run: RunDirectory, name: str, parts: int = 3) -> Path:
    temporary = appending.temporary_output(run, 0, name)
    if run.suffix:
        temporary.write_text(name * parts)
    else:
        (temporary / "in").mkdir(parents=True)
        for part in range(parts):
            (temporary / "in" / f"{part}.txt").write_text(name)
    return temporary


def text_of(output: Path) -> str:
    return (
        "".join(file.read_text() for file in sorted(output.rglob("*.txt"))) if output.is_dir() else output.read_text()
    )


@forms
def test_the_second_is_refused_and_its_work_removed(tmp_path: Path, suffix: str) -> None:
    run = bare_run(tmp_path, 1, suffix)
    first, second = build(run, "ada"), build(run, "bo")
    assert publish(run, 0, first)
    assert not publish(run, 0, second)
    assert text_of(run.shard_output(0)) == "ada" * 3
    assert not first.exists()
    assert not second.exists()


@forms
def test_work_that_the_first_swept_away_is_refused_too(tmp_path: Path, suffix: str) -> None:
    run = bare_run(tmp_path, 1, suffix)
    first, second = build(run, "ada"), build(run, "bo")
    assert publish(run, 0, first)
    appending.drop(run, 0)
    assert not second.exists()
    assert not publish(run, 0, second)
    assert text_of(run.shard_output(0)) == "ada" * 3


def test_without_any_output_a_missing_file_is_an_error(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        publish(run, 0, tmp_path / "nowhere.txt")


@forms
def test_a_kill_before_any_step_leaves_nothing_or_all(tmp_path: Path, suffix: str) -> None:
    ends = []
    for survived in range(20):
        run = bare_run(tmp_path / str(survived), 1, suffix)
        temporary = build(run, "ada")
        process = fork.Process(target=publish_and_die, args=(run, temporary, survived))
        process.start()
        process.join(30)
        ends.append(process.exitcode)
        output = run.shard_output(0)
        there = output.exists()
        assert not there or text_of(output) == "ada" * 3
        assert publish(run, 0, build(run, "bo")) is not there
        assert text_of(output) == ("ada" if there else "bo") * 3
        appending.drop(run, 0)
        assert list(run.partial_folder(0).iterdir()) == []
    assert ends[0] == 9
    assert ends[-1] == 0  # so every step was a last one once


def publish_and_die(run: RunDirectory, temporary: Path, survived: int) -> None:
    """End the process before the system call that follows so many others."""
    left = [survived]

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return call(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    publish(run, 0, temporary)
    os._exit(0)


@forms
def test_a_kill_at_a_random_moment_leaves_nothing_or_all(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(0)
    for turn in range(25):
        run = bare_run(tmp_path / str(turn), 1, suffix)
        process = fork.Process(target=lambda run=run: publish(run, 0, build(run, "ada", 50)))
        process.start()
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        output = run.shard_output(0)
        assert not output.exists() or text_of(output) == "ada" * 50


def test_of_many_that_publish_at_the_same_moment_one_wins(tmp_path: Path) -> None:
    turns, names = 150, ("ada", "bo", "cy", "di")
    run = bare_run(tmp_path, turns)
    together, won = fork.Barrier(len(names)), fork.SimpleQueue()

    def compete(name: str) -> None:
        for shard in range(turns):
            temporary = appending.temporary_output(run, shard, name)
            temporary.write_text(name)
            together.wait(30)
            if publish(run, shard, temporary):
                won.put((shard, name))

    processes = [fork.Process(target=compete, args=(name,)) for name in names]
    for process in processes:
        process.start()
    winners = dict(won.get() for _ in range(turns))
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert won.empty()
    assert {shard: run.shard_output(shard).read_text() for shard in range(turns)} == winners
