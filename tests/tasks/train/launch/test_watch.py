"""Ranks that hang, crash and stop: what the launcher sees, and whom it blames. The ranks are real processes."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run.ledger import Ledger
from hala_hpc.run.ledger import read as events
from hala_hpc.tasks.train import checkpoints, paths
from hala_hpc.tasks.train.launch import launcher as train_launch
from hala_hpc.tasks.train.launch import signs, stacks
from hala_hpc.tasks.train.launch.launcher import Ended, How, Watched
from hala_hpc.tasks.train.launch.stacks import RankState
from hala_hpc.tasks.train.launch.step import Allocation
from hala_hpc.tasks.train.options import Watchdog
from tests.conftest import ROOT
from tests.damaged import hala
from tests.tasks.train.test_progress import training_run
from tests.worker.helpers import wait_until

QUICK = Watchdog(stall_factor=5, stall_seconds=4, start_seconds=30)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parts of a run directory that ranks touch, and ranks that take orders."""
    for name in ("ledger", "logs/ranks", "partial/000"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(train_launch, "RANK", "tests.tasks.train.launch.rank_program")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}")
    return tmp_path


def order(run: Path, **orders: Any) -> None:
    (run / "orders.json").write_text(json.dumps({"steps": 5, "seconds": 0.2, **orders}))


def started(run: Path, ranks: int = 2, name: str = "one", watch: Watchdog = QUICK) -> Watched:
    where = Allocation(("here",), ranks, 1, 0, None, (sys.executable,), (), "127.0.0.1", None)
    return Watched(run, name, where, watch, Ledger(run / "ledger" / f"{name}.jsonl"))


def see_through(
    watched: Watched, should_stop: Callable[[], bool] = lambda: False, is_ours: Callable[[], bool] = lambda: True
) -> Ended:
    return watched.watch(should_stop, is_ours, lambda: None)


def pid_of(run: Path, rank: int, step: int = 1, name: str = "one") -> int:
    """Of the rank, once it is at this step."""
    wait_until(lambda: (found := signs.heartbeats(run, name).get(rank)) is not None and found.step >= step)
    return signs.heartbeats(run, name)[rank].pid


def assert_gone(*pids: int) -> None:
    """A process that was killed is there for a moment still, on busy cores for a longer one."""
    wait_until(lambda: all(stacks.process_state(pid) in ("", "Z") for pid in pids), 10)


def later(what: Callable[[], None]) -> None:
    threading.Thread(target=what, daemon=True).start()


def test_trained(run: Path) -> None:
    order(run)
    assert see_through(started(run)) == Ended(How.TRAINED)


def test_a_stop_reaches_all_ranks_and_none_is_killed_while_it_saves(run: Path) -> None:
    order(run, steps=1000)
    watched = started(run, ranks=3)
    pid_of(run, 2)
    assert see_through(watched, should_stop=lambda: True) == Ended(How.STOPPED)
    assert sorted((end.rank, end.code) for end in signs.ends_so_far(run, "one")) == [(0, 85), (1, 85), (2, 85)]
    assert checkpoints.newest_step(run / paths.CHECKPOINTS) >= 1


def test_ranks_may_stop_by_themselves(run: Path) -> None:
    """Before the end of the job there has to be time to save, which they know best."""
    order(run, at={"0": {"3": 85}, "1": {"3": 85}})
    assert see_through(started(run)) == Ended(How.STOPPED)


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGSEGV, 1, 3])
def test_one_that_dies_ends_all_at_once(run: Path, code: int) -> None:
    order(run, steps=1000, at={"1": {"2": code}})
    watched = started(run)
    survivor = pid_of(run, 0)
    ended = see_through(watched)
    assert ended.how is How.CRASHED and "rank 1 on here" in ended.reason
    assert ended.node == ("here" if code < 0 else None), "a bug of ours is not the node's fault"
    assert_gone(survivor)


