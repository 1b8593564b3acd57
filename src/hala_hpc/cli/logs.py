"""``hala logs``: what workers printed."""

from collections import deque
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup
from hala_hpc.run import ledger, manifest


@click.command()
@common.run_argument
@click.argument("shard", type=int, required=False)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Lines from the end of each log; 0: all.",
)
@click.option(
    "--rank", type=click.IntRange(min=1), help="A rank of a training's last launch; rank 0 is in the run's own log."
)
def command(run: str, shard: int | None, lines: int, rank: int | None) -> None:
    r"""Show the end of each worker's log; with SHARD, its history and the logs of the workers that were at it.

    \b
    hala logs translate-openorca
    hala logs translate-openorca 17 --lines 0
    hala logs sft-9b --rank 3
    """
    path = lookup.find(run)
    count = len(manifest.read(path / "manifest.parquet"))
    if shard is not None and not 0 <= shard < count:
        raise HalaError(f"{path.name} has no shard {shard}", f"its shards are 0 to {count - 1}")
    if (owner := common.owner_of_closed(path / "logs")) is not None:
        raise HalaError(
            f"the logs of this run are closed: it is {owner}'s", f"`hala status {path}` shows its last errors"
        )
    if rank is not None:
        ranks = path / "logs" / "ranks"
        if not (logs := sorted(ranks.glob(f"*.{rank}.log"))):  # names of launches are in the order of time
            raise HalaError(f"no log of rank {rank} in {ranks}", "trainings have ranks, once they started")
        _show(logs[-1], lines)
        return
    jobs: set[str] = set()
    shown = False
    for file in sorted((path / "ledger").glob("*.jsonl")):
        events = [event for event in ledger.read(file) if shard is not None and event.get("shard") == shard]
        for event in events:
            rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "time", "shard"))
            click.echo(f"{file.stem}: {event['event']} {rest}")
            shown = True
        if events and (job := ledger.first(file).get("job")):
            jobs.add(str(job))
    for log in sorted((path / "logs").glob("*.out")):
        if log.is_file() and (shard is None or any(log.name.startswith(f"{job}_") for job in jobs)):
            _show(log, lines)
            shown = True
    if not shown:
        of = "" if shard is None else f" of shard {shard}"
        click.echo(f"no logs{of}: no worker has written one yet, or they were removed (hala status {path})", err=True)


def _show(log: Path, lines: int) -> None:
    click.secho(f"==> {log} <==", bold=True)
    with log.open(errors="replace") as text:
        click.echo("".join(deque(text, lines or None)), nl=False)
