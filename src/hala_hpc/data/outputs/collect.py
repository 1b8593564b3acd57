"""The finished dataset: all shards in source order, as Parquet with a card; and its check, for the run may be gone."""

import errno
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.data import columns, schema, shards
from hala_hpc.data.files import runs
from hala_hpc.data.outputs import diff
from hala_hpc.data.outputs.judgements import Judgements
from hala_hpc.data.shards import ERROR, KEY, ROW, Progress, reasons_in
from hala_hpc.run import digests, files, lease, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard

FILE_BYTES = 512 * 1024 * 1024
"""About so much Arrow data goes into one Parquet file (ours: the hub's viewer likes files under 500 MB)."""
PATIENCE_SECONDS: Final = 3600.0
"""So long (ours) one plan waits while another collects the rows that both take: millions take minutes."""


@dataclass(frozen=True)
class Collected:
    """What was written."""

    path: str
    files: int
    rows: int
    quarantined: dict[str, int]
    missing_shards: int
    translations: dict[str, str] = field(default_factory=dict)
    judgements: dict[str, str] = field(default_factory=dict)


def collect(path: Path, target: Path, partial: bool = False, progress: Progress = iter) -> Collected:
    """Write the rows of the run at ``path`` to the folder ``target``: whole or not at all.

    ``data/`` holds the rows that were done, ``quarantine.parquet`` the others with their reason; ``collected.verify``
    checks such a folder. Each shard is checked as it is copied.

    Raises HalaError where the run is not finished (with ``partial``: where no shard is), a shard is damaged, outputs
    are taken away meanwhile, or ``target`` exists.
    """
    run, plan = manifest.open_run(path)
    reopened = lease.reopened_at(run)
    missing = sum(not run.shard_output(shard).exists() for shard in range(len(plan)))
    if missing and not partial:
        wanting = f"{missing} of {plural(len(plan), 'shard')} not finished"
        raise HalaError(wanting, f"`hala resume {path}`, or --partial")
    if missing == len(plan):
        raise HalaError("no shard is finished yet: there is nothing to take", f"`hala status {path}`")
    try:
        with files.whole_directory(target) as folder:
            judgements = Judgements.of_run(path)
            written = _write(run, plan, folder, progress, judgements)
            translations = columns.translations(pq.read_schema(next(folder.rglob("*.parquet"))))
            result = Collected(str(target), *written, missing, translations, dict(judgements.facts()))
            again = diff.markdown(diff.diff(path))
            (folder / CARD).write_text("\n".join([card(path, plan.facts, result), *again]))
            if lease.reopened_at(run) != reopened:
                what = "some of its rows were taken away to be done again while they were collected"
                raise HalaError(f"{path}: {what}", f"`hala status {path}`, then collect it again")
    except FileExistsError as error:
        raise HalaError(f"{target} exists", "give another folder with --to") from error
    return result


def collected(path: Path, say: Callable[[str], None], progress: Progress = iter) -> Path:
    """Where the rows of a finished run are for other runs: RUN/final, which is made if it is not there.

    One at a time makes it, and ``say`` is told so. Raises HalaError as ``runs.rows_of`` and ``collect``, and where
    nothing may be written there.
    """
    run, plan = manifest.open_run(path)
    if runs.has_rows(plan.facts) and not run.final.exists():
        runs.refuse_unfinished(path)
        say(f"collecting {plural(plan.facts.rows, 'row')} of {path.name} into {run.final}, as `hala collect` does")
        who = f"collect-{os.uname().nodename}-{secrets.token_hex(4)}"
        try:
            with lease.alone(path, lease.COLLECT, who, frozen.settings(path).lease_seconds, PATIENCE_SECONDS):
                if not run.final.exists():
                    _collect_once(path, run.final, progress)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            cure = f"whose run it is calls `hala collect {path.name}`; or collect it --to a folder, and name that"
            raise HalaError(f"{path}: its rows are not collected, and you may not write there", cure) from error
    return runs.rows_of(path)


def _collect_once(path: Path, target: Path, progress: Progress) -> None:
    """``collect``, where somebody's `hala collect` may be first."""
    try:
        collect(path, target, progress=progress)
    except HalaError:
        if not target.exists():
            raise


