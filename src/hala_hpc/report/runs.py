"""One run as a report sees it, and the table of all runs of a report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hala_hpc.config import frozen
from hala_hpc.report import table
from hala_hpc.report.table import Section
from hala_hpc.run import goodput, history, manifest, status
from hala_hpc.run.goodput import Work
from hala_hpc.run.history import History, WorkTotals
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts
from hala_hpc.tasks.train import card

DIGEST_SHOWN = 12
"""Characters of a digest or commit in a table."""


@dataclass(frozen=True)
class ReportedRun:
    """A run directory. ``name`` is unique in a report; ``recipe`` the frozen one as plain data."""

    name: str
    directory: RunDirectory
    recipe: dict[str, Any]
    facts: Facts

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def kind(self) -> str:
        return str(self.recipe["task"]["kind"])

    @cached_property
    def status(self) -> status.Status:
        settings = frozen.settings(self.path)
        return status.read(self.path, settings.lease_seconds, settings.attempts)

    @cached_property
    def history(self) -> History:
        return history.read(self.directory)

    @cached_property
    def goodput(self) -> Work:
        settings = frozen.settings(self.path)
        return goodput.read(self.directory, manifest.read(self.directory.manifest), settings.lease_seconds)

    @cached_property
    def work(self) -> WorkTotals:
        return history.of_run(self.path, self.recipe.get("site") or {})


def read(paths: Sequence[Path]) -> list[ReportedRun]:
    """The runs at ``paths``. Two of one name from different folders are numbered.

    Raises HalaError where a recipe or a manifest cannot be read.
    """
    times = Counter[str]()
    runs = []
    for path in dict.fromkeys(paths):
        times[path.name] += 1
        name = path.name if times[path.name] == 1 else f"{path.name}.{times[path.name]}"
        directory, plan = manifest.open_run(path)
        frozen.settings(path)  # refused here, not in the middle of a report
        runs.append(ReportedRun(name, directory, frozen.read(path), plan.facts))
    return runs


def overview(runs: Sequence[ReportedRun]) -> Section:
    """How far each run is, what it took and what made it."""
    columns = ("run", "task", "done", "failed", "workers", "hours", "worker-hours", "GPU-hours", "planned", "commit")
    note = (
        "Hours are from the first worker's start to the last one's end; worker-hours add up all workers. "
        "The commit is the one of the folder that the run was planned in."
    )
    shown = table.of("runs", "Runs", columns, [*map(_row, runs)], note)
    return Section("runs", "Runs", tables=(shown,))


def _row(run: ReportedRun) -> table.Row:
    state, work = run.status, run.work
    done = f"{state.rows_done:,} of {state.rows:,} {state.unit}"
    done += f", {state.quarantined:,} in quarantine" if state.quarantined else ""
    gpu_hours = card.trained(run.path).get("gpu_hours") if run.kind == "train" else work.gpu_hours or None
    planned, commit = (run.facts.made_by.get(key, "") for key in ("planned_at", "git_commit"))
    hours = (work.elapsed_hours, work.hours, gpu_hours)
    return [run.name, run.kind, done, state.failed, work.workers, *hours, planned, commit[:DIGEST_SHOWN]]
