"""What faults came to (see ``chaos``): rows lost, published twice, computed twice, and what was left of the time."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import chaos, cost, lookup
from hala_hpc.run import decisions, goodput, ledger, manifest
from hala_hpc.run.endings import published
from hala_hpc.run.verify import verify
from hala_hpc.slurm import record
from hala_hpc.worker import registry

END_SECONDS: Final = 2.0
"""Between two looks whether a run has come to its end."""
LATE_SECONDS: Final = 60.0
"""For workers of a finished run to say their last words."""


@dataclass(frozen=True)
class Harm:
    """What faults came to. ``lost`` is None where the run is not finished; ``by_people``: starts of workers since.

    ``published_twice`` and ``computed_twice`` in rows; of the latter ``unknown`` more, by estimate at most: what killed
    workers did between their last word and their end. ``seconds`` of the run, from its first worker to its last.
    """

    run: str
    rows: int
    finished: bool
    proven: bool
    problems: Sequence[str]
    lost: int | None
    published_twice: int
    computed_twice: int
    unknown: int
    goodput: Mapping[str, float | None]
    seconds: float | None
    by_people: int
    by_stewards: int

    @property
    def share_twice(self) -> float:
        """Rows computed twice, those by estimate included, of all rows."""
        return (self.computed_twice + self.unknown) / self.rows if self.rows else 0.0

    @property
    def is_well(self) -> bool:
        return self.finished and self.proven and self.lost == 0 and self.published_twice == 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"share_twice": self.share_twice, "well": self.is_well}


def wait(run: Path, seconds: float, should_stop: Callable[[], bool] = lambda: False) -> str:
    """Until a run is finished and its workers are gone. Why it is not, in words; empty where it is."""
    until = time.monotonic() + seconds
    folder = next(iter(record.grid_of(run)), run)
    while not lookup.state_of(run).finished:
        last = decisions.last_decision(decisions.read(folder))
        if last is not None and last.event["action"] == "stop":
            return f"its steward stopped: {last.event['reason']}"
        if should_stop() or time.monotonic() > until:
            return "it was not waited for any longer"
        time.sleep(END_SECONDS)
    late = time.monotonic() + LATE_SECONDS
    with contextlib.suppress(HalaError):  # its last words matter less than that it is finished
        while chaos.targets(run) and time.monotonic() < late and not should_stop():
            time.sleep(END_SECONDS)
    return ""


def judge(run: Path, since: float) -> Harm:
    """Read all that a run published and what its ledgers say; ``since``: when the faults began (seconds since 1970).

    Raises HalaError where it cannot be read.
    """
    directory, plan = manifest.open_run(run)
    settings = frozen.settings(run)
    state, recipe = lookup.state_of(run), lookup.thawed(run)
    verdict = verify(run, registry.create(recipe).checker(plan.facts))
    work = goodput.read(directory, plan, settings.lease_seconds)
    whole = cost.read(str(run)).whole
    worked = sum(stay.seconds for stay in work.leaves)
    rate = (work.done.published + work.done.waiting) / worked if worked else 0.0
    noted = [item for item in decisions.read(next(iter(record.grid_of(run)), run)) if item.at >= since]
    by = Counter(item.event.get("by") for item in noted if item.kind == decisions.STARTING)
    lost = verdict.rows - verdict.done - sum(verdict.quarantined.values())
    return Harm(
        run=run.name,
        rows=verdict.rows,
        finished=state.finished,
        proven=verdict.proven,
        problems=verdict.problems,
        lost=lost if state.finished else None,
        published_twice=sum(plan.column("rows")[shard] for shard in _republished(run)),
        computed_twice=round(sum(work.done.twice.values())),
        unknown=round(work.silent * rate * recipe.run.flush_seconds),
        goodput=whole.goodput,
        seconds=whole.wall_seconds,
        by_people=by[decisions.PERSON],
        by_stewards=by[decisions.STEWARD],
    )


def _republished(run: Path) -> list[int]:
    """Shards that workers say they published more often than they were set aside and had to be done again."""
    times, aside = Counter[int](), Counter[int]()
    for file in (run / "ledger").glob("*.jsonl"):
        times.update(shard for shard, _, _ in published(file))
        if file.name.startswith("resume-"):
            aside.update(shard for event in ledger.read(file) for shard in event.get("shards", ()))
    return [shard for shard, count in times.items() if count - aside[shard] > 1]
