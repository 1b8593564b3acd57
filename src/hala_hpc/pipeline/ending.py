"""What happens when a run has come to its end: its outputs are read once more, and whoever wants to know is told.

A site may want a program started then, and a mail by Slurm.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.schema import Recipe
from hala_hpc.pipeline import lookup
from hala_hpc.pipeline.decision import Decision
from hala_hpc.pipeline.standing import Runs
from hala_hpc.run import decisions, manifest, verify
from hala_hpc.run.manifest import Shard
from hala_hpc.slurm import commands
from hala_hpc.slurm.submit import without_gpus
from hala_hpc.worker import registry

SECONDS: Final = 600.0
"""For the site's program (ours)."""
MOST_CHARACTERS: Final = 500
"""Of what it said when it failed."""
READ_SECONDS: Final = 900.0
"""For reading outputs again, at most (ours): some millions of rows."""
MOST_DAMAGED: Final = 10
"""Outputs of a run, or one in a hundred, and at most half, that a disk may have damaged (ours). With more it is rather
that another code refuses them than wrote them, and all of the work would be done again."""
OUTCOMES: Final = {"done": "finished", "stop": "stopped"}
"""In the words that programs and mails get."""


@dataclass(frozen=True)
class Reading:
    """What came of reading finished outputs again: how many were set aside, refused and left there, and not read."""

    set_aside: int = 0
    refused: int = 0
    unread: int = 0

    def applied(self, decision: Decision, run: str) -> Decision:
        """The decision with what was read in its reason. Where too much is refused, a person has to look."""
        if self.refused:
            return Decision(
                "stop",
                f"{plural(self.refused, 'output')} refused by verify: too many for a bad disk, or for the second time; "
                "none was touched",
                f"hala verify {run}; `hala resume {run} --damaged` has them done again",
            )
        said = [f"{plural(self.set_aside, 'damaged output')} set aside, to be done again"] if self.set_aside else []
        said += [f"{plural(self.unread, 'output')} not read again, for lack of time"] if self.unread else []
        return replace(decision, reason="; ".join([*said, decision.reason]))


def read_again(runs: Runs) -> Reading:
    """Before finished runs are first said to be done, have what `hala verify` refuses done again, where it is little.

    Their outputs are read as far as half of a steward's time lets it. Raises HalaError, OSError.
    """
    last = decisions.last_decision(runs.noted)
    if not all(state.finished for state in runs.states) or (last is not None and last.event["action"] == "done"):
        return Reading()
    until = time.monotonic() + min(READ_SECONDS, 60 * without_gpus(runs.recipe.site).slurm.minutes / 2)
    reading = Reading()

    def in_time(plan: Iterator[Shard]) -> Iterator[Shard]:
        nonlocal reading
        for shard in plan:
            if time.monotonic() < until:
                yield shard
            else:
                reading = replace(reading, unread=reading.unread + 1)

    for path in runs.paths:
        facts = manifest.read(path / "manifest.parquet").facts
        verdict = verify.verify(path, registry.create(lookup.thawed(path)).checker(facts), in_time)
        damaged = len(verdict.damaged) or int(verdict.damaged_final)
        is_much = damaged > 1 and damaged > min(max(MOST_DAMAGED, verdict.shards // 100), verdict.shards // 2)
        if is_much or verify.was_set_aside(path, verdict):
            reading = replace(reading, refused=reading.refused + damaged)
        elif damaged:
            verify.set_aside(path, verdict)
            reading = replace(reading, set_aside=reading.set_aside + damaged)
    return reading


def announce(folder: Path, recipe: Recipe, decision: Decision) -> None:
    """Start ``site.at_end`` and have Slurm write to ``site.mail``, once for each end; what fails is a ledger line.

    Raises OSError where that cannot be written down.
    """
    site = recipe.site
    if not is_wanted(folder, recipe):
        return
    outcome = OUTCOMES[decision.action]
    problems = [_start(site.at_end, folder, outcome, str(decision)) if site.at_end else ""]
    if site.mail:
        problems.append(_mail(recipe, site.mail, folder.name, outcome))
    failed = "; ".join(filter(None, problems))
    decisions.note(folder, decisions.AT_END, outcome=outcome, **({"error": failed} if failed else {}))


def is_wanted(folder: Path, recipe: Recipe) -> bool:
    """Whether anybody wants to know, and was not told yet, perhaps by another steward."""
    if not (recipe.site.at_end or recipe.site.mail):
        return False
    kinds = [item.kind for item in decisions.read(folder)]
    last = max((place for place, kind in enumerate(kinds) if kind == decisions.DECIDED), default=0)
    return decisions.AT_END not in kinds[last:]


def _start(words: list[str], folder: Path, outcome: str, reason: str) -> str:
    """Run a program without a shell; what went wrong, or nothing."""
    told = {"HALA_RUN": str(folder), "HALA_OUTCOME": outcome, "HALA_REASON": reason}
    try:
        with commands.outside_any_job():
            done = subprocess.run(
                words,
                env=os.environ | told,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"site.at_end: {error}"
    said = " ".join((done.stderr or done.stdout).split())[-MOST_CHARACTERS:]
    return f"site.at_end: {words[0]} ended with {done.returncode}: {said}" if done.returncode else ""


def _mail(recipe: Recipe, address: str, name: str, outcome: str) -> str:
    """Hand in a job that does nothing but end: its name, which is in Slurm's mail, says how the run ended."""
    slurm = without_gpus(recipe.site).slurm
    options = {
        "job-name": f"hala-{name}-{outcome}",
        "mail-user": address,
        "mail-type": "END,FAIL",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": "1",
        "ntasks": "1",
        "output": os.devnull,
        "wrap": "true",
    }
    words = [f"--{option}={value}" for option, value in options.items() if value is not None]
    if recipe.site.executor != "slurm":
        return "site.mail: without Slurm nobody writes it"
    try:
        with commands.outside_any_job(options):
            commands.run("sbatch", *words)
    except HalaError as error:
        return f"site.mail: {error.message}"
    return ""
