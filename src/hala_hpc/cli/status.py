"""``hala status`` and ``hala runs``: how far runs are."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from hala_hpc.cli import common
from hala_hpc.cli.views.run import GridView, RunView
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.pipeline import lookup
from hala_hpc.run import manifest
from hala_hpc.run.layout import GRID, PIPELINE
from hala_hpc.slurm.queue import QueueView


@click.command()
@common.run_argument
@click.option("--watch", is_flag=True, help="Keep showing it until the run is finished.")
@common.as_json
def status_command(run: str, watch: bool, json_: bool) -> None:
    r"""Show shards done, running, waiting and failed, rows/s, tokens/s, time left, workers and the last errors.

    A training also shows its step, loss with its curve, evaluation, rate, last checkpoint and time left.

    \b
    hala status translate-openorca --watch
    hala status runs/demo --json | jq .rows_per_second
    """
    if pipeline := lookup.find_pipeline(run):
        _pipeline_status(pipeline, watch, json_)
        return
    grid = lookup.find_grid(run)
    members = lookup.members(run)
    read = partial((GridView if grid else RunView).read, members[0], QueueView(*members))
    if json_:
        common.show(read().as_json(), json_, ())
    elif not watch:
        Console().print(read().shown())
    else:
        from rich.live import Live  # a status without --watch has no use for it

        with Live(refresh_per_second=4) as live:
            while not (view := read()).finished:
                live.update(view.shown())
                time.sleep(5.0 if grid else 2.0)
            live.update(view.shown())


def _pipeline_status(folder: Path, watch: bool, json_: bool) -> None:
    from hala_hpc.cli.views import pipeline as views
    from hala_hpc.pipeline import stages
    from hala_hpc.pipeline.survey import survey

    now = survey(stages.load(folder))
    if is_live := watch and not json_:
        from rich.live import Live

        with Live(views.table(now), refresh_per_second=4) as live:
            while not now.has_ended and not views.is_abandoned(now):
                time.sleep(5.0)
                now = survey(stages.load(folder))
                live.update(views.table(now))
            now = survey(stages.load(folder))  # whoever went through it may have ended with its last stage
            live.update(views.table(now))
        if not live.console.is_terminal:
            click.echo()  # there, rich leaves the last line open
    lines: list[object] = [*([] if is_live else [views.table(now)]), views.summary(now), views.next_step(now)]
    if views.is_abandoned(now):
        lines.append(common.Problem(f"nobody goes on with it on this machine: hala resume {folder.name}"))
    common.show(views.as_json(now), json_, filter(None, lines))


SUMS: Final = ("shards", "done", "failed", "rows", "rows_done")


@dataclass(frozen=True)
class RunRow:
    """A run, or a grid or pipeline of ``runs`` runs with their sums; ``error`` alone where it cannot be read."""

    path: Path
    error: str = ""
    runs: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    planned_at: str = ""
    kind: str = "grid"

    def as_json(self) -> dict[str, object]:
        record: dict[str, object] = {"run": self.path.name, "path": str(self.path)}
        if self.error:
            return record | {"error": self.error}
        runs = {} if self.runs is None else {"runs": self.runs}
        return record | runs | self.counts | {"planned_at": self.planned_at}


@click.command()
@click.option("--root", type=common.PathOption(), help="Where to look. [$HALA_RUNS, run.root of $HALA_SITE, or ./runs]")
@common.as_json
def runs_command(root: Path | None, json_: bool) -> None:
    r"""List the runs, newest first; a grid or a pipeline is one line, with the sums of its runs.

    \b
    hala runs --root /scratch/me/runs
    """
    if root is not None and not root.is_dir():
        raise HalaError(f"--root: {root} is not a folder", "give the folder that your runs are in")
    folder = root or lookup.runs_roots()[0]
    rows_of = {"manifest.parquet": _row, GRID: _grid, PIPELINE: _pipeline}
    paths = [path for name in rows_of for path in folder.glob(f"*/{name}")]
    paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    rows = [rows_of[path.name](path.parent) for path in paths]
    for path, seconds in manifest.half_made(folder):
        age = f"last changed {common.human_seconds(seconds)} ago"
        rows.append(RunRow(path, f"in the making, or left by a plan that was killed ({age}): rm -r {path}"))
    common.show([row.as_json() for row in rows], json_, _lines(folder, rows))


def _lines(folder: Path, rows: list[RunRow]) -> Iterator[object]:
    table = common.table("run", "shards", "rows", "workers", "planned")
    for row in rows:
        if not row.error:
            counts = row.counts
            name = row.path.name + ("" if row.runs is None else f" ({row.kind} of {plural(row.runs, 'run')})")
            shards = f"{counts['done']:,}/{counts['shards']:,}"
            done = f"{counts['rows_done']:,}/{counts['rows']:,}"
            table.add_row(name, shards, done, str(counts["workers"]), row.planned_at)
    yield table if table.row_count else f"no runs in {folder.resolve()}"
    yield from (common.Problem(f"{row.path.name}: {row.error}") for row in rows if row.error)


def _grid(path: Path) -> RunRow:
    """The sums of a grid's runs; ``error`` where one of them cannot be read."""
    return _sums(path, "grid", [run.parent for run in sorted(path.glob("[!.]*/manifest.parquet"))])


def _pipeline(path: Path) -> RunRow:
    """The sums of the runs of a pipeline's stages, each in its newest version."""
    try:
        return _sums(path, "pipeline", lookup.runs(str(path)))
    except (HalaError, OSError, ValueError, KeyError, TypeError) as error:
        return RunRow(path, f"{PIPELINE} cannot be read: {error}")


def _sums(path: Path, kind: str, runs: list[Path]) -> RunRow:
    rows = [_row(run) for run in runs]
    if broken := [f"{row.path.name}: {row.error}" for row in rows if row.error]:
        return RunRow(path, "; ".join(broken))
    sums = {key: sum(row.counts[key] for row in rows) for key in (*SUMS, "workers")}
    return RunRow(path, "", len(rows), sums, max((row.planned_at for row in rows), default=""), kind)


def _row(path: Path) -> RunRow:
    try:
        state = lookup.state_of(path)
    except (HalaError, OSError) as error:
        return RunRow(path, " ".join(str(error).split()))
    counts = {key: getattr(state, key) for key in SUMS} | {"workers": state.alive}
    planned_at = manifest.read(path / "manifest.parquet").facts.made_by.get("planned_at", "")
    return RunRow(Path(state.path), "", None, counts, planned_at)
