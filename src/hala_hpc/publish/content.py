"""What a run publishes: the files of its model, or of its dataset. They are only read; nothing is changed."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import pyarrow.parquet as pq

from hala_hpc.config import layers
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.data.files import runs
from hala_hpc.data.outputs.collect import QUARANTINE, checked, verify
from hala_hpc.data.outputs.judgements import Judgements
from hala_hpc.data.outputs.quarantine import quarantine_of
from hala_hpc.data.shards import ERROR, Progress, reasons_in
from hala_hpc.models import location
from hala_hpc.models.folder import RECORD, unsound
from hala_hpc.run import digests, manifest
from hala_hpc.run.digests import CARD
from hala_hpc.run.files import read_json
from hala_hpc.tasks.mix import counts

TEXTS: Final = (".json", ".jinja", ".txt", ".md", ".yaml", ".jsonl", ".model")
MOST_TEXT: Final = 64 * 1024 * 1024
"""Larger text files are not looked through for secrets."""
TOKEN: Final = re.compile(layers.SECRETS.encode())


@dataclass(frozen=True)
class Entry:
    """One file that goes out: its name there, and where it is now, or its text. Sizes in bytes."""

    name: str
    file: Path | None = None
    text: str = ""

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file is not None else len(self.text.encode())


@dataclass(frozen=True)
class Content:
    """A model or a dataset, but for its card.

    ``folder`` is the model's, or that of the collected dataset. A dataset has ``rows`` that go out, those in
    quarantine by reason, ``columns`` (name, type), and what its ``judgements`` add up to, where a run judged it.
    ``has_hours``: the model's own card says what its training cost. ``is_there`` is false for a dataset that has to be
    collected first: its entries are shards.
    """

    kind: Literal["model", "dataset"]
    folder: Path
    entries: tuple[Entry, ...]
    rows: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    columns: tuple[tuple[str, str], ...] = ()
    has_hours: bool = False
    is_there: bool = True
    judgements: dict[str, str] = field(default_factory=dict)


def kind_of(run: Path) -> Literal["model", "dataset"]:
    """What the run at ``run`` makes. Raises HalaError for runs that make nothing to publish."""
    facts = manifest.read(run / "manifest.parquet").facts
    if facts.suffix == ".parquet" or (facts.assembled and facts.unit == "rows"):
        return "dataset"
    if facts.suffix == "" and facts.unit in ("models", "checkpoints", "merges", "files"):
        return "model"
    if facts.unit == "benchmarks":
        raise HalaError(f"{run.name}: scores are published with their model", f"hala publish MODEL --scores {run.name}")
    if facts.unit == "systems":
        raise HalaError(f"{run.name}: scores of translations", f"`hala collect {run.name}` puts them in a folder")
    raise HalaError(f"{run.name}: its shards are for a training alone", "publish the training's run")


def model(run: Path, item: str | None = None) -> Content:
    """The model that a run made; of several (merges, checkpoints) the one that ``item`` names.

    Raises HalaError where it is not finished, or the run has no ``item``.
    """
    folder = _one_of(run, item)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    entries = tuple(Entry(name.as_posix(), folder / name) for name in shown if name != Path(CARD))
    return Content("model", folder, entries, has_hours="training" in read_json(folder / RECORD))


def _one_of(run: Path, item: str | None) -> Path:
    """The folder of a run's only model, or of the one that is named: that needs no other to be finished."""
    names = location.items(manifest.read(run / "manifest.parquet").facts)
    if item is None and len(names) > 1:
        raise HalaError(f"{run.name} made {plural(len(names), 'model')}", f"--item, one of: {', '.join(names)}")
    return next(iter(location.locate(str(run)).values())) if item is None else location.of_item(run, item)


def refuse_unsound(content: Content) -> None:
    """Hold every file of a model against its record. Reads all of it. Raises HalaError.

    The files of a dataset have been checked when they were read.
    """
    if content.kind == "model" and (faults := digests.faults(content.folder) or unsound(content.folder)):
        raise HalaError(f"{content.folder}: not as it was made: {'; '.join(faults[:4])}", "`hala verify` says more")


