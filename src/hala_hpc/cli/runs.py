"""``hala runs``: the runs there are."""

from pathlib import Path
from typing import Any

import click

from hala_hpc.cli import common


@click.command()
@click.option("--root", type=click.Path(path_type=Path), help="Where to look. [$HALA_RUNS, else ./runs]")
@common.as_json
def command(root: Path | None, json_: bool) -> None:
    r"""List the runs, newest first.

    \b
    hala runs --root /scratch/me/runs
    """
    folder = root or common.runs_root()
    found = sorted(folder.glob("*/manifest.parquet"), key=lambda path: path.stat().st_mtime, reverse=True)
    rows = [_row(path.parent) for path in found]
    if json_:
        common.echo_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "shards", "rows", "workers", "planned", box=None, pad_edge=False)
    for row in rows:
        counts = (f"{row['done']:,}/{row['shards']:,}", f"{row['rows_done']:,}/{row['rows']:,}")
        table.add_row(row["run"], *counts, str(row["workers"]), row["planned_at"])
    Console().print(table if rows else f"no runs in {folder}")


def _row(path: Path) -> dict[str, Any]:
    from hala_hpc.run import manifest, status

    settings = common.run_settings(path)
    state = status.read(path, settings.lease_seconds, settings.attempts)
    return {
        "run": state.run,
        "path": state.path,
        "shards": state.shards,
        "done": state.done,
        "failed": state.failed,
        "rows": state.rows,
        "rows_done": state.rows_done,
        "workers": sum(worker.alive for worker in state.workers),
        "planned_at": manifest.read(path / "manifest.parquet").facts.made_by.get("planned_at", ""),
    }
