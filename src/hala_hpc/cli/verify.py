"""``hala verify``: proof that nothing was lost."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup

if TYPE_CHECKING:
    from hala_hpc.data.collect import FolderVerdict
    from hala_hpc.run.verify import Verdict

PROVEN = {
    "rows": "proven: every row is there exactly once",
    "models": "proven: every file of the model is what was written, every weight a number",
    "checkpoints": "proven: every file of every model is what was written, every weight a number",
    "files": "proven: every tensor is there, and every file is what was held against the source and written",
    "merges": "proven: every file of every model is what was written, every weight a number",
    "benchmarks": "proven: every result is what its samples say",
}
"""By what the run counts."""


@click.command()
@common.run_argument
@common.as_json
def command(run: str, json_: bool) -> None:
    r"""Prove that every input row is in the output or in quarantine, exactly once. Exit code 0: proven; 1: not.

    Of a training: that the model is whole, and that every row of its datasets was made into tokens; a damaged
    checkpoint is noted. Of a folder that `hala collect` made: that every byte of its data is what was written.

    \b
    hala verify translate-openorca
    hala verify data/openorca-ar
    """
    from hala_hpc.cli.views import grid as grid_status
    from hala_hpc.data import collect
    from hala_hpc.pipeline import grid
    from hala_hpc.run import digests

    if collect.is_collected(Path(run)):
        _folder(collect.verify(Path(run)), json_)
    if models := digests.folders(Path(run)):
        _models(models, json_)
    if folder := grid.find(run):
        grid_status.verify(folder, json_)
    path = lookup.find(run)
    verdict, unit = _verified(path)
    datasets = {each.name: _verified(each)[0] for each in _datasets(path, unit)}
    damaged = _checkpoints(path) if unit == "models" else []
    proven = all(one.proven for one in (verdict, *datasets.values()))
    if json_:
        told: dict[str, Any] = asdict(verdict) | {"proven": proven}
        if datasets:
            told["datasets"] = {name: asdict(one) | {"proven": one.proven} for name, one in datasets.items()}
        common.echo_json(told | ({"checkpoints": damaged} if damaged else {}))
    else:
        for note in damaged:
            click.echo(note, err=True)
        for name, one in datasets.items():
            _show(one, "rows", path, f"{name}: ")
        _show(verdict, unit, path)
        click.echo(PROVEN[unit] if proven else "NOT proven")
    raise click.exceptions.Exit(0 if proven else 1)


def _folder(verdict: "FolderVerdict", json_: bool) -> None:
    """Tell of a collected folder, and end."""
    if json_:
        common.echo_json(asdict(verdict) | {"proven": verdict.proven})
    else:
        for problem in verdict.problems:
            click.echo(problem, err=True)
        if verdict.unsealed:
            told = f"{verdict.unsealed} of {verdict.files} files were written before there were seals"
            click.echo(f"{told}: a change in them cannot be seen (hala collect writes them anew)", err=True)
        click.echo(
            f"{plural(verdict.rows, 'row')}, {verdict.quarantined:,} in quarantine, {plural(verdict.files, 'file')}"
        )
        click.echo("proven: every byte of its data is what was written" if verdict.proven else "NOT proven")
    raise click.exceptions.Exit(0 if verdict.proven else 1)


def _models(folders: list[Path], json_: bool) -> None:
    """Tell of folders that were collected from a run, and end."""
    from hala_hpc.run import digests

    problems = [f"{folder.name}: {fault}" for folder in folders for fault in digests.faults(folder) or []]
    if json_:
        common.echo_json({"folders": len(folders), "problems": problems, "proven": not problems})
    else:
        for problem in problems:
            click.echo(problem, err=True)
        click.echo("NOT proven" if problems else "proven: every byte but the cards' is what was written")
    raise click.exceptions.Exit(1 if problems else 0)


def _verified(path: Path) -> "tuple[Verdict, str]":
    """The verdict, and what the run counts."""
    from hala_hpc.run import manifest
    from hala_hpc.run.verify import verify
    from hala_hpc.worker import registry

    facts = manifest.read(path / "manifest.parquet").facts
    with common.counting(f"verifying {path.name}") as counted:
        return verify(path, registry.create(lookup.thawed(path)).checker(facts), counted), facts.unit


def _datasets(path: Path, unit: str) -> list[Path]:
    """The runs that made a training's tokens, those that still are there: once it is trained, they may go."""
    if unit != "models":
        return []
    from hala_hpc.cli.views.training import prepare_runs

    return [run for run in prepare_runs(path) if (run / "manifest.parquet").is_file()]


def _checkpoints(path: Path) -> list[str]:
    """What is wrong with a training's checkpoints; it speaks neither for nor against its model."""
    from hala_hpc.tasks.train import paths
    from hala_hpc.tasks.train.checkpoint import checkpoints

    found = checkpoints.faults(path / paths.CHECKPOINTS)
    return [
        f"note: {each} is damaged: {'; '.join(wrong[:3])} (a resume does not use it; it may be removed)"
        for each, wrong in found.items()
    ]


def _show(verdict: "Verdict", unit: str, path: Path, before: str = "") -> None:
    for problem in verdict.problems:
        click.echo(f"{before}{problem}", err=True)
    if verdict.missing_shards:
        told = f"{before}{verdict.missing_shards} of {plural(verdict.shards, 'shard')} not finished: hala resume {path}"
        click.echo(told, err=True)
    if verdict.damaged or verdict.damaged_final:
        which = f"{plural(len(verdict.damaged), 'shard')} damaged" if verdict.damaged else "final/ is damaged"
        told = f"{before}{which}: hala resume {path} --damaged sets them aside and does them again"
        click.echo(told, err=True)
    if verdict.unassembled:
        click.echo(f"{before}its last step, which makes final/, is not done: hala resume {path}", err=True)
    if verdict.unsealed:
        told = f"{verdict.unsealed:,} of {verdict.shards:,} shards were written before there were seals"
        click.echo(f"{before}{told}: of what was added to their rows a change cannot be seen", err=True)
    held = ", ".join(f"{count:,} {reason}" for reason, count in sorted(verdict.quarantined.items()))
    quarantine = f", {held or 'none'} in quarantine" if unit == "rows" else ""
    click.echo(f"{before}{verdict.rows:,} {unit}: {verdict.done:,} done{quarantine}, {plural(verdict.shards, 'shard')}")
