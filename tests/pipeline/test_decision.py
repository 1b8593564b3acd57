"""What a steward decides, for every kind of situation; no files, no Slurm."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from hala_hpc.pipeline.decision import MOST_IDLE, Resources, Situation, Standing, decide

LEFT = Situation("r", missing=5, has_progress=True)
STUCK = replace(LEFT, has_progress=False, idle=1)


def changes(now: Situation) -> tuple[str, ...]:
    decision = decide(now)
    assert decision.action == "submit", decision
    return decision.changes


def stop(now: Situation) -> str:
    decision = decide(now)
    assert decision.action == "stop" and decision.hint, decision
    return decision.reason


def test_a_finished_run_is_done_whatever_else_is_the_case() -> None:
    assert decide(Situation("r", finished=True)).action == "done"
    every = Situation("r", finished=True, cancelled=True, unclear="x", live=("1",), busy=2, by="me", idle=9, failed=3)
    assert decide(every).action == "done"


def test_a_persons_will_comes_before_all_that_is_not_known() -> None:
    assert "a person cancelled" in stop(replace(LEFT, cancelled=True, unclear="Slurm does not answer"))
    assert "anna cancelled all" in stop(replace(LEFT, by="anna"))
    assert decide(replace(LEFT, by="anna", live=("7",))).action == "wait", "workers of a later submission live"


def test_nothing_is_handed_in_while_somebody_works_or_may() -> None:
    for now in (replace(LEFT, unclear="Slurm does not answer (squeue: …)"), replace(LEFT, busy=1)):
        assert decide(now).action == "wait" and decide(now).after == ()
    waits = decide(replace(LEFT, live=("7", "8"), submissions=99, idle=9))
    assert waits.action == "wait" and waits.after == ("7", "8")


def test_what_slurm_holds_after_a_failed_launch_is_let_go_and_what_others_hold_is_said() -> None:
    released = decide(replace(LEFT, live=("7",), unlaunched=("7_1",), held=("7_0", "7_1")))
    assert (released.action, released.tasks, released.after) == ("release", ("7_1",), ("7",))
    for busy, words in ((0, "held by somebody or by the site (7_0)"), (1, "in the queue or at work")):
        waits = decide(replace(LEFT, live=("7",), held=("7_0",), busy=busy))
        assert waits.action == "wait" and words in waits.reason and waits.after == ("7",)
    assert stop(replace(LEFT, cancelled=True, live=("7",), unlaunched=("7_1",)))


def test_what_is_missing_is_handed_in_with_the_ends_named() -> None:
    decision = decide(replace(LEFT, ends={"NODE_FAIL": 1, "CANCELLED": 1}))
    assert decision.action == "submit" and decision.changes == () and not decision.retries
    assert "5 shards missing" in decision.reason and "1 task ended by NODE_FAIL" in decision.reason


@pytest.mark.parametrize("progress", [True, False])
def test_caps_hold_whatever_happened(progress: bool) -> None:
    now = replace(LEFT if progress else STUCK, ends={"OUT_OF_MEMORY": 1}, resources=Resources(mem_gb=4))
    assert decide(replace(now, submissions=19)).action == "submit"
    assert "run.submissions" in stop(replace(now, submissions=20))
    assert "run.days" in stop(replace(now, days=30.0))
    assert "run.submissions" in stop(replace(now, submissions=2, most_submissions=2, errors=("boom",)))


def test_memory_grows_after_a_memory_kill_and_after_a_signal_9() -> None:
    for state, now in itertools.product(("OUT_OF_MEMORY", "KILLED"), (LEFT, STUCK)):
        ended = replace(now, ends={state: 2}, resources=Resources(mem_gb=10))
        assert changes(ended) == ("site.slurm.mem_gb=15",)
        assert decide(ended).optional == (now is LEFT or state == "KILLED")
    assert changes(replace(STUCK, ends={"KILLED": 1}, resources=Resources("site.slurm_cpu", mem_gb=1))) == (
        "site.slurm_cpu.mem_gb=2",
    )


@pytest.mark.parametrize(
    ("has", "words"),
    [
        (Resources(mem_gb=0), "with all memory of a node"),
        (Resources(mem_gb=None), "mem_gb is not set"),
        (Resources(mem_gb=8, fixed=frozenset({"mem"})), "OUT_OF_MEMORY"),
    ],
)
def test_memory_that_cannot_grow_stops_a_run_that_gets_nothing_done(has: Resources, words: str) -> None:
    assert words in stop(replace(STUCK, ends={"OUT_OF_MEMORY": 1}, resources=has))
    assert changes(replace(LEFT, ends={"OUT_OF_MEMORY": 1}, resources=has)) == ()
    # A signal 9 is also anybody's: without more memory to give it counts as unknown.
    assert changes(replace(STUCK, ends={"KILLED": 1}, resources=has)) == ()
    assert "got nothing done" in stop(replace(STUCK, ends={"KILLED": 1}, idle=MOST_IDLE, resources=has))


def test_time_grows_only_where_nothing_got_done_and_to_the_partitions_limit() -> None:
    out = replace(STUCK, ends={"TIMEOUT": 1})
    assert changes(replace(out, resources=Resources(minutes=30))) == ("site.slurm.minutes=60",)
    assert changes(replace(STUCK, too_slow=True, resources=Resources(minutes=30))) == ("site.slurm.minutes=60",)
    assert changes(replace(out, resources=Resources(minutes=30, most_minutes=45))) == ("site.slurm.minutes=45",)
    assert "the partition gives no more" in stop(replace(out, resources=Resources(minutes=45, most_minutes=45)))
    stop(replace(out, resources=Resources(fixed=frozenset({"time"}))))
    assert changes(replace(LEFT, ends={"TIMEOUT": 1})) == (), "it could not stop in time, but it got on"


def test_less_at_once_after_a_gpu_was_full() -> None:
    full = replace(STUCK, gpu_memory=True, errors=("CUDA out of memory",))
    assert changes(replace(full, resources=Resources(sequences=256))) == ("engine.max_num_seqs=128",)
    assert changes(replace(full, resources=Resources(sequences=3))) == ("engine.max_num_seqs=1",)
    for sequences in (1, None):
        assert "CUDA out of memory" in stop(replace(full, resources=Resources(sequences=sequences)))


def test_bad_nodes_are_left_out_and_those_of_before_stay_so() -> None:
    now = replace(STUCK, bad_nodes=("n3", "n1"), resources=Resources(excluded=("n1", "n2")))
    assert changes(now) == ("site.slurm.extra.exclude=n1,n2,n3",) and "n3" in decide(now).reason
    assert changes(replace(now, bad_nodes=("n1",))) == ()


def test_causes_are_cured_together() -> None:
    has = Resources(mem_gb=4, minutes=10, sequences=64)
    ends = {"OUT_OF_MEMORY": 1, "TIMEOUT": 1}
    now = replace(STUCK, ends=ends, gpu_memory=True, bad_nodes=("n1",), resources=has)
    assert {word.partition("=")[0] for word in changes(now)} == {
        "site.slurm.mem_gb",
        "site.slurm.minutes",
        "engine.max_num_seqs",
        "site.slurm.extra.exclude",
    }


def test_nothing_done_twice_for_no_known_cause_stops_with_what_was_said() -> None:
    assert decide(STUCK).action == "submit"
    said = stop(replace(STUCK, idle=MOST_IDLE, errors=("first", "the engine does not start: no such model")))
    assert "2 submissions in a row got nothing done" in said and "no such model" in said and "first" not in said
    cured = replace(STUCK, idle=MOST_IDLE, ends={"TIMEOUT": 1}, resources=Resources(minutes=10))
    assert changes(cured) == ("site.slurm.minutes=20",), "a known cause is not a loop: it ends at the limit"


def test_shards_that_failed_too_often_are_only_tried_again_after_a_cure() -> None:
    failed = replace(LEFT, missing=2, failed=2, errors=("ValueError: bad row",))
    assert "2 shards failed too often" in stop(failed) and "bad row" in stop(failed)
    assert decide(replace(failed, missing=3)).action == "submit"
    cured = decide(replace(failed, ends={"OUT_OF_MEMORY": 1}, resources=Resources(mem_gb=4)))
    assert cured.action == "submit" and cured.retries
    killed = replace(failed, ends={"KILLED": 1}, resources=Resources(mem_gb=4))
    assert "failed too often" in stop(killed), "a row that kills workers is no lack of memory"


def test_every_situation_ends_in_words_for_a_person() -> None:
    """All combinations of what may be the case: no decision without a reason, no stop without what to do next."""
    axes: dict[str, list[Any]] = {
        "finished": [False, True],
        "cancelled": [False, True],
        "unclear": ["", "Slurm does not answer"],
        "live": [(), ("7",)],
        "unlaunched": [(), ("7_1",)],
        "held": [(), ("7_1",)],
        "busy": [0, 1],
        "by": ["", "anna"],
        "has_progress": [True, False],
        "idle": [0, 1, 2],
        "submissions": [0, 20],
        "failed": [0, 5],
        "ends": [{}, {"OUT_OF_MEMORY": 1}, {"TIMEOUT": 2}, {"KILLED": 1}],
        "gpu_memory": [False, True],
        "resources": [Resources(), Resources(mem_gb=4, sequences=8)],
    }
    for values in itertools.product(*axes.values()):
        now = Situation("r", missing=5, **dict(zip(axes, values, strict=True)))
        if (now.unlaunched or now.held) and not now.live:
            continue  # what is held is in the queue
        decision = decide(now)
        assert decision.reason and (decision.hint or decision.action != "stop")
        assert not decision.changes or decision.action == "submit"
        if decision.action == "submit":
            assert not (now.finished or now.cancelled or now.unclear or now.live or now.busy or now.by)
            assert now.submissions < 20 and (now.idle < MOST_IDLE or decision.changes)


def test_how_far_a_run_is() -> None:
    assert Standing(1, 5).is_beyond(Standing(1, 4)) and Standing(1, 0, 20).is_beyond(Standing(1, 0, 10))
    assert Standing(2, 4).is_beyond(Standing(1, 9)), "rows that were kept are in the shard now"
    assert not Standing(1, 4, 2).is_beyond(Standing(1, 4, 2))
