"""A checkpoint is complete or not there."""

import json
import random
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.checkpoints import FALLBACK, MARKER, Checkpoints, complete, digests_of, faults


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep=2)


def written(checkpoints: Checkpoints, step: int) -> Path:
    path = checkpoints.path(step)
    path.mkdir()
    (path / "weights").write_bytes(b"w" * 100)
    return path


def test_only_what_is_marked_counts(checkpoints: Checkpoints) -> None:
    written(checkpoints, 5)
    checkpoints.mark(5, world=4, stage=3, seconds=1.5)
    written(checkpoints, 10)  # a kill came before its marker
    assert [saved.step for saved in complete(checkpoints.folder)] == [5]
    assert complete(checkpoints.folder)[0].world == 4


def test_the_newest_is_by_its_step_and_not_by_its_name(checkpoints: Checkpoints) -> None:
    for step in (9, 10):
        written(checkpoints, step)
        checkpoints.mark(step, 1, 0, 0.0)
    assert [saved.step for saved in complete(checkpoints.folder)] == [10, 9]


def test_a_copy_under_another_name_is_not_a_checkpoint(checkpoints: Checkpoints) -> None:
    """Else the training would go on from what somebody has put aside."""
    for step in (5, 10):
        written(checkpoints, step)
        checkpoints.mark(step, 1, 0, 0.0)
    checkpoints.path(10).rename(checkpoints.folder / "checkpoint-10-aside")
    assert [saved.step for saved in complete(checkpoints.folder)] == [5]
    whole = checkpoints.newest_whole(print)
    assert whole is not None
    assert whole.step == 5


def test_older_ones_are_dropped(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3):
        written(checkpoints, step)
        checkpoints.mark(step, 1, 0, 0.0)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_a_partial_one_is_set_aside_until_the_next_complete_one(checkpoints: Checkpoints) -> None:
    written(checkpoints, 5)
    (aside,) = checkpoints.set_aside()
    assert not checkpoints.path(5).exists()
    assert (aside / "weights").exists()
    written(checkpoints, 5)
    checkpoints.mark(5, 1, 0, 0.0)
    assert not aside.exists()


def test_a_kill_while_an_old_one_is_dropped_leaves_none_that_is_hollow(checkpoints: Checkpoints) -> None:
    path = written(checkpoints, 1)
    checkpoints.mark(1, 1, 0, 0.0)
    (path / MARKER).unlink()  # the first thing that dropping does
    assert complete(checkpoints.folder) == []


def test_the_marker_tells_what_a_resume_must_know(checkpoints: Checkpoints) -> None:
    written(checkpoints, 7)
    checkpoints.mark(7, world=8, stage=2, seconds=3.25)
    said = json.loads((checkpoints.path(7) / MARKER).read_text())
    assert said.pop("seal")
    assert said == {
        "step": 7,
        "world": 8,
        "stage": 2,
        "seconds": 3.25,
    }


def test_twenty_flips_in_any_file_are_found_and_the_checkpoint_before_is_used(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        (written(checkpoints, step) / "zero_pp_rank_1_optim.pt").write_bytes(bytes(range(100)))
        ranks = [digests_of(checkpoints.path(step), rank, 2) for rank in range(2)]
        assert "zero_pp_rank_1_optim.pt" in ranks[1]
        checkpoints.mark(step, 2, 2, 0.0, ranks[0] | ranks[1])
    newest = checkpoints.path(2)
    assert faults(checkpoints.folder) == {}
    drawn = random.Random(5)
    for number in range(20):
        path = sorted(newest.iterdir())[number % 4]
        whole = path.read_bytes()
        place = drawn.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << drawn.randrange(8)]) + whole[place + 1 :])
        assert list(faults(checkpoints.folder)) == [newest], (path.name, place)
        path.write_bytes(whole)
    (newest / "weights").write_bytes(b"v" * 100)
    said: list[str] = []
    saved = checkpoints.newest_whole(said.append)
    assert saved is not None
    assert saved.step == 1
    assert said == ["checkpoint-2 is damaged and is not used: weights is not what was written (its digest differs)"]
    assert not newest.exists()
    note = json.loads((checkpoints.folder / FALLBACK).read_text())
    assert note.pop("time") > 0
    assert note == {"step": 1, "damaged": {"checkpoint-2": "weights is not what was written (its digest differs)"}}
    (checkpoints.path(1) / "weights").unlink()
    with pytest.raises(HalaError, match="every checkpoint is damaged"):
        checkpoints.newest_whole(said.append)
    assert checkpoints.path(1).exists()


def test_what_others_may_write_to_is_not_loaded(checkpoints: Checkpoints) -> None:
    path = written(checkpoints, 1)
    (path / "weights").chmod(0o666)
    checkpoints.mark(1, 1, 0, 0.0)
    assert (path / "weights").stat().st_mode & 0o022 == 0
    assert [saved.step for saved in complete(checkpoints.folder)] == [1]
    (path / "weights").chmod(0o664)
    with pytest.raises(HalaError, match="other users may write to it"):
        complete(checkpoints.folder)
