"""What ledgers say of the time of workers, and of what was done twice: by hand, old ledgers and torn ones too."""

import json
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run import cost, goodput, manifest
from hala_hpc.run.cost import Allocation, Given
from hala_hpc.run.goodput import KILLED, REASONS, Stay, Work
from hala_hpc.run.layout import RunDirectory
from tests.run.helpers import planned_run

Lines = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return planned_run(tmp_path / "r", [100, 100, 50])


def write(run: RunDirectory, name: str, *lines: Lines, end: str = "") -> None:
    (run.ledger / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)


def read(run: RunDirectory) -> Work:
    return goodput.read(run, manifest.read(run.manifest), 60.0)


def line(event: str, time: float, **more: Any) -> Lines:
    return {"event": event, "time": time, **more}


def opening(time: float, **more: Any) -> Lines:
    return line("started", time, host="n1", job="7_0", executor="slurm", **more)


def progress(time: float, rows: int, at: dict[int, int], **more: Any) -> Lines:
    working = {str(shard): done for shard, done in at.items()}
    return line("progress", time, rows=rows, prompt_tokens=2 * rows, output_tokens=rows, working_on=working, **more)


def shard(event: str, time: float, number: int, **more: Any) -> Lines:
    return line(event, time, shard=number, attempt=1, **more)


def test_an_unbroken_run_does_nothing_twice(run: RunDirectory) -> None:
    write(
        run,
        "a",
        opening(100.0),
        shard("claimed", 100, 0, taken_up=0),
        progress(105, 50, {0: 50}, busy=3.0),
        shard("published", 110, 0, done=99, errors=1),
        shard("claimed", 110, 1, taken_up=0),
        progress(115, 140, {1: 40}, busy=12.0),
    )
    (run.workers / "a").touch()
    work = read(run)
    assert (work.done.published, work.done.waiting, dict(work.done.twice)) == (100, 40, {})
    assert work.done.share == 1.0 and work.silent == 0, "it has a heartbeat, and is at work"
    (stay,) = work.stays
    assert (stay.seconds, stay.busy, stay.tokens, stay.has_said_end) == (15.0, 12.0, (280, 140), False)


def test_rows_that_a_killed_worker_had_not_kept_are_done_twice(run: RunDirectory) -> None:
    killed = progress(110, 60, {0: 60}, busy=9.0)
    write(run, "a", opening(100.0), shard("claimed", 100, 0, taken_up=0), killed, end='{"event": "progr')
    taken = [shard("claimed", 200, 0, taken_up=45), shard("published", 220, 0, done=100, errors=0)]
    write(run, "b", opening(190.0), *taken, line("ended", 221, outcome="finished"))
    work = read(run)
    assert dict(work.done.twice) == {KILLED: 15} and work.done.published == 100
    assert work.done.share == pytest.approx(100 / 115) and work.silent == 1


def test_each_reason_by_how_the_attempt_ended(run: RunDirectory) -> None:
    """A worker that woke up and lost, an engine that died, an output that was set aside; and more kept than said."""
    lost = [shard("claimed", 100, 0, taken_up=0), shard("lost", 300, 0, done=80)]
    died = [shard("claimed", 301, 1, taken_up=0), shard("abandoned", 310, 1, done=30)]
    write(run, "a", opening(100.0), *lost, *died, line("ended", 400, outcome="finished"))
    won = [shard("claimed", 200, 0, taken_up=50), shard("published", 250, 0, done=100, errors=0)]
    rest = [shard("claimed", 320, 1, taken_up=20), shard("published", 330, 1, done=100, errors=0)]
    write(run, "b", opening(190.0), *won, *rest, line("ended", 331, outcome="finished"))
    aside = [shard("claimed", 900, 0, taken_up=97), shard("published", 910, 0, done=100, errors=0)]
    write(run, "c", opening(890.0), *aside, line("ended", 911, outcome="finished"))
    work = read(run)
    assert dict(work.done.twice) == {REASONS["lost"]: 30, REASONS["abandoned"]: 10, REASONS["published"]: 3}
    # The last word of a killed worker is older than what it had kept: nothing was done twice that is known.
    write(run, "d", opening(1000.0), shard("claimed", 1000, 2, taken_up=0), progress(1005, 10, {2: 10}))
    write(run, "e", opening(1100.0), shard("claimed", 1100, 2, taken_up=30), shard("deferred", 1101, 2, done=30))
    assert sum(read(run).done.twice.values()) == 43 and read(run).done.waiting == 10


def test_a_ledger_without_the_new_words_is_not_measured(run: RunDirectory) -> None:
    """As of versions before: no busy seconds, no ends of what was lost."""
    old = [shard("claimed", 100, 0, taken_up=0), progress(105, 50, {0: 50}), shard("lost", 110, 0)]
    write(run, "a", opening(100.0), *old, line("ended", 111, outcome="stopped"))
    write(run, "b", opening(100.0), shard("claimed", 100, 0, taken_up=0), shard("published", 109, 0, done=100))
    work = read(run)
    whole = cost.of_work("r", work, Given(), cost.LEDGER, ())
    assert [stay.busy for stay in work.stays] == [None, None]
    assert whole.goodput == {"infrastructure": None, "framework": None, "output": 1.0, "all": None}
    write(run, "c", opening(120.0), progress(130, 5, {}, busy=5.0), line("ended", 130, outcome="finished"))
    mixed = cost.of_work("r", read(run), Given(), cost.LEDGER, ())
    assert mixed.goodput["framework"] == 0.5 and "known of 1 of 3 workers" in mixed.notes[0]


