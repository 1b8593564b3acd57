"""Proof that every input row is in the output or in quarantine, exactly once, and that its input is unchanged."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Shard

MOST_PROBLEMS = 20
"""Problems told in full; the rest are counted."""


@dataclass(frozen=True)
class ShardReport:
    """What one shard's output holds. ``problems`` says, in plain words, what contradicts the manifest."""

    done: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    problems: tuple[str, ...] = ()


CheckShard = Callable[[Shard, Path], ShardReport]
"""Reads one published output and holds it against its line of the manifest; a task provides it."""


@dataclass(frozen=True)
class Verdict:
    """The result. ``quarantined`` counts rows by reason."""

    shards: int
    rows: int
    done: int
    missing_shards: int
    quarantined: dict[str, int]
    problem_count: int
    problems: list[str]

    @property
    def proven(self) -> bool:
        """Every row is accounted for exactly once."""
        return (
            self.problem_count == 0
            and self.missing_shards == 0
            and self.done + sum(self.quarantined.values()) == self.rows
        )


def verify(path: Path, check: CheckShard, progress: Callable[[Iterator[Shard]], Iterator[Shard]] = iter) -> Verdict:
    """Check every shard of the run at ``path``; memory does not grow with the run."""
    plan = manifest.read(path / "manifest.parquet")
    run = RunDirectory(path, plan.facts.suffix)
    done = missing = problem_count = following = 0
    quarantined: Counter[str] = Counter()
    problems: list[str] = []
    for shard in progress(iter(plan)):
        found = [] if shard.start == following else [f"manifest: starts at row {shard.start}, not {following}"]
        following = shard.start + shard.rows
        output = run.shard_output(shard.id)
        if output.exists():
            report = check(shard, output)
            done += report.done
            quarantined += report.quarantined
            found += report.problems
        else:
            missing += 1
        problem_count += len(found)
        problems += [f"shard {shard.id}: {problem}" for problem in found][: MOST_PROBLEMS - len(problems)]
    if following != plan.facts.rows:
        problem_count += 1
        problems.append(f"manifest: its shards hold {following} rows, its sources {plan.facts.rows}")
    return Verdict(len(plan), plan.facts.rows, done, missing, dict(quarantined), problem_count, problems)
