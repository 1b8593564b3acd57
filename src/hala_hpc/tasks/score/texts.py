"""Columns of texts from files, datasets and runs, brought together row by row."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError, did_you_mean, few, first_twice, plural, within
from hala_hpc.config.schema import Data
from hala_hpc.data import columns as named
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.columns import reach
from hala_hpc.data.cut import PlanWatch
from hala_hpc.data.files import formats, opening, sources
from hala_hpc.data.files.readers import what
from hala_hpc.data.outputs import collect
from hala_hpc.data.schema import Row, to_rows
from hala_hpc.run import manifest, status
from hala_hpc.run.layout import RunDirectory

Missing = Literal["refuse", "leave_out", "empty"]
NAMED: Final = 5
"""Keys that an error names."""


@dataclass
class Column(Data):
    """Texts: a column of files, of a dataset on the hub or of a finished run (``path: run:NAME``).

    Without ``column`` they are the lines of one text file, empty ones too, without the spaces at their ends: so
    sacrebleu reads them.
    """

    column: str | None = None


@dataclass(frozen=True)
class Texts:
    """The texts of a column, None for a row without one (in quarantine, or null), and their keys where one is used."""

    values: list[str | None]
    keys: list[Any] | None
    origin: str
    bytes: int
    run: Path | None = None


@dataclass(frozen=True)
class Rows:
    """Texts of all sides, row by row. ``keys`` are numbers of rows where no key is used."""

    keys: list[Any]
    references: list[str]
    sources: list[str] | None
    systems: dict[str, list[str]]
    missing: Counter[str]
    """By system: rows that it lacks. They stand as empty texts, where they were not left out."""
    notes: Counter[str] = field(default_factory=Counter)

    def empty(self, system: str) -> int:
        """Texts of a system without a letter or sign, missing ones among them."""
        return sum(not text.strip() for text in self.systems[system])


def read(of: Column, key: str | None, copies: Path, watch: PlanWatch, notes: Counter[str]) -> Texts:
    """The texts of a column. ``copies`` is a folder that may be made. Raises HalaError where they cannot be had."""
    if of.columns:
        raise HalaError(f"columns: {', '.join(of.columns)}: a side has one", "column: NAME")
    if key is None and of.bad_rows == "set_aside":
        raise HalaError("bad_rows: set_aside shifts the rows after it", "task.key: a column that tells rows apart")
    paths = [Path(path) for path in of.path]
    if len(paths) == 1 and (paths[0] / "manifest.parquet").is_file():
        return _of_run(paths[0].resolve(), _named(of, paths[0]), key, watch)
    if of.column is None and key is None and len(paths) == 1 and is_text(paths[0]):
        return Texts(_lines(paths[0], of), None, str(paths[0]), paths[0].stat().st_size)
    sources.resolve(of)  # refuses what is not there before it asks for the column
    column, bad = _named(of), BadRows(of.bad_rows, notes)
    origins: dict[str, int] = {}

    def rows() -> Iterator[Row]:
        for source, chunk in sources.read(of, copies, watch.say, bad):
            origins[source.original] = source.bytes
            yield from chunk.rows

    with within(", ".join(of.path) or str(of.hub)):
        values, keys = _picked(rows(), column, key)
    bad.conclude(len(values))
    return Texts(values, keys, ", ".join(origins), sum(origins.values()))


def is_text(path: Path) -> bool:
    """Whether a file is taken for plain text: by its ending, or because it has none that is known."""
    if not path.is_file() or formats.ENDINGS.get(formats.ending_of(path), "text") != "text":
        return False
    return not opening.first_bytes(path, 6).startswith((b"PAR1", b"ARROW1"))


def _named(of: Column, run: Path | None = None) -> str:
    if of.column is None:
        hint = "column: NAME; a text file needs none" if run is None else _columns_of(run)
        raise HalaError(f"{', '.join(of.path) or of.hub}: which column?", hint)
    return of.column


def _columns_of(run: Path) -> str:
    """What a run's rows have to be scored: its translations, and the other columns."""
    output = RunDirectory(run).shard_output(0)
    if not output.is_file():
        return "column: NAME"
    schema = pq.read_schema(output)
    translations = named.translations(schema)
    others = [name for name in schema.names if name not in translations and not name.startswith("hala_")]
    return f"column: one of its translations, {', '.join(translations) or 'none'}; or of {', '.join(others)}"


def _lines(path: Path, of: Column) -> list[str | None]:
    try:
        with io.TextIOWrapper(opening.open_utf8(path, of.encoding), "utf-8", newline="\n") as file:
            lines: list[str | None] = [line.rstrip() for line in file]
    except UnicodeDecodeError as error:
        raise HalaError(f"{path}: not UTF-8: {error.reason}", "encoding: its own, for example windows-1256") from error
    except opening.UNREADABLE as error:
        raise HalaError(f"{path}: {opening.reason(error)}") from error
    return lines[: of.limit]


