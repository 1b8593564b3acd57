"""Sources that are out of reach for a while: waited for, and no attempt counts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.run import status
from hala_hpc.worker import claims
from hala_hpc.worker.job import work_until
from hala_hpc.worker.task import Outcome
from tests.worker.helpers import asked, events, leftovers, plan, proof, rows, start, texts, unbroken, wait_until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(claims, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(claims, "LONGEST_WAIT", 0.2)
    yield


def with_more_sources(folder: Path, count: int) -> Path:
    """A run of two shards of each source, 10 rows a shard."""
    for number in range(1, count):
        lines = (json.dumps({"text": f"{number} {text}"}) + "\n" for text in texts(20))
        (folder / f"more{number}.jsonl").write_text("".join(lines))
    run = plan(folder, texts(20), data={"path": ["r.jsonl", *(f"more{number}.jsonl" for number in range(1, count))]})
    assert len(status.missing(run)) == 2 * count
    return run


@pytest.mark.parametrize("gone", [1, 4])
def test_they_are_waited_for_while_the_others_are_done(tmp_path: Path, gone: int) -> None:
    run = with_more_sources(tmp_path, 5)
    for number in range(gone):
        (tmp_path / f"more{number + 1}.jsonl").rename(tmp_path / f"aside{number + 1}")

    def should_stop() -> bool:
        others_done = len(events(run, "published")) == 2 * (5 - gone) and len(events(run, "unreachable")) == gone
        if others_done and (tmp_path / "aside1").exists():
            state = status.read(run, 60.0, 5)
            assert state.failed == 0
            assert "gone since the run was planned" in state.errors[-1]["error"]
            assert "waited for" in state.errors[-1]["error"]
            for number in range(gone):
                (tmp_path / f"aside{number + 1}").rename(tmp_path / f"more{number + 1}.jsonl")
        return False

    assert work_until(run, should_stop) is Outcome.FINISHED
    assert proof(run).proven and leftovers(run) == []
    assert {event["attempt"] for event in events(run, "claimed")} == {1}
    assert len(events(run, "unreachable")) == gone, "told once for each source"


def test_what_the_disk_refuses_counts_no_attempt_and_after_a_while_the_worker_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.5)
    run = plan(tmp_path, texts(20))
    data, aside = tmp_path / "r.jsonl", tmp_path / "aside"
    data.rename(aside)
    data.mkdir()  # it is there, and reading it is refused by the system
    with pytest.raises(HalaError, match=r"out of reach for \d+ seconds: .*r.jsonl: is a directory.*hala resume r"):
        work_until(run, lambda: False)
    state = status.read(run, 60.0, 5)
    assert (state.failed, state.waiting, leftovers(run)) == (0, 2, [])
    data.rmdir()
    aside.rename(data)
    assert work_until(run, lambda: False) is Outcome.FINISHED
    assert rows(run) == unbroken(20)


def test_a_worker_goes_on_by_itself_when_they_are_back(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(80), capacity=4, seconds=0.1)
    process = start(run)
    wait_until(lambda: asked(run).total() >= 1)
    (tmp_path / "r.jsonl").rename(tmp_path / "aside.jsonl")
    wait_until(lambda: bool(events(run, "unreachable")))
    (tmp_path / "aside.jsonl").rename(tmp_path / "r.jsonl")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert rows(run) == unbroken(80) and leftovers(run) == []
    assert {event["attempt"] for event in events(run, "claimed")} == {1}
