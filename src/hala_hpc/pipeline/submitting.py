"""What people ask for: runs planned and started, and started again, each with the steward that follows the workers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hala_hpc.pipeline import lookup, starting, steward
from hala_hpc.pipeline.planning import PlannedRun, RunList, plan
from hala_hpc.pipeline.steward import Started


def submit(runs: RunList, site: str) -> Started:
    """Plan all runs and start their workers. Raises HalaError; where Slurm refuses, the planned runs stay."""
    lookup.refuse_forgotten_site(site, runs.recipes[0].site.executor)
    planned = plan(runs, runs.folder, to_start=True)
    return start(runs.folder, planned)


def start(folder: Path, planned: Sequence[PlannedRun]) -> Started:
    """Start the workers of new runs. Raises HalaError where Slurm refuses."""
    with steward.alone(folder):  # the steward that follows, whatever becomes of us, must not see half of it
        return steward.start(folder, planned)


def resume(grid: Path, overrides: tuple[str, ...]) -> Started:
    """Start what is missing of a grid's runs that nobody works on. Raises HalaError."""
    with steward.alone(grid):
        busy = starting.at_work(grid)
        runs, left = [], []
        for path in lookup.runs_in(grid):
            run = starting.thawed(path, overrides)
            starting.note_moved(run, overrides)
            state, _ = starting.retry(run)
            runs += [] if state.finished else [run]
            if not state.finished and not busy and not state.alive:
                left.append(run)
        with lookup.changed([run.path for run in left], overrides):
            if left:
                return steward.start(grid, left)
    return replace(steward.keep_followed(grid, runs), runs=left)