def _of_run(run: Path, column: str, key: str | None, watch: PlanWatch) -> Texts:
    """The rows of a finished run; one in quarantine still has the columns that it came with.

    Raises HalaError for another run, and where a shard is damaged.
    """
    directory, plan = manifest.open_run(run)
    if plan.facts.unit != "rows" or plan.facts.suffix != ".parquet":
        raise HalaError(f"{run}: has no rows that could be scored", "name a translation, or a file")
    if missing := status.missing(run):
        raise HalaError(f"{run}: {plural(len(missing), 'shard')} not finished", f"`hala resume {run}`")
    watch.say(f"reading {run.name}")

    def rows() -> Iterator[Row]:
        for shard in plan:
            yield from to_rows(collect.checked(directory, shard, plan.facts))

    with within(str(run)):
        values, keys = _picked(rows(), column, key)
    size = sum(directory.shard_output(shard).stat().st_size for shard in range(len(plan)))
    return Texts(values, keys, str(run), size, run)


def _picked(rows: Iterator[Row], column: str, key: str | None) -> tuple[list[str | None], list[Any] | None]:
    values: list[str | None] = []
    keys: list[Any] = []
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        names |= dict.fromkeys(row)
        value = reach(row, column)
        if value is not None and not isinstance(value, str):
            raise HalaError(f"column '{column}' holds {what(value)} in row {number}, not a text")
        values.append(value)
        if key is not None:
            keys.append(reach(row, key))
    if not values:
        raise HalaError("there are no rows")
    for name in (column, *([key] if key is not None else [])):
        if name not in names and name.split(".")[0] not in names:
            raise HalaError(f"there is no column '{name}'", did_you_mean(name, names))
    return values, keys if key is not None else None


def together(
    references: Texts, source: Texts | None, systems: Mapping[str, Texts], key: str | None, missing: Missing
) -> Rows:
    """Rows of all sides, in the order of the references, by ``key`` or by their numbers.

    Raises HalaError for sides of different length, keys that are there twice, references that are missing, and where
    it is to ``refuse`` them, rows that a system lacks or has beyond the references.
    """
    notes: Counter[str] = Counter()
    keys = _keys("the references", references)
    sides = dict(systems) | ({} if source is None else {"the sources": source})
    values = {name: _in_order(name, side, keys, key, missing, notes) for name, side in sides.items()}
    lacking = Counter({name: sum(value is None for value in values[name]) for name in systems})
    if missing == "refuse" and +lacking:
        said = "; ".join(f"{name} lacks {plural(count, 'row')}" for name, count in (+lacking).items())
        raise HalaError(said, "missing: leave_out scores what all systems have, missing: empty counts them as wrong")
    places = range(len(keys))
    if missing == "leave_out":
        places_kept = [at for at in places if all(values[name][at] is not None for name in systems)]
        if len(places_kept) < len(keys):
            notes["rows left out, which a system lacks"] = len(keys) - len(places_kept)
        if not places_kept:
            raise HalaError("no row is there in all systems", "do their keys mean the same?")
    else:
        places_kept = list(places)
    for name, texts in (("the references", references.values), ("the sources", values.get("the sources"))):
        if texts is not None and (without := [keys[at] for at in places_kept if texts[at] is None]):
            raise HalaError(f"{name}: no text in {plural(len(without), 'row')}: {few(without, NAMED)}")

    def kept(texts: Sequence[str | None]) -> list[str]:
        return [texts[at] or "" for at in places_kept]

    return Rows(
        [keys[at] for at in places_kept],
        kept(references.values),
        kept(values["the sources"]) if source is not None else None,
        {name: kept(values[name]) for name in systems},
        lacking,
        notes,
    )


def _keys(name: str, side: Texts) -> list[Any]:
    """The keys of a side, or the numbers of its rows. Raises HalaError for a key that is there twice."""
    if side.keys is None:
        return list(range(len(side.values)))
    if (twice := first_twice(side.keys)) is not None:
        raise HalaError(f"{name}: the key {twice!r} is there twice", "task.key: a column that tells rows apart")
    return side.keys


def _in_order(
    name: str, side: Texts, keys: Sequence[Any], key: str | None, missing: Missing, notes: Counter[str]
) -> Sequence[str | None]:
    """The texts of a side in the order of the references."""
    with within(name):
        if key is None:
            if len(side.values) != len(keys):
                raise HalaError(
                    f"{plural(len(side.values), 'row')}, and the references have {len(keys):,}",
                    "both must have the same rows in the same order; task.key pairs them by a column",
                )
            return side.values
        wanted = set(keys)
        by_key = dict(zip(_keys("the rows", side), side.values, strict=True))
        if beyond := [own for own in by_key if own not in wanted]:
            if missing == "refuse":
                raise HalaError(f"{plural(len(beyond), 'row')} without a reference: {few(beyond, NAMED)}")
            notes[f"rows of {name} without a reference"] = len(beyond)
        return [by_key.get(own) for own in keys]
