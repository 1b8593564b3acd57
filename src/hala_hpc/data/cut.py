"""Cut rows into shards that take about equally long, in one pass over the data.

Memory holds a chunk of rows and a line per shard, however large the dataset.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Run
from hala_hpc.data import schema
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.files import readers, sources
from hala_hpc.data.files.sources import Source
from hala_hpc.data.schema import Hash, Row
from hala_hpc.data.unify import Union, storable, unify
from hala_hpc.run.manifest import Facts, Shard

BYTES_PER_TOKEN = 4
"""Bytes of UTF-8. Ours: near enough to cut by, for Latin and Arabic script alike; it decides nothing else."""

TextsOf = Callable[[Row], list[str]]
"""The texts of a row that will be worked on; raises HalaError where the row is not of the expected form."""
Finder = Callable[[pa.Schema], TextsOf]
"""How to find the texts of a row, given the schema of a source as far as it is read."""


@dataclass(frozen=True)
class Cut:
    """A plan: shards in the order of their ids, and the facts of the whole."""

    shards: list[Shard]
    facts: Facts


@dataclass(frozen=True)
class PlanWatch:
    """Whoever waits for a plan: ``say`` takes a line of text, ``count`` the rows read so far, ``weigh`` the bytes."""

    say: Callable[[str], None] = lambda _: None
    count: Callable[[int], None] = lambda _: None
    weigh: Callable[[int], None] = lambda _: None


@dataclass
class _FillingShard:
    """The shard that is being filled."""

    source: str
    position: int
    start: int
    rows: int = 0
    characters: int = 0
    tokens: int = 0
    hashed: Hash = field(default_factory=schema.new_hash)


class Cutter:
    """Takes rows one by one and closes a shard when the next row would overfill it."""

    def __init__(self, task: str, shard_tokens: int, shard_rows: int) -> None:
        self._task = task
        self._most = (shard_tokens, shard_rows)
        self._open: _FillingShard | None = None
        self.shards: list[Shard] = []
        self.rows = self.texts = 0

    def add(self, row: Row, texts: list[str], source: str, position: int) -> None:
        tokens = sum(estimated_tokens(text) for text in texts)
        shard = self._open
        if shard is None or shard.tokens + tokens > self._most[0] or shard.rows >= self._most[1]:
            self.close()
            shard = self._open = _FillingShard(source, position, self.rows)
        shard.rows += 1
        shard.tokens += tokens
        shard.characters += sum(map(len, texts))
        shard.hashed.update(schema.row_bytes(row))
        self.rows += 1
        self.texts += len(texts)

    def close(self) -> None:
        """Close the shard that is open, if it holds rows."""
        if (shard := self._open) is not None:
            numbers = (shard.position, shard.start, shard.rows, shard.characters, shard.tokens)
            self.shards.append(Shard(len(self.shards), self._task, shard.source, *numbers, shard.hashed.hexdigest()))
        self._open = None


def cut(
    data: Data, run: Run, task: str, folder: Path, texts_of: Finder, watch: PlanWatch, notes: Counter[str] | None = None
) -> Cut:
    """Plan the shards of a row task.

    Parameters
    ----------
    folder : the run directory in the making; copies of inputs go to its ``input/``.
    notes : what is counted while rows are read (see ``Facts.notes``); the caller's ``texts_of`` may count there too.

    Raises HalaError for a missing or broken file, a missing column, a row of another form, and no rows at all.
    """
    cutter = Cutter(task, run.shard_tokens, run.shard_rows)
    notes = Counter() if notes is None else notes
    bad = BadRows(data.bad_rows, notes, folder)
    kept: list[dict[str, Any]] = []
    whole = Union()
    for source in sources.open_sources(data, folder / "input", watch.say, bad):
        name = source.path.relative_to(folder).as_posix() if source.path.is_relative_to(folder) else str(source.path)
        before = cutter.rows
        held = _cut_source(cutter, source, name, data.limit, texts_of, watch, bad)
        if held is not None:
            whole.add(held, source.original, readers.is_parquet(source.path))
        rows = cutter.rows - before
        kept.append({"path": name, "rows": rows, "bytes": source.bytes, "original": source.original})
        kept[-1] |= {"columns": source.columns, "set_aside": bad.by_source[name]}
        if sources.left(data.limit, cutter.rows) <= 0:
            break
    cutter.close()
    bad.conclude(cutter.rows)
    if whole.schema is None or not cutter.shards:
        raise HalaError(f"data: no rows in {data.hub or ', '.join(data.path)}", "an empty dataset has nothing to do")
    characters, tokens = (sum(getattr(shard, name) for shard in cutter.shards) for name in ("characters", "tokens"))
    notes.update(whole.notes())
    stored = schema.dump(storable(whole.schema) if whole.is_inferred else whole.schema)
    facts = Facts(".parquet", cutter.rows, cutter.texts, characters, tokens, kept, stored, notes=dict(notes))
    return Cut(cutter.shards, facts)


def _cut_source(
    cutter: Cutter, source: Source, name: str, limit: int | None, texts_of: Finder, watch: PlanWatch, bad: BadRows
) -> pa.Schema | None:
    """Add a source's rows to the cutter. Returns the schema that holds them, None where there are none."""
    whole: pa.Schema | None = None
    wrong: set[int] = set()
    for chunk in sources.chunks(source, name, bad, lambda: sources.left(limit, cutter.rows)):
        fill = chunk.table is not None
        merged = unify(whole, chunk.schema(), fill)
        if wrong or whole is None or not merged.equals(whole, check_metadata=True):  # a column may first appear late
            find = _finder(texts_of, merged, source.original)
        wrong = set()
        for place, (row, position) in enumerate(zip(chunk.rows, chunk.positions, strict=True)):
            try:
                _add(cutter, find, row, name, position)
            except HalaError as error:
                bad.add(f"{source.original}: row {chunk.numbers[place]}", error, name, position)
                wrong.add(place)
        if len(wrong) < len(chunk.rows):  # a row that is set aside has no say in the types of columns
            whole = unify(whole, chunk.without(wrong).schema(), fill) if wrong else merged
        watch.count(cutter.rows)
    return whole


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, without a tokenizer; at least one."""
    return len(text.encode()) // BYTES_PER_TOKEN + 1


def _finder(texts_of: Finder, columns: pa.Schema, where: str) -> TextsOf:
    try:
        return texts_of(columns)
    except HalaError as error:
        raise HalaError(f"{where}: {error.message}", error.hint) from error


def _add(cutter: Cutter, find: TextsOf, row: Row, source: str, position: int) -> None:
    try:
        cutter.add(row, find(row), source, position)
    except (TypeError, UnicodeEncodeError, RecursionError) as error:
        raise HalaError(f"holds a value that cannot be kept: {error}") from error
