"""Proof that every input row is in the output or in quarantine, exactly once, and that its input is unchanged.

And what a resumed run needs: a person's changes of its recipe on record, and damaged outputs out of the way.
"""

import itertools
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hala_hpc.config.frozen import FOLDER, files
from hala_hpc.run import digests, layout, lease, manifest
from hala_hpc.run.files import fsync, make_folders, write_new
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.manifest import Shard

MOST_PROBLEMS = 20
"""So many problems are named; the rest are only counted."""
FINAL = "final: "
"""How a problem begins that lies not in the shard but in what was made of all of them."""


@dataclass(frozen=True)
class ShardReport:
    """What one shard's output holds. ``problems`` says, in plain words, what contradicts the manifest.

    ``sealed`` is false for rows that were written before there were seals, whose new columns nothing can prove.
    """

    done: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    problems: tuple[str, ...] = ()
    sealed: bool = True


CheckShard = Callable[[Shard, Path], ShardReport]
"""Reads one published output and holds it against its line of the manifest; a task provides it."""


@dataclass(frozen=True)
class Verdict:
    """The result. ``quarantined`` counts rows by reason.

    ``damaged`` names the shards whose output is refused; ``unsealed`` counts those written before there were seals;
    ``unassembled`` says that the run's last step, which makes RUN/final of its shards, is still to do;
    ``damaged_final`` that what it made is refused.
    """

    shards: int
    rows: int
    done: int
    missing_shards: int
    quarantined: dict[str, int]
    problem_count: int
    problems: list[str]
    damaged: list[int] = field(default_factory=list)
    unsealed: int = 0
    unassembled: bool = False
    damaged_final: bool = False

    @property
    def proven(self) -> bool:
        """Every row is accounted for exactly once, and nothing is left to do."""
        return (
            self.problem_count == 0
            and self.missing_shards == 0
            and not self.unassembled
            and self.done + sum(self.quarantined.values()) == self.rows
        )


def verify(path: Path, check: CheckShard, progress: Callable[[Iterator[Shard]], Iterator[Shard]] = iter) -> Verdict:
    """Check every shard of the run at ``path``; memory does not grow with the run."""
    run, plan = manifest.open_run(path)
    done = missing = following = unsealed = 0
    quarantined: Counter[str] = Counter()
    problems = _Problems()
    damaged: list[int] = []
    damaged_final = False
    for shard in progress(iter(plan)):
        about = f"shard {shard.id}: "
        if shard.start != following:
            problems.add([f"manifest: starts at row {shard.start}, not {following}"], about)
        following = shard.start + shard.rows
        output = run.shard_output(shard.id)
        if not output.exists():
            missing += 1
            continue
        report = _checked(shard, output, check)
        done += report.done
        quarantined += report.quarantined
        unsealed += not report.sealed
        problems.add(report.problems, about)
        about_final = [problem for problem in report.problems if problem.startswith(FINAL)]
        damaged_final |= bool(about_final)
        damaged += [shard.id] if len(report.problems) > len(about_final) else []
    if following != plan.facts.rows:
        problems.add([f"manifest: its shards hold {following} rows, its sources {plan.facts.rows}"])
    problems.add([f"{name}: the plan has no such shard; move it away" for name in strangers(run, len(plan))])
    unassembled = plan.facts.assembled and not run.final.is_dir()
    if plan.facts.assembled and not damaged_final and (faults := run.final.is_dir() and digests.faults(run.final)):
        damaged_final = True
        problems.add(faults, FINAL)
    counts = (len(plan), plan.facts.rows, done, missing, dict(quarantined), problems.count, problems.first)
    return Verdict(*counts, damaged, unsealed, unassembled, damaged_final)


@dataclass
class _Problems:
    """How many there are, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, problems: Sequence[str], about: str = "") -> None:
        """``about`` says where they are; those of the whole run have none, and are always named."""
        self.count += len(problems)
        room = max(0, MOST_PROBLEMS - len(self.first)) if about else len(problems)
        self.first += [f"{about}{problem}" for problem in problems[:room]]


def _checked(shard: Shard, output: Path, check: CheckShard) -> ShardReport:
    """A folder is first compared with what was published: what a task says of a damaged one helps nobody."""
    if not output.is_dir():
        return check(shard, output)
    faults = digests.faults(output)
    if faults:
        return ShardReport(problems=tuple(faults))
    return replace(check(shard, output), sealed=faults is not None)


def strangers(run: RunDirectory, shards: int) -> list[str]:
    """Outputs of shards that the plan does not have, by their path in the run."""
    outputs = sorted(shard for folder in layout.listing(run.shards) for shard in layout.finished(run, folder))
    return [str(run.shard_output(shard).relative_to(run.path)) for shard in outputs if shard >= shards]


def set_aside_damaged(
    path: Path, check: CheckShard, progress: Callable[[Iterator[Shard]], Iterator[Shard]] = iter
) -> Verdict:
    """Move the outputs that ``verify`` refuses to RUN/damaged, so that workers do their shards again.

    What was made of all shards goes with them. Returns what ``verify`` said before.
    """
    verdict = verify(path, check, progress)
    set_aside(path, verdict)
    return verdict


def set_aside(path: Path, verdict: Verdict) -> None:
    """Move what ``verdict`` says is damaged to RUN/damaged."""
    run, plan = manifest.open_run(path)
    for shard in verdict.damaged:
        _set_aside(run, run.shard_output(shard), f"{shard:06d}", run.suffix)
    if plan.facts.assembled and (verdict.damaged or verdict.damaged_final):
        _set_aside(run, run.final, run.final.name, "")
    if verdict.damaged:
        lease.reopen(run)
        history = Ledger(run.ledger / f"resume-{secrets.token_hex(3)}.jsonl", pid=os.getpid())
        history.write("set aside", shards=verdict.damaged)
        history.close()


def was_set_aside(path: Path, verdict: Verdict) -> bool:
    """Whether something that ``verdict`` says is damaged was so before: doing it again did not help."""
    run, _ = manifest.open_run(path)
    names = [f"{shard:06d}.1{run.suffix}" for shard in verdict.damaged]
    names += [f"{run.final.name}.1"] if verdict.damaged_final and not names else []
    return any((run.damaged / name).exists() for name in names)


def _set_aside(run: RunDirectory, output: Path, name: str, suffix: str) -> None:
    make_folders(run.damaged)
    free = (run.damaged / f"{name}.{number}{suffix}" for number in itertools.count(1))
    target = next(path for path in free if not path.exists())
    try:
        output.rename(target)
    except FileNotFoundError:  # another `hala resume` was first
        return
    fsync(output.parent)
    fsync(run.damaged)


def write(run: Path, changed: Mapping[str, Any]) -> Path | None:
    """Write down changed keys, so that every worker that starts from now on has them. None where nothing changed."""
    from omegaconf import OmegaConf

    from hala_hpc.config.compose import literal

    if not changed:
        return None
    folder = run / FOLDER
    make_folders(folder)
    text = OmegaConf.to_yaml(OmegaConf.create(literal(dict(changed))))
    while True:
        last = int(changes[-1].stem) if (changes := files(run)) else 0
        path = folder / f"{last + 1:03d}.yaml"
        try:
            write_new(path, text.encode())
            return path
        except FileExistsError:
            continue  # somebody else resumes it too
