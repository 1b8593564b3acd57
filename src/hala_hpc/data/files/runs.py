"""The rows that a run published, as data for another: where they are, and why they cannot be taken.

Only what is collected is data (``RUN/final``): a shard's own file also holds the rows in quarantine.
"""

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.run import lease, manifest, status
from hala_hpc.run.layout import GRID, MORE, RunDirectory
from hala_hpc.run.manifest import Facts

SCORED: Final = "rows.parquet"
"""In the RUN/final of a run that scored texts: every row with its scores."""
_NOT_DATA: Final = ("shards", "partial", "before", "damaged", "again.parquet", "manifest.parquet")
"""What of a run is never data: outputs as workers leave them, and its plan."""
_DEPTH: Final = 4
"""A file of a run is at most so many folders below it: RUN/shards/000/000000/rows.parquet."""


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    return (path / "manifest.parquet").is_file() and (path / "recipe.yaml").is_file()


def run_of(path: Path) -> Path | None:
    """The run whose rows a path stands for: a run's folder, or its RUN/final."""
    run = path.parent if path.name == RunDirectory(path).final.name else path
    return run if is_run(run) else None


def has_rows(facts: Facts) -> bool:
    """Whether the shards of a run are rows, which have to be collected before they are data."""
    return facts.unit == "rows" and facts.suffix == ".parquet"


def refuse_unfinished(run: Path) -> None:
    """Raises HalaError, which says how far it is, for a run that is not finished."""
    directory, plan = manifest.open_run(run)
    if missing := status.missing(run):
        done = f"{len(plan) - len(missing):,} of its {plural(len(plan), 'shard')} are done"
        raise HalaError(f"{run} is not finished: {done}", f"`hala status {run}`; `hala resume {run}` goes on")
    if plan.facts.assembled and not directory.final.is_dir():
        raise HalaError(
            f"{run} is not finished: its last step, which makes final/, is not done", f"`hala resume {run}`"
        )


def rows_of(run: Path) -> Path:
    """The folder or the file with the rows of a finished run.

    Raises HalaError for a run that has none or is not finished, and where they are not collected, not all of them, or
    older than what was done again since.
    """
    directory, plan = manifest.open_run(run)
    facts, final = plan.facts, directory.final
    if not has_rows(facts) and not (facts.assembled and facts.unit in ("rows", "systems")):
        unit = "tokens for a training alone" if facts.suffix == ".arrow" else facts.unit
        raise HalaError(f"{run} has no rows: it is a run of {unit}", "name a run that translated, judged or mixed rows")
    refuse_unfinished(run)
    if facts.unit == "systems":
        return final / SCORED
    if has_rows(facts):
        if not (final / "data").is_dir():
            raise HalaError(f"{run} is a run whose rows are not collected", f"`hala collect {run}` makes its rows data")
        refuse_outdated(run, facts)
    return final


def refuse_outdated(run: Path, facts: Facts) -> None:
    """Raises HalaError where RUN/final has not all rows of the run, or outputs were taken away since it was made."""
    final = RunDirectory(run).final
    anew = f"move {final} away, and it is collected anew; a run that reads it still is resumed with data.path="
    files = [*(final / "data").glob("*.parquet"), *final.glob("quarantine.parquet")]
    try:
        held = sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, pa.ArrowException) as error:
        raise HalaError(f"{final} cannot be read: {error}", anew) from error
    if held != facts.rows:
        raise HalaError(f"{final} holds {held:,} of the run's {facts.rows:,} rows, as with --partial", anew)
    if is_outdated(run):
        raise HalaError(f"{final} is older than the run's rows: some were taken away since, to be done again", anew)


def is_outdated(run: Path) -> bool:
    """Whether outputs were taken away since RUN/final was made: damaged ones, or rows in quarantine."""
    directory = RunDirectory(run)
    return lease.reopened_at(directory) > (directory.final / "data").stat().st_mtime_ns


def refuse_inside(path: Path) -> None:
    """Raises HalaError for a path into a run that is not its rows, and for a grid of runs."""
    if (path / GRID).is_file():
        cells = sorted(folder.parent.name for folder in path.glob("[!.]*/manifest.parquet"))
        raise HalaError(f"data.path: {path} is a grid of runs", f"name one of them: {few(cells, 8, MORE)}")
    if not {*path.parts} & {*_NOT_DATA}:
        return
    for folder in list(path.parents)[:_DEPTH]:
        if is_run(folder):
            if path.relative_to(folder).parts[0] in _NOT_DATA:
                what = f"data.path: {path} lies in the run {folder.name}, and holds what nobody has collected"
                raise HalaError(what, f"data.path={folder} takes the run's rows, without those in quarantine")
            return
