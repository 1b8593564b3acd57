"""An engine that is away, cannot start or answers nobody is no row's fault: no attempt, nobody in quarantine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.run import status
from hala_hpc.worker import revival
from hala_hpc.worker.job import work_until
from hala_hpc.worker.task import Outcome
from tests.engines.test_openai import Server
from tests.worker.helpers import asked, events, leftovers, plan, proof, quarantined, rows, texts, unbroken


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(revival, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(revival, "LONGEST_WAIT", 0.2)
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    yield


def work(run: Path) -> Outcome:
    return work_until(run, lambda: False)


def attempts(run: Path) -> set[int]:
    return {event["attempt"] for event in events(run, "claimed")}


def test_rows_wait_for_an_endpoint_that_was_down_and_all_are_done(tmp_path: Path) -> None:
    """Attempt three and four are those that send rows alone: they too must not blame a row."""
    server = Server()
    server.shutdown()
    server.server_close()  # its port is closed now
    options = {"url": server.url, "retries": 0, "patience_seconds": 0.3, "concurrency": 2}
    run = plan(tmp_path, texts(4), kind="openai", **options)
    for _ in range(4):
        with pytest.raises(HalaError, match=r"out of reach.*APIConnectionError.*hala resume"):
            work(run)
        assert leftovers(run) == []
    assert attempts(run) == {1} and events(run, "abandoned") == []
    assert "out of reach" in status.read(run, 60.0, 5).errors[-1]["error"]
    again = Server(server.server_port)
    try:
        assert work(run) is Outcome.FINISHED
    finally:
        again.shutdown()
        again.server_close()
    assert quarantined(run) == {} and proof(run).proven
    assert [row["text_ar"] for row in rows(run)] == [f"<{text}>" for text in texts(4)]


@pytest.mark.parametrize("failed", [0, 2])
def test_an_engine_that_goes_away_in_the_middle_is_waited_for(tmp_path: Path, failed: int) -> None:
    away = tmp_path / "away"
    run = plan(tmp_path, texts(30), capacity=4, away=str(away))
    if failed:  # the shard goes row by row then
        (run / "leases" / "000" / f"000000.{failed}.failed").touch()
    turns = 0

    def should_stop() -> bool:
        nonlocal turns
        turns += 1
        if turns == 5:
            away.touch()
        if events(run, "unreachable") and turns % 7 == 0:
            away.unlink(missing_ok=True)
        return False

    assert work_until(run, should_stop) is Outcome.FINISHED
    assert rows(run) == unbroken(30)
    assert len(events(run, "unreachable")) == 1 and events(run, "abandoned") == []
    assert max(attempts(run)) == failed + 1
    assert max(asked(run).values()) <= 2


def test_a_signal_ends_the_wait_and_no_attempt_counts(tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.touch()
    run = plan(tmp_path, texts(4), away=str(away))
    assert work_until(run, lambda: len(events(run, "unreachable")) > 0) is Outcome.STOPPED
    assert leftovers(run) == []
    away.unlink()
    work(run)
    assert rows(run) == unbroken(4) and attempts(run) == {1}


def test_a_row_that_an_engine_always_fails_at_is_set_aside_while_it_answers_others(tmp_path: Path) -> None:
    run = plan(tmp_path, [*texts(12), "cursed"], away_on="cursed")
    assert work(run) is Outcome.FINISHED
    assert list(quarantined(run)) == ["cursed"] and quarantined(run)["cursed"].startswith("unanswered: ")
    assert proof(run).done == 12 and attempts(run) == {1}


def test_an_engine_that_does_not_start_again_counts_against_no_row(tmp_path: Path) -> None:
    """Rows alone, an engine that died, and none in its place: a driver's fault, not theirs."""
    broken = tmp_path / "broken"
    run = plan(tmp_path, [*texts(4), "poison"], crash_on="poison", broken=str(broken))
    (run / "leases" / "000" / "000000.2.failed").touch()
    marked = False

    def should_stop() -> bool:
        nonlocal marked
        if not marked and asked(run)["poison"]:
            marked = True
            broken.touch()
        return False

    with pytest.raises(HalaError, match=r"the engine does not start: RuntimeError: .*broken is there"):
        work_until(run, should_stop)
    assert events(run, "abandoned") == []
    broken.unlink()
    (run / "leases" / "000" / "000000.2.failed").unlink()
    assert work(run) is Outcome.FINISHED
    assert quarantined(run).keys() == {"poison"}, "it is to blame once other engines answered others"
    assert len(events(run, "crashed")) == 4


def test_an_engine_that_starts_and_answers_nobody_counts_against_no_row(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(20), crash_on="")
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("crash_on: ''", "crash_on: '1'"))
    with pytest.raises(HalaError, match="5 engines in a row died, the last: crash_on: 1"):
        work(run)
    assert events(run, "abandoned") == [] and leftovers(run) == []


@pytest.mark.parametrize(("code", "hint"), [(401, "key_variable"), (403, "may this key"), (404, "model.name")])
def test_a_refusal_of_all_requests_ends_the_worker_at_once_in_a_clear_line(
    tmp_path: Path, code: int, hint: str
) -> None:
    server = Server()
    try:
        run = plan(tmp_path, [f"{code} {n}" for n in range(4)], kind="openai", url=server.url)
        with pytest.raises(HalaError, match=rf"refuses every request \({code}\): .*{hint}"):
            work(run)
    finally:
        server.shutdown()
        server.server_close()
    assert events(run, "abandoned") == [] and leftovers(run) == []


def test_how_long_an_engine_took_to_load_is_in_the_ledger(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(2), start_seconds=0.1)
    work(run)
    assert [event["seconds"] >= 0.1 for event in events(run, "loaded")] == [True]
