"""Cut rows into shards that take about equally long, in one pass over the data.

Memory holds a chunk of rows and a line per shard, however large the dataset.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from hala_hpc.config.errors import HalaError, within
from hala_hpc.config.schema import Data, Run
from hala_hpc.data import schema
from hala_hpc.data.bad_rows import LEFT_OUT, BadRows
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
    source: str
    position: int
    start: int
    rows: int = 0
    characters: int = 0
    tokens: int = 0
    hashed: Hash = field(default_factory=schema.new_hash)


@dataclass
class _Cutter:
    """Takes rows one by one and closes a shard when the next row would overfill it."""

    task: str
    run: Run
    data: Data
    texts_of: Finder
    watch: PlanWatch
    bad: BadRows
    shards: list[Shard] = field(default_factory=list)
    rows: int = 0
    texts: int = 0
    filling: _FillingShard | None = None

    def add_source(self, source: Source, name: str) -> pa.Schema | None:
        """Add a source's rows. Returns the schema that holds them, None where there are none."""
        whole: pa.Schema | None = None
        wrong: set[int] = set()
        for chunk in sources.chunks(
            source, name, self.bad, lambda: sources.left(self.data.limit, self.rows), self.data.where
        ):
            fill = chunk.table is not None
            merged = unify(whole, chunk.schema(), fill)
            if (
                wrong or whole is None or not merged.equals(whole, check_metadata=True)
            ):  # a column may first appear late
                with within(source.original):
                    find = self.texts_of(merged)
            wrong = set()
            for place, (row, position) in enumerate(zip(chunk.rows, chunk.positions, strict=True)):
                try:
                    self._add(row, find, name, position)
                except HalaError as error:
                    self.bad.add(f"{source.original}: row {chunk.numbers[place]}", error, name, position)
                    wrong.add(place)
            if len(wrong) < len(chunk.rows):  # a row that is set aside has no say in the types of columns
                whole = unify(whole, chunk.schema(wrong), fill) if wrong else merged
            self.watch.count(self.rows)
        return whole

    def _add(self, row: Row, find: TextsOf, source: str, position: int) -> None:
        try:
            texts, content = find(row), schema.row_bytes(row)
            tokens = sum(estimated_tokens(text) for text in texts)
        except (TypeError, UnicodeEncodeError, RecursionError) as error:
            raise HalaError(f"holds a value that cannot be kept: {error}") from error
        shard = self.filling
        if shard is None or shard.tokens + tokens > self.run.shard_tokens or shard.rows >= self.run.shard_rows:
            self.close()
            shard = self.filling = _FillingShard(source, position, self.rows)
        shard.rows += 1
        shard.tokens += tokens
        shard.characters += sum(map(len, texts))
        shard.hashed.update(content)
        self.rows += 1
        self.texts += len(texts)

    def close(self) -> None:
        """Close the shard that is being filled, if it holds rows."""
        if (shard := self.filling) is not None:
            numbers = (shard.position, shard.start, shard.rows, shard.characters, shard.tokens)
            self.shards.append(Shard(len(self.shards), self.task, shard.source, *numbers, shard.hashed.hexdigest()))
        self.filling = None


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
    notes = Counter() if notes is None else notes
    bad = BadRows(data.bad_rows, notes, folder)
    cutter = _Cutter(task, run, data, texts_of, watch, bad)
    kept: list[dict[str, Any]] = []
    whole = Union()
    for source in sources.open_sources(data, folder / "input", watch.say, bad):
        name = source.path.relative_to(folder).as_posix() if source.path.is_relative_to(folder) else str(source.path)
        before = cutter.rows
        held = cutter.add_source(source, name)
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
        left_out = f"data.where leaves out all {notes[LEFT_OUT]:,}" if notes[LEFT_OUT] else ""
        hint = left_out or "an empty dataset has nothing to do"
        raise HalaError(f"data: no rows in {data.hub or ', '.join(data.path)}", hint)
    characters, tokens = (sum(getattr(shard, name) for shard in cutter.shards) for name in ("characters", "tokens"))
    notes.update(whole.notes())
    stored = schema.dump(storable(whole.schema) if whole.is_inferred else whole.schema)
    facts = Facts(".parquet", cutter.rows, cutter.texts, characters, tokens, kept, stored, notes=dict(notes))
    return Cut(cutter.shards, facts)


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, without a tokenizer; at least one."""
    return len(text.encode()) // BYTES_PER_TOKEN + 1
