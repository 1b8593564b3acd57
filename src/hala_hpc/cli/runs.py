"""``hala runs``: the runs there are."""

from pathlib import Path
from typing import Any

import click

from hala_hpc.cli import common
from hala_hpc.config import frozen
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup
from hala_hpc.run.layout import GRID


@click.command()
@click.option(
    "--root",
    type=common.Place(path_type=Path),
    help="Where to look. [$HALA_RUNS, else run.root of $HALA_SITE, else ./runs]",
)
@common.as_json
def command(root: Path | None, json_: bool) -> None:
    r"""List the runs, newest first; a grid is one line, with the sums of its runs.

    \b
    hala runs --root /scratch/me/runs
    """
    from hala_hpc.config.errors import HalaError

    if root is not None and not root.is_dir():
        raise HalaError(f"--root: {root} is no folder", "give the folder that your runs are in")
    folder = root or lookup.runs_root()
    found = [*folder.glob("*/manifest.parquet"), *folder.glob(f"*/{GRID}")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    rows = [(_grid if path.name == GRID else _row)(path.parent) for path in found]
    broken = [row for row in rows if "error" in row] + _half_planned(folder)
    if json_:
        common.echo_json(rows + broken[sum("error" in row for row in rows) :])
        return
    from rich.table import Table

    table = Table("run", "shards", "rows", "workers", "planned", box=None, pad_edge=False)
    whole = [row for row in rows if "error" not in row]
    for row in whole:
        counts = (f"{row['done']:,}/{row['shards']:,}", f"{row['rows_done']:,}/{row['rows']:,}")
        name = f"{row['run']} (grid of {plural(row['runs'], 'run')})" if "runs" in row else row["run"]
        table.add_row(name, *counts, str(row["workers"]), row["planned_at"])
    if whole:
        common.show(table)
    else:
        click.echo(f"no runs in {folder.resolve()}")
    for row in broken:
        click.echo(f"{row['run']}: {row['error']}", err=True)


def _half_planned(root: Path) -> list[dict[str, Any]]:
    """Folders that a plan which was killed, or is at work still, has left."""
    from hala_hpc.run import create

    said = "in the making, or left by a plan that was killed"
    return [
        {
            "run": path.name,
            "path": str(path),
            "error": f"{said} (last changed {common.human_seconds(seconds)} ago): rm -r {path}",
        }
        for path, seconds in create.half_made(root)
    ]


def _grid(path: Path) -> dict[str, Any]:
    """The sums of a grid's runs; ``error`` where one of them cannot be read."""
    rows = [_row(run.parent) for run in sorted(path.glob("[!.]*/manifest.parquet"))]
    if broken := [f"{row['run']}: {row['error']}" for row in rows if "error" in row]:
        return {"run": path.name, "path": str(path), "error": "; ".join(broken)}
    sums = {key: sum(row[key] for row in rows) for key in ("shards", "done", "failed", "rows", "rows_done", "workers")}
    planned_at = max((row["planned_at"] for row in rows), default="")
    return {"run": path.name, "path": str(path), "runs": len(rows), **sums, "planned_at": planned_at}


def _row(path: Path) -> dict[str, Any]:
    """What is told of a run; ``error`` alone of one that cannot be read."""
    from hala_hpc.config.errors import HalaError
    from hala_hpc.run import manifest, status

    try:
        settings = frozen.settings(path)
        state = status.read(path, settings.lease_seconds, settings.attempts)
    except (HalaError, OSError) as error:
        return {"run": path.name, "path": str(path), "error": " ".join(str(error).split())}
    return {
        "run": state.run,
        "path": state.path,
        "shards": state.shards,
        "done": state.done,
        "failed": state.failed,
        "rows": state.rows,
        "rows_done": state.rows_done,
        "workers": state.alive,
        "planned_at": manifest.read(path / "manifest.parquet").facts.made_by.get("planned_at", ""),
    }
