"""``hala verify``: proof that nothing was lost."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.cli.views import training
from hala_hpc.config.words import plural
from hala_hpc.data import collect
from hala_hpc.pipeline import lookup
from hala_hpc.run import digests, manifest
from hala_hpc.run.verify import Verdict, verify
from hala_hpc.worker import registry

PROVEN = {
    "rows": "proven: every row is there exactly once",
    "models": "proven: every file of the model is what was written, every weight a number",
    "checkpoints": "proven: every file of every model is what was written, every weight a number",
    "files": "proven: every tensor is there, and every file is what was held against the source and written",
    "merges": "proven: every file of every model is what was written, every weight a number",
    "benchmarks": "proven: every result is what its samples say",
    "runs": "all proven",
}
"""By what is counted."""


@dataclass(frozen=True)
class Verified:
    """A run, what came of it, and what it counts."""

    path: Path
    verdict: Verdict
    unit: str

    def as_json(self) -> dict[str, object]:
        return asdict(self.verdict) | {"proven": self.verdict.proven}


@click.command()
@common.run_argument
@common.as_json
def command(run: str, json_: bool) -> None:
    r"""Prove that every input row is in the output or in quarantine, exactly once. Exit code 0: proven; 1: not.

    A training is proven where its model is whole and every row of its datasets was made into tokens; a damaged
    checkpoint is noted. A folder that `hala collect` made is proven where every byte of its data is what was written.

    \b
    hala verify translate-openorca
    hala verify data/openorca-ar
    """
    if collect.is_collected(Path(run)):
        _folder(collect.verify(Path(run)), json_)
    if models := digests.folders(Path(run)):
        _models(models, json_)
    grid, paths = lookup.find_grid(run), lookup.runs(run)
    data = dict.fromkeys(path.resolve() for member in paths for path in training.data_runs(member).values())
    runs, datasets = [_verified(path) for path in paths], [_verified(path) for path in data]
    damaged = [note for run in runs if run.unit == "models" for note in _checkpoints(run.path)]
    proven = all(run.verdict.proven for run in (*runs, *datasets))
    if grid:
        by_name = {run.path.name: run.as_json() for run in (*datasets, *runs)}
        record: dict[str, object] = {"grid": str(grid), "proven": proven, "runs": by_name}
    else:
        record = runs[0].as_json() | {"proven": proven}
        if datasets:
            record["datasets"] = {data.path.name: data.as_json() for data in datasets}
    lines: list[str] = [common.Problem(note) for note in damaged]
    lines += [line for data in datasets for line in _lines(data, grid or paths[0], f"{data.path.name}: ")]
    lines += [line for run in runs for line in _lines(run, run.path, f"{run.path.name}: " if grid else "")]
    last = PROVEN["runs" if grid else runs[0].unit] if proven else "NOT proven"
    common.show(record | ({"checkpoints": damaged} if damaged else {}), json_, [*lines, last], proven)


def _folder(verdict: collect.FolderVerdict, json_: bool) -> None:
    """Show the proof of a collected folder, and end."""
    files = plural(verdict.files, "file")
    lines: list[str] = [common.Problem(problem) for problem in verdict.problems]
    if verdict.unsealed:
        unsealed = f"{verdict.unsealed} of {verdict.files} files were written before there were seals"
        lines += [common.Problem(f"{unsealed}: a change in them cannot be seen (hala collect writes them anew)")]
    lines += [f"{plural(verdict.rows, 'row')}, {verdict.quarantined:,} in quarantine, {files}"]
    lines += ["proven: every byte of its data is what was written" if verdict.proven else "NOT proven"]
    common.show(asdict(verdict) | {"proven": verdict.proven}, json_, lines, verdict.proven)


def _models(folders: list[Path], json_: bool) -> None:
    """Show the proof of folders that were collected from a run, and end."""
    problems = [f"{folder.name}: {fault}" for folder in folders for fault in digests.faults(folder) or []]
    last = "NOT proven" if problems else "proven: every byte but the cards' is what was written"
    record = {"folders": len(folders), "problems": problems, "proven": not problems}
    common.show(record, json_, [*map(common.Problem, problems), last], not problems)


def _verified(path: Path) -> Verified:
    facts = manifest.read(path / "manifest.parquet").facts
    with common.counting(f"verifying {path.name}") as counted:
        verdict = verify(path, registry.create(lookup.thawed(path)).checker(facts), counted)
    return Verified(path, verdict, facts.unit)


def _checkpoints(path: Path) -> list[str]:
    """What is wrong with a training's checkpoints, which says nothing of its model."""
    from hala_hpc.tasks.train import paths
    from hala_hpc.tasks.train.checkpoint import checkpoints

    return [
        f"note: {name} is damaged: {'; '.join(faults[:3])} (a resume does not use it; it may be removed)"
        for name, faults in checkpoints.faults(path / paths.CHECKPOINTS).items()
    ]


def _lines(run: Verified, path: Path, before: str) -> Iterator[str]:
    """A run's counts, and what is to be done about it; ``path`` is what `hala resume` takes."""
    verdict, shards = run.verdict, plural(run.verdict.shards, "shard")
    problems = list(verdict.problems)
    if verdict.missing_shards:
        problems += [f"{verdict.missing_shards} of {shards} not finished: hala resume {path}"]
    if verdict.damaged or verdict.damaged_final:
        which = f"{plural(len(verdict.damaged), 'shard')} damaged" if verdict.damaged else "final/ is damaged"
        problems += [f"{which}: hala resume {path} --damaged sets them aside and does them again"]
    if verdict.unassembled:
        problems += [f"its last step, which makes final/, is not done: hala resume {path}"]
    if verdict.unsealed:
        unsealed = f"{verdict.unsealed:,} of {verdict.shards:,} shards were written before there were seals"
        problems += [f"{unsealed}: of what was added to their rows a change cannot be seen"]
    yield from (common.Problem(f"{before}{problem}") for problem in problems)
    held = ", ".join(f"{count:,} {reason}" for reason, count in sorted(verdict.quarantined.items()))
    quarantine = f", {held or 'none'} in quarantine" if run.unit == "rows" else ""
    yield f"{before}{verdict.rows:,} {run.unit}: {verdict.done:,} done{quarantine}, {shards}"