def card(path: Path, facts: Facts, collected: Collected) -> str:
    """The dataset card: where the rows come from, how many there are, and what made them."""
    lines = ["---", "configs:", "- config_name: default", "  data_files: data/*.parquet", "---", f"# {path.name}", ""]
    lines += [f"Made by hala_hpc from the run `{path.name}`.", "", "| | |", "|---|---|"]
    lines += [f"| rows | {collected.rows:,} of {facts.rows:,} |"]
    lines += [f"| in quarantine: {reason} | {count:,} |" for reason, count in sorted(collected.quarantined.items())]
    lines += [f"| shards missing | {collected.missing_shards} |"] if collected.missing_shards else []
    lines += [f"| sealed files | {collected.files + bool(collected.quarantined)} |"]
    lines += [f"| `{name}` | translation of `{column}` |" for name, column in collected.translations.items()]
    lines += [f"| {name} | {value} |" for name, value in collected.judgements.items()]
    lines += [f"| note | {count:,} {note} |" for note, count in facts.notes.items()]
    lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.made_by.items()]
    lines += [
        "",
        f"`{ROW}` is a row's number in the sources below, taken one after the other, from 0.",
        *_on_json(facts),
        "",
        "## Sources",
        "",
    ]
    lines += [f"- `{Path(source['original']).name}`: {plural(source['rows'], 'row')}" for source in facts.sources]
    return "\n".join([*lines, ""])


def _on_json(facts: Facts) -> list[str]:
    """A line on the columns whose values have no type of Arrow's in common."""
    columns = [f"`{field.name}`" for field in schema.load(facts.schema) if schema.holds(field.type, schema.is_json)]
    said = "differ in their keys or types: they are of Arrow's JSON type, which `datasets` 4.7 reads."
    return [f"Objects of {', '.join(columns)} {said}"] if columns else []


def _write(
    run: RunDirectory, plan: Manifest, folder: Path, progress: Progress, judgements: Judgements
) -> tuple[int, int, dict[str, int]]:
    (folder / "data").mkdir()
    made_by = {KEY: json.dumps(plan.facts.made_by).encode()}
    data = _Writer(folder / "data", made_by)
    quarantine = _Writer(folder, made_by)
    reasons: Counter[str] = Counter()
    for shard in progress(iter(plan)):
        if not run.shard_output(shard.id).exists():
            continue
        table = checked(run, shard, plan.facts)
        judgements.add(table)
        is_done = pc.is_null(table[ERROR])
        data.add(table.filter(is_done).drop_columns([ERROR]))
        refused = table.filter(pc.invert(is_done))
        if refused.num_rows:
            quarantine.add(refused)
            reasons += reasons_in(refused[ERROR])
    data.close("train-{index:05d}-of-{count:05d}.parquet")
    quarantine.close("quarantine.parquet")
    return len(data.paths), data.rows, dict(reasons)


def checked(run: RunDirectory, shard: Shard, facts: Facts) -> pa.Table:
    """The output of a shard, as a worker wrote it. Raises HalaError where it is not."""
    output = run.shard_output(shard.id)
    try:
        table, sealed = shards.read_output(shard, output, facts)
    except digests.Damaged as error:
        problems: Sequence[str] = [str(error)]
    else:
        if sealed:  # the worker that wrote it held it against its source
            problems = list(shards.row_problems(shard, table[ROW].to_pylist()))
        else:
            problems = shards.check_table(shard, table, sealed, facts, ()).problems
        if not problems:
            return table
    hint = f"`hala resume {run.path} --damaged` sets it aside and does it again"
    raise HalaError(f"shard {shard.id} ({output}): {problems[0]}", hint)


class _Writer:
    """Writes tables to a series of Parquet files, which get their names when their number is known."""

    def __init__(self, folder: Path, metadata: dict[bytes, bytes]) -> None:
        self._folder = folder
        self._metadata = metadata
        self._writer: pq.ParquetWriter | None = None
        self._bytes = 0
        self.paths: list[Path] = []
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        table = table.replace_schema_metadata(self._metadata)
        if self._writer is None or self._bytes > FILE_BYTES:
            self._finish()
            self.paths.append(self._folder / f".{len(self.paths)}.parquet")
            self._writer = digests.open_writer(self.paths[-1], table.schema)
            self._bytes = 0
        self._writer.write_table(table)
        self._bytes += table.nbytes
        self.rows += table.num_rows

    def close(self, name: str) -> None:
        self._finish()
        for index, path in enumerate(self.paths):
            path.rename(self._folder / name.format(index=index, count=len(self.paths)))

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            digests.seal(self.paths[-1])


