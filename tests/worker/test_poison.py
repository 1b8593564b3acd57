"""Rows that kill, engines that hang, sources that change: everything else is done all the same."""

from pathlib import Path

from hala_hpc.run import status
from tests.worker.helpers import (
    asked,
    events,
    finish,
    leftovers,
    plan,
    proof,
    quarantined,
    rows,
    start,
    texts,
    unbroken,
)


def poisoned(count: int, *places: int) -> list[str]:
    return ["poison" if number in places else text for number, text in enumerate(texts(count))]


def test_a_row_that_ends_the_engine_goes_to_quarantine_and_one_worker_does_all_others(tmp_path: Path) -> None:
    run = plan(tmp_path, poisoned(45, 17), crash_on="poison")
    finish(run)
    assert proof(run).proven
    assert quarantined(run)["poison"].startswith("worker died: ")
    assert [row for row in rows(run) if not row["hala_error"]] == [row for row in unbroken(45) if row["hala_row"] != 17]
    assert asked(run)["poison"] == 3  # twice among others, once alone
    assert len(events(run, "crashed")) == 3
    assert {shard for event in events(run, "crashed") for shard in event["shards"]} >= {1}
    assert leftovers(run) == []


def test_a_row_that_kills_its_process_goes_to_quarantine(tmp_path: Path) -> None:
    run = plan(tmp_path, poisoned(30, 14), die_on="poison", run={"lease_seconds": 0.8})
    codes = []
    while not codes or codes[-1] != 0:
        process = start(run)
        process.communicate(timeout=60)
        codes.append(process.returncode)
        assert len(codes) < 8
    assert codes == [-9, -9, -9, 0]
    verdict = proof(run)
    assert verdict.proven
    assert verdict.quarantined == {"worker died": 1}
    assert list(quarantined(run)) == ["poison"]
    assert verdict.done == 29
    # One that is killed between publishing a shard and clearing up after it leaves its rows and its lease; nobody heeds
    # them any more.
    assert not [name for name in leftovers(run) if not name.startswith(("partial/000/000000.", "leases/000/000000."))]


def test_a_worker_whose_engine_hangs_ends_itself_and_others_can_go_on(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(10), seconds=1000.0, run={"stall_seconds": 1.0})
    said = finish(run, code=1)
    assert "Timeout" in said
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("1000.0", "0.0"))  # what was wrong with the engine was mended
    finish(run)
    assert rows(run) == unbroken(10)


def test_a_shard_whose_source_changed_is_set_aside_and_the_others_are_done(tmp_path: Path) -> None:
    run = plan(tmp_path, texts(60), capacity=2, seconds=0.01)
    data = tmp_path / "r.jsonl"
    data.write_text(data.read_text().replace("text 25", "TEXT 25"))
    finish(run, code=1)
    state = status.read(run, 60.0, 5)
    assert (state.done, state.failed) == (5, 1)
    assert "changed since the run was planned" in state.errors[-1]["error"]
    assert [event["outcome"] for event in events(run, "ended")] == ["gave up"]
    finish(run)  # another has nothing to do, and failed at nothing
    verdict = proof(run)
    assert not verdict.proven
    assert (verdict.done, verdict.missing_shards, verdict.problems) == (50, 1, [])