def test_status_shows_the_exception_that_ended_a_rank(tmp_path: Path) -> None:
    """Of the real program of a rank, here, where there is no torch."""
    run = training_run(tmp_path / "r")
    ended = see_through(started(run, ranks=1))
    why = "rank 0 on here ended with 1 (ModuleNotFoundError: No module named 'torch')"
    assert ended.how is How.CRASHED and ended.reason.startswith(why)
    Ledger(run / "ledger" / "one.jsonl").write("crashed", error=ended.reason)  # as the launcher does
    code, shown = hala("status", run)
    assert code == 0 and why in " ".join(shown.split())


def test_stopped_for_good_says_why(run: Path) -> None:
    order(run, at={"0": {"2": 86}, "1": {"2": 86}})
    (run / "training").mkdir()
    (run / "training" / "failure.json").write_text(json.dumps({"step": 2, "reason": "the loss is nan"}))
    assert see_through(started(run)) == Ended(How.FAILED, "step 2: the loss is nan")


def test_a_stopped_rank_is_named_with_stacks(run: Path) -> None:
    order(run, steps=1000)
    watched = started(run, ranks=3)
    pids = [pid_of(run, rank) for rank in range(3)]
    later(lambda: (time.sleep(1), os.kill(pids[1], signal.SIGSTOP))[0])
    ended = see_through(watched)
    assert ended.how is How.HUNG and ended.node == "here"
    assert "rank 1 on here: its process is stopped" in ended.reason
    written = "".join(file.read_text() for file in (run / "training" / "stacks").glob("*.txt"))
    assert all(f"=== rank {rank}: pid {pids[rank]} on here" in written for rank in range(3))
    (event,) = [event for event in events(run / "ledger" / "one.jsonl") if event["event"] == "stalled"]
    assert event["rank"] == 1 and event["node"] == "here"
    assert_gone(*pids)  # the stopped one too


def test_a_rank_that_lags_is_named(run: Path) -> None:
    """Rank 0 hangs in its data with a beating heart; the other goes on, so it is ahead when the watchdog looks."""
    order(run, steps=1000, at={"0": {"3": "hang"}})
    ended = see_through(started(run))
    assert ended.how is How.HUNG and "no step has ended for" in ended.reason
    assert "rank 0 on here: it is at step 2 (data)" in ended.reason


def test_a_training_that_was_taken_over_ends(run: Path) -> None:
    order(run, steps=1000)
    watched = started(run)
    pid = pid_of(run, 0)
    assert see_through(watched, is_ours=lambda: False).how is How.LOST
    assert_gone(pid)


def test_ranks_do_not_outlive_their_launcher(run: Path) -> None:
    order(run, steps=1000)
    script = (
        "import sys; from pathlib import Path; from tests.tasks.train.launch.test_watch import started, train_launch\n"
        "train_launch.RANK = 'tests.tasks.train.launch.rank_program'; started(Path(sys.argv[1]))\n"
        "import signal; signal.pause()"
    )
    import subprocess

    launcher = subprocess.Popen([sys.executable, "-c", script, str(run)], cwd=ROOT)
    pids = [pid_of(run, rank) for rank in range(2)]
    launcher.kill()
    launcher.wait()
    assert_gone(*pids)


# --- whom to blame ----------------------------------------------------------------------------------------------------

FINE = {"step": 7, "phase": "forward and backward", "state": "S", "is_waiting": True}


def ranks(**odd: Any) -> list[RankState]:
    return [RankState(rank, **(FINE | (odd if rank == 2 else {}))) for rank in range(4)]


@pytest.mark.parametrize(
    ("seen", "silent", "rank", "why"),
    [
        (ranks(state="T"), {}, 2, "stopped"),
        (ranks(state=""), {}, 2, "gone"),
        (ranks(step=6), {}, 2, "at step 6"),
        (ranks(is_waiting=False), {}, 2, "while others wait"),
        (ranks(phase="data"), {}, 2, "in data"),
        (ranks(state="D"), {2: 300.0}, 2, "waiting for a disk"),
        (ranks()[:3], {}, 3, "did not answer"),
        (ranks(), {}, None, "network"),
    ],
)
def test_culprit(seen: list[RankState], silent: dict[int, float], rank: int | None, why: str) -> None:
    found, reason = stacks.culprit(seen, silent, 4)
    assert found == rank and why in reason
