"""What is to be done about a run: it is done, somebody works on it, workers are handed in again, or a person must look.

A pure function of what the run's folder and Slurm say (see ``standing``).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from hala_hpc.config.errors import few, plural
from hala_hpc.slurm.queue import KILLED, OUT_OF_MEMORY

MEMORY_FACTOR: Final = 1.5
TIME_FACTOR: Final = 2
"""By how much more is asked for after a memory kill, and after a time limit that was too short (ours)."""
MOST_IDLE: Final = 2
"""Submissions in a row in which nothing got done, for no reason that more of anything would cure (ours)."""
UNSET_SEQUENCES: Final = 256
"""What vLLM is taken to do at once where ``engine.max_num_seqs`` is not set (ours: its defaults differ by GPU)."""
MOST_NAMED: Final = 6
FIRST_PAUSE, LONGEST_PAUSE = 60, 3_600
"""Seconds between two times that workers are replaced while others work (ours)."""

Action = Literal["done", "wait", "release", "submit", "stop"]


@dataclass(frozen=True)
class Standing:
    """How far runs are: finished shards, finished rows, and the steps of the newest checkpoints."""

    done: int = 0
    rows: int = 0
    steps: int = 0

    def is_beyond(self, earlier: "Standing") -> bool:
        return self.done > earlier.done or self.rows > earlier.rows or self.steps > earlier.steps


@dataclass(frozen=True)
class Resources:
    """What a worker asks for, and what may be changed of it. ``section`` of the recipe has them.

    ``mem_gb``: None where the site decides, 0 for the whole node. ``most_minutes``: the partition's limit, where it has
    one. ``fixed``: what ``extra`` asks sbatch for in its own words (mem, time), which no key of ours changes.
    ``sequences``: at once in the engine; None where no such key may change.
    """

    section: str = "site.slurm"
    mem_gb: float | None = None
    minutes: int = 60
    most_minutes: int | None = None
    fixed: frozenset[str] = frozenset()
    sequences: int | None = None
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Situation:
    """All that a decision depends on.

    Parameters
    ----------
    run : its name, or that of the grid.
    missing, failed : shards, or runs' last steps, that are not done; those of them that failed too often.
    live : Slurm's jobs that work or may yet. ``busy``: workers with a heartbeat that Slurm does not know.
    unlaunched : tasks of them that Slurm holds after a failed launch, and that may be let go.
    held : all their tasks, where none works before somebody lets it go.
    unclear : why it is not known whether workers are in the queue; empty where it is.
    cancelled : a person did, and nobody started workers since. ``by``: who cancelled all tasks by Slurm's own means.
    has_progress : since workers were last handed in. ``idle``: submissions in a row without, the last included.
    submissions, days : by stewards, and time, since a person last started workers.
    ends : how many tasks ended in which state, where their worker did not say how.
    too_slow : workers ended because time limits passed in which they got nothing done.
    gpu_memory : a worker said that the memory of its GPU did not suffice.
    bad_nodes : those that failed, or that a preflight refused.
    errors : what workers last said, newest last.
    gone : tasks of workers that ended without a word while others live, whose place nobody took and somebody could.
    watched : live tasks of which one's end would leave work to somebody else; empty where each has all that is left.
    replaced : how often workers took the place of some since all were last handed in.
    """

    run: str
    finished: bool = False
    missing: int = 0
    failed: int = 0
    live: tuple[str, ...] = ()
    unlaunched: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    busy: int = 0
    unclear: str = ""
    cancelled: bool = False
    by: str = ""
    has_progress: bool = False
    idle: int = 0
    submissions: int = 0
    most_submissions: int = 20
    days: float = 0.0
    most_days: float = 30.0
    ends: Mapping[str, int] = field(default_factory=dict)
    too_slow: bool = False
    gpu_memory: bool = False
    bad_nodes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    replaced: int = 0
    resources: Resources = Resources()


@dataclass(frozen=True)
class Decision:
    """``reason`` in plain words, and of a stop in ``hint`` what a person does next.

    Parameters
    ----------
    changes : ``key=value`` words for the workers that are handed in. ``optional``: without them, should Slurm refuse.
    after : of a wait, the jobs that must end first. ``watched``: their tasks where the end of any is enough.
    tasks : those that are let go.
    seconds : before which the next steward does not look.
    instead_of : tasks whose place new workers take while others work on; empty where nobody does.
    retries : shards that failed too often are tried again, for the cause is cured.
    """

    action: Action
    reason: str
    hint: str = ""
    changes: tuple[str, ...] = ()
    optional: bool = False
    after: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    seconds: int = 0
    instead_of: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    retries: bool = False

    @property
    def is_end(self) -> bool:
        return self.action in ("done", "stop")

    def __str__(self) -> str:
        return f"{self.reason} ({self.hint})" if self.hint else self.reason

    def as_event(self) -> dict[str, Any]:
        """As a line of the ledger has it."""
        lists = {"changes": list(self.changes), "after": list(self.after)}
        return {"action": self.action, "reason": self.reason, "hint": self.hint, **lists}


@dataclass(frozen=True)
class Remedy:
    """One cause of what happened. ``is_sure``: it alone would have the next workers end the same.

    ``incurable``: what a person has to do; empty where ``changes`` may help.
    """

    reason: str
    changes: tuple[str, ...] = ()
    is_sure: bool = True
    incurable: str = ""


def decide(now: Situation) -> Decision:
    """Raises nothing: what is not known is waited for, or said to a person."""
    resume = f"hala resume {now.run}"
    if now.finished:
        return Decision("done", "finished: all shards, and the last step")
    if now.cancelled:
        return Decision("stop", "a person cancelled it", resume)
    if now.unclear:
        return Decision("wait", now.unclear)
    if now.unlaunched:
        count = plural(len(now.unlaunched), "task")
        reason = f"{count} held by Slurm after a failed launch, let go without that node"
        return Decision("release", reason, after=now.live, tasks=now.unlaunched)
    if now.held and not now.busy:
        release = " ".join(now.live)
        reason = f"all that is left in the queue is held by somebody or by the site ({few(now.held, MOST_NAMED)})"
        return Decision("wait", reason, f"scontrol release {release}, or hala cancel {now.run}", after=now.live)
    if now.live:
        return _beside(now)
    if now.busy:
        return Decision("wait", f"{plural(now.busy, 'worker')} outside of Slurm's queue at work")
    if now.by:
        return Decision("stop", f"{now.by} cancelled all of its jobs with scancel", resume)
    if (limit := _limit(now)) is not None:
        return limit
    return _go_on(now)


def _beside(now: Situation) -> Decision:
    """While workers live: wait for them, and have new ones take the place of some that are gone."""
    if now.gone and (decision := _go_on(now)).action == "submit":
        pause = _pause(now.replaced + 1)
        return replace(decision, after=now.live, watched=now.watched, seconds=pause, instead_of=now.gone)
    reason = f"workers are in the queue or at work ({few(now.live, MOST_NAMED)})"
    pause = _pause(now.replaced) if now.watched else 0
    return Decision("wait", reason, after=now.live, watched=now.watched, seconds=pause)


def _pause(replaced: int) -> int:
    """Seconds before workers are replaced again, while others work: each time twice as long."""
    return min(FIRST_PAUSE << min(replaced - 1, 16), LONGEST_PAUSE) if replaced else 0


def _limit(now: Situation) -> Decision | None:
    left = f"{plural(now.missing, 'shard')} missing"
    if now.submissions >= now.most_submissions:
        most = plural(now.most_submissions, "submission")
        return Decision("stop", f"{left} after {most} without a person (run.submissions){_last(now)}", _look(now))
    if now.days >= now.most_days:
        since = f"{now.most_days:g} days after a person started it (run.days)"
        return Decision("stop", f"{left} {since}{_last(now)}", _look(now))
    return None


def _go_on(now: Situation) -> Decision:
    remedies = [remedy for remedy in (_memory(now), _time(now), _gpu(now), _nodes(now)) if remedy is not None]
    changes = tuple(word for remedy in remedies for word in remedy.changes)
    others = {state: count for state, count in now.ends.items() if state not in _EXPLAINED}
    ended = [f"{plural(count, 'task')} ended by {state}" for state, count in others.items()]
    reasons = "; ".join((*ended, *(remedy.reason for remedy in remedies)))
    dead_end = next((remedy for remedy in remedies if remedy.incurable), None)
    if dead_end is not None and not now.has_progress:
        return Decision("stop", f"{dead_end.reason}{_last(now)}", dead_end.incurable)
    sure = any(remedy.is_sure and remedy.changes for remedy in remedies)
    if now.failed >= now.missing and not sure:
        times = f"{plural(now.failed, 'shard')} failed too often (run.attempts)"
        return Decision("stop", f"{'; '.join(filter(None, (times, reasons)))}{_last(now)}", _look(now))
    if now.idle >= MOST_IDLE and not changes:
        nothing = f"{plural(now.idle, 'submission')} in a row got nothing done"
        return Decision("stop", f"{'; '.join(filter(None, (nothing, reasons)))}{_last(now)}", _look(now))
    who = f"{plural(len(now.gone), 'worker')} gone while others work" if now.gone else "no worker left"
    reason = "; ".join(filter(None, (f"{plural(now.missing, 'shard')} missing, {who}", reasons)))
    is_optional = now.has_progress or (not sure and now.idle < MOST_IDLE)
    return Decision("submit", reason, changes=changes, optional=is_optional, retries=sure)


_EXPLAINED: Final = (OUT_OF_MEMORY, KILLED, "TIMEOUT")
"""Ends that remedies name."""


def _memory(now: Situation) -> Remedy | None:
    """More memory after a memory kill, and after a signal 9, which may be one."""
    state = next((state for state in (OUT_OF_MEMORY, KILLED) if now.ends.get(state)), None)
    if state is None:
        return None
    has, is_sure = now.resources, state == OUT_OF_MEMORY
    reason = f"{plural(now.ends[state], 'task')} ended by {state}"
    key = f"{has.section}.mem_gb"
    if "mem" not in has.fixed and has.mem_gb:
        more = math.ceil(has.mem_gb * MEMORY_FACTOR)
        return Remedy(f"{reason}: {more} GB instead of {has.mem_gb:g}", (f"{key}={more}",), is_sure)
    if not is_sure:
        return Remedy(reason, is_sure=False)
    if "mem" in has.fixed:
        return Remedy(reason, incurable=f"raise the memory in {has.section}.extra, then hala resume {now.run}")
    if has.mem_gb == 0:
        what = "another partition or less at once"
        return Remedy(f"{reason} with all memory of a node", incurable=f"{what}, then hala resume {now.run}")
    return Remedy(f"{reason}; {key} is not set", incurable=f"hala resume {now.run} {key}=…")


def _time(now: Situation) -> Remedy | None:
    """More time where a job's time passed and nothing got done."""
    count, has = now.ends.get("TIMEOUT", 0), now.resources
    if not count and not now.too_slow:
        return None
    ended = f"{plural(count, 'task')} ended by TIMEOUT" if count else "workers got nothing done in their time"
    if now.has_progress:
        return Remedy(ended, is_sure=False)
    key = f"{has.section}.minutes"
    if "time" in has.fixed:
        return Remedy(ended, incurable=f"raise the time in {has.section}.extra, then hala resume {now.run}")
    more = min(has.minutes * TIME_FACTOR, has.most_minutes or math.inf)
    if more <= has.minutes:
        limit = f"{ended}: nothing got done in {has.minutes} minutes, and the partition gives no more"
        return Remedy(limit, incurable=f"hala resume {now.run} site.slurm.partition=…, one with a longer time limit")
    return Remedy(f"{ended}, nothing got done: {more} minutes instead of {has.minutes}", (f"{key}={more}",))