def test_processes_of_a_worker_are_busy_for_it(run: RunDirectory) -> None:
    write(run, "a", opening(0.0), line("ended", 10, outcome="finished"))
    for number, busy in ((1, 9.0), (2, 7.0)):
        part = line("started", 0.0, host="n1", job="", executor="", part_of="a")
        write(run, f"a+{number}", part, progress(10, 1, {}, busy=busy), line("ended", 10, outcome="finished"))
    whole = cost.of_work("r", read(run), Given(), cost.LEDGER, ())
    assert (whole.workers, whole.worker_seconds, whole.measured, whole.busy) == (1, 10.0, 20.0, 16.0)


def test_allocations_are_joined_with_workers_by_their_job() -> None:
    def at(job: str, start: float, end: float) -> Stay:
        return Stay("w", job, start, end)

    given = cost.given_by_accounting(
        [
            Allocation("7_0", "REQUEUED", 100, 160, 60, submitted=50, eligible=90, nodes=1, cpus=4, gpus=2),
            Allocation("7_0", "COMPLETED", 300, 400, 100, 160, 280, 1, 4, 2, 2000, 40.0, 500, 7200),
            Allocation("7_1", "RUNNING", 100, None, 100, 50, 90, 2, 4, None),
        ],
        [at("7_0", 110, 150), at("7_0", 305, 398), at("7_0", 306, 390), at("7_1", 150, 190), at("8", 0, 1000)],
        gpus=4,
    )
    assert (given.allocations, given.requeues, given.start, given.end) == (3, 1, 100, 400)
    assert given.gpu_seconds == 2 * 160 + 4 * 2 * 100 and given.node_seconds == 160 + 200
    assert (given.allocated, given.worked) == (260, 40 + 93 + 40)
    assert (given.waited, given.waits, given.longest_wait) == (10 + 140 + 10, 3, 140), "requeued, it waits from then on"
    assert (given.cpu_given, given.cpu_used, given.peak, given.memory) == (400, 40.0, 500, 2000), "of what has ended"
    assert (given.energy, given.energies) == (7200, 1)


def test_without_accounting_workers_stand_for_their_jobs() -> None:
    known = Stay("w", "7_0", 110, 150, executor="slurm", allocated=100, gpus=1, nodes=1)
    again = Stay("x", "7_0", 200, 260, executor="slurm", allocated=195, gpus=1, nodes=1)
    alone = Stay("y", "", 100, 200)
    given = cost.given_by_ledger([known, again, alone], {"7_0": 40.0}, gpus=8, nodes=2)
    assert (given.allocations, given.requeues, given.waits, given.waited) == (3, 1, 1, 60)
    assert given.gpu_seconds == 50 + 65 + 100 * 2 * 8
    assert (given.allocated, given.worked) == (115, 100), "of the third it is not known"


def test_a_killed_worker_that_starts_again_goes_on_with_its_allocation(run: RunDirectory) -> None:
    killed = Stay("w", "7_0", 110, 150, executor="slurm", allocated=100, gpus=2, nodes=1)
    again = Stay("x", "7_0", 155, 200, executor="slurm", allocated=100, gpus=2, nodes=1, life=2)
    later = Stay("y", "7_0", 310, 350, executor="slurm", allocated=300, gpus=2, nodes=1)
    given = cost.given_by_ledger([later, again, killed], {"7_0": 40.0}, gpus=8, nodes=1)
    assert (given.allocations, given.requeues, given.waits, given.waited) == (2, 1, 1, 60)
    assert given.gpu_seconds == 2 * (100 + 50) and (given.allocated, given.worked) == (150, 40 + 45 + 40)
    write(run, "a", opening(0.0, life=2), line("ended", 10, outcome="finished"))
    assert read(run).stays[0].life == 2


def test_a_sum_weighs_what_each_run_published_by_its_time(run: RunDirectory) -> None:
    write(run, "a", opening(0.0), shard("claimed", 0, 0, taken_up=0), shard("published", 30, 0, done=100))
    first = cost.of_work("a", read(run), Given(), cost.LEDGER, ("so",))
    half = goodput.Done("seconds", 5.0, 0.0, {"x": 5.0})
    second = cost.Cost("b", cost.LEDGER, Given(), half, worker_seconds=10.0, notes=("so",))
    whole = cost.total("g", [first, second])
    assert whole.goodput["output"] == pytest.approx((30 * 1.0 + 10 * 0.5) / 40)
    assert whole.notes == ("so",) and whole.done.published == 100, "seconds are not added to rows"


def test_reading_leaves_nothing_behind(run: RunDirectory) -> None:
    before = sorted(run.leases.iterdir())
    read(run)
    assert sorted(run.leases.iterdir()) == before


@pytest.mark.parametrize("value", [None, "x", [1], {"a": 1}, -1, True])
@pytest.mark.parametrize("key", ["shard", "taken_up", "done", "errors", "busy", "working_on", "rows", "gpus_given"])
def test_a_ledger_with_other_things_than_numbers_is_read(run: RunDirectory, key: str, value: object) -> None:
    first = opening(100.0, gpus_given=1) | ({key: value} if key == "gpus_given" else {})
    lines = [shard("claimed", 100, 0, taken_up=0), progress(105, 50, {0: 50}, busy=3.0)]
    lines += [shard("published", 110, 0, done=99, errors=1)]
    write(run, "a", first, *({**event, key: value} if key in event else event for event in lines))
    assert read(run).done.published in (0, 100)
    assert cost.of_work("r", read(run), Given(), cost.LEDGER, ()).workers == 1