CARD = "README.md"
QUARANTINE = "quarantine.parquet"
_NAME = re.compile(r"train-([0-9]+)-of-([0-9]+)\.parquet")
_COUNT = re.compile(r"^\| (rows|in quarantine|sealed files)(?:: .*)? \| ([0-9,]+) (?:of|\|$)", re.MULTILINE)
"""What a card counts. It is for people, who may edit it: only these lines matter."""


@dataclass
class FolderVerdict:
    """What is in a folder, and what is wrong with it. ``unsealed`` counts files written before there were seals."""

    path: str
    files: int = 0
    rows: int = 0
    quarantined: int = 0
    unsealed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Every byte of the data is what was written, and as many rows as the card says."""
        return not self.problems and not self.unsealed


def is_collected(folder: Path) -> bool:
    """Whether ``hala collect`` made this folder of a run of rows."""
    return not (folder / "manifest.parquet").exists() and (
        any((folder / "data").glob("train-*.parquet")) or (folder / QUARANTINE).exists()
    )


def verify(folder: Path) -> FolderVerdict:
    """Check the seal of every file, that none is missing and no row stands twice, and the counts of the card."""
    verdict = FolderVerdict(str(folder))
    try:
        card = (folder / CARD).read_text("utf-8")
    except (OSError, ValueError) as error:
        card = ""
        verdict.problems.append(f"{CARD}: cannot be read ({error}), so nothing says how many rows there should be")
    counts = [(name, int(count.replace(",", ""))) for name, count in _COUNT.findall(card)]
    must_be_sealed = "sealed files" in dict(counts)
    data = sorted((folder / "data").glob("*.parquet"))
    _check_names(verdict, data)
    last = -1
    for path in data:
        numbers = _row_numbers(verdict, folder, path, must_be_sealed)
        if numbers != sorted(set(numbers)) or (numbers and numbers[0] <= last):
            verdict.problems.append(f"data/{path.name}: its rows stand twice or are out of order")
        last = max([last, *numbers[-1:]])
        verdict.rows += len(numbers)
    if (folder / QUARANTINE).exists():
        verdict.quarantined = len(_row_numbers(verdict, folder, folder / QUARANTINE, must_be_sealed))
    if not verdict.problems:  # counts of what could not be read would only repeat it
        _check_counts(verdict, counts)
    return verdict


def _row_numbers(verdict: FolderVerdict, folder: Path, path: Path, must_be_sealed: bool) -> list[int]:
    name = path.relative_to(folder)
    verdict.files += 1
    try:
        table, sealed = digests.read(path, must_be_sealed)
        if ROW not in table.column_names:
            raise digests.Damaged(f"lacks the column {ROW}")
    except digests.Damaged as error:
        verdict.problems.append(f"{name}: {error}")
        return []
    verdict.unsealed += not sealed
    return [number for number in table[ROW].to_pylist() if number is not None]


def _check_names(verdict: FolderVerdict, data: list[Path]) -> None:
    named = [match for path in data if (match := _NAME.fullmatch(path.name))]
    strange = [path.name for path in data if not _NAME.fullmatch(path.name)]
    verdict.problems += [f"data/{name}: not made by hala collect" for name in strange]
    count = max((int(match[2]) for match in named), default=0)
    if {int(match[1]) for match in named} != set(range(count)):
        verdict.problems.append(f"data/: {plural(len(named), 'file')}, and their names say {count}")


def _check_counts(verdict: FolderVerdict, counts: list[tuple[str, int]]) -> None:
    """The card says how many rows there are, and since there are seals, how many files bear one."""
    card = dict(reversed(counts))
    held = sum(count for name, count in counts if name == "in quarantine")
    if "rows" not in card:
        verdict.problems.append(f"{CARD}: does not say how many rows there should be")
    elif card["rows"] != verdict.rows:
        verdict.problems.append(f"data/: {plural(verdict.rows, 'row')}, and the card says {card['rows']:,}")
    if held != verdict.quarantined:
        verdict.problems.append(f"{QUARANTINE}: {plural(verdict.quarantined, 'row')}, and the card says {held:,}")
    if card.get("sealed files", verdict.files) != verdict.files:
        verdict.problems.append(f"data/: {plural(verdict.files, 'file')}, and the card says {card['sealed files']:,}")