def dataset(run: Path, collected: Path) -> Content:
    """The dataset that ``hala collect`` wrote at ``collected``; rows in quarantine stay here, and are counted.

    Reads all of it. Raises HalaError where it is not what was written, or not all of the run's rows.
    """
    mixed = counts.read(collected)
    expected = sum(int(line["written"]) for line in mixed) or manifest.read(run / "manifest.parquet").facts.rows
    files = sorted((collected / "data").glob("*.parquet"))
    if not files:
        raise HalaError(f"{collected}: no rows that could be published")
    verdict = verify(collected)
    rows = verdict.rows + verdict.quarantined
    problems = verdict.problems[:3] or ([f"{rows:,} of the run's {expected:,} rows"] if rows != expected else [])
    if problems:
        raise HalaError(f"{collected}: {'; '.join(problems)}", f"remove it; `hala collect {run}`")
    if not mixed and collected == run / "final" and runs.is_outdated(run):
        what = "some of the run's rows were taken away since, to be done again"
        raise HalaError(f"{collected}: {what}", f"move it away; `hala collect {run}`")
    held = quarantine_of(collected / QUARANTINE) if verdict.quarantined else Counter[str]()
    entries = tuple(Entry(f"data/{file.name}", file) for file in files)
    judgements = Judgements.of_run(run)
    for file in files if judgements.columns(pq.read_schema(files[0])) else ():
        judgements.add(pq.ParquetFile(file).read(columns=judgements.columns(pq.read_schema(file))))
    said = dict(judgements.facts())
    return Content("dataset", collected, entries, verdict.rows, dict(held), _columns(files[0]), judgements=said)


def uncollected(run: Path, progress: Progress = iter) -> Content:
    """What ``dataset`` will return once it is collected, by the shards. Reads all of them.

    Raises HalaError where some are missing or damaged.
    """
    directory, plan = manifest.open_run(run)
    if plan.facts.assembled:
        raise HalaError(f"{run.name}: its last step, which makes final/, is not done", f"`hala resume {run}`")
    outputs = [directory.shard_output(shard) for shard in range(len(plan))]
    if missing := sum(not output.exists() for output in outputs):
        raise HalaError(f"{missing} of {plural(len(plan), 'shard')} not finished", f"`hala resume {run}`")
    held, judgements = Counter[str](), Judgements.of_run(run)
    for shard in progress(iter(plan)):
        table = checked(directory, shard, plan.facts)
        held += reasons_in(table[ERROR])
        judgements.add(table)
    entries = tuple(Entry(f"data/ (shard {number})", output) for number, output in enumerate(outputs))
    columns = tuple(column for column in _columns(outputs[0]) if column[0] != ERROR)
    rows, said = plan.facts.rows - held.total(), dict(judgements.facts())
    return Content("dataset", run, entries, rows, dict(held), columns, is_there=False, judgements=said)


def refuse_keys(entries: Sequence[Entry]) -> None:
    """Raises HalaError where a text that goes out holds what looks like a secret key."""
    for entry in entries:
        if TOKEN.search(_text(entry)):
            raise HalaError(f"{entry.name}: holds what looks like a secret key", "take it out, and have it revoked")


def naming(entries: Sequence[Entry], folders: Sequence[Path]) -> list[str]:
    """Which texts name one of ``folders``, and so say who worked where, in plain words."""
    marks = [str(folder) for folder in dict.fromkeys(folders) if len(folder.parts) > 2]
    texts = ((entry.name, _text(entry)) for entry in entries)
    first = ((name, next((mark for mark in marks if mark.encode() in text), None)) for name, text in texts)
    return [f"{name} names the folder {mark}" for name, mark in first if mark]


def _text(entry: Entry) -> bytes:
    """The contents of a text file; nothing for weights and rows."""
    if entry.file is None:
        return entry.text.encode()
    return entry.file.read_bytes() if entry.name.endswith(TEXTS) and entry.size <= MOST_TEXT else b""


def _columns(file: Path) -> tuple[tuple[str, str], ...]:
    return tuple((column.name, str(column.type)) for column in pq.read_schema(file))