def _gpu(now: Situation) -> Remedy | None:
    """Less at once where a GPU's memory did not suffice: it changes no text."""
    if not now.gpu_memory:
        return None
    reason, sequences = "the memory of a GPU did not suffice", now.resources.sequences
    if sequences is None or sequences <= 1:
        what = "more GPUs (site.slurm), or less at once or shorter texts, as the recipe's kind has it"
        return Remedy(reason, incurable=f"{what}; hala logs {now.run} says where it happened")
    fewer = sequences // 2
    return Remedy(f"{reason}: engine.max_num_seqs is {fewer} now", (f"engine.max_num_seqs={fewer}",))


def _nodes(now: Situation) -> Remedy | None:
    """Other nodes than those that failed."""
    excluded = now.resources.excluded
    bad = [node for node in now.bad_nodes if node not in excluded]
    if not bad:
        return None
    listed = ",".join((*excluded, *bad))
    return Remedy(f"without bad nodes: {few(bad, MOST_NAMED)}", (f"{now.resources.section}.extra.exclude={listed}",))


def _last(now: Situation) -> str:
    return f"; the last error: {now.errors[-1]}" if now.errors else ""


def _look(now: Situation) -> str:
    return f"hala logs {now.run}, mend the cause, then hala resume {now.run}"
