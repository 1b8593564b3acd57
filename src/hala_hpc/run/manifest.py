"""The plan of a run: one row per shard, written once, never again."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError

KEY = b"hala"
"""Metadata key under which the manifest keeps what is true of the whole run."""


@dataclass(frozen=True)
class Shard:
    """What a worker claims: ``rows`` rows from ``start`` on (both counted over the whole run, in source order).

    ``source`` is the file of the first row and ``position`` its place there (a byte offset in JSONL, a row number in
    Parquet); rows that the file lacks come from the sources after it. ``tokens`` are estimated, ``characters`` counted,
    both over the texts to be worked on. ``digest`` is that of the shard's input.
    """

    id: int
    task: str
    source: str
    position: int
    start: int
    rows: int
    characters: int
    tokens: int
    digest: str


SCHEMA = pa.schema([(name, pa.string() if kind is str else pa.int64()) for name, kind in Shard.__annotations__.items()])


@dataclass(frozen=True)
class Facts:
    """What is true of the whole run: its sources, the shape of its output, and what made it.

    ``sources`` holds a dict per input file (path, rows, bytes, and of which file it is a copy); ``schema`` the Arrow
    schema of the input rows (serialized, hex); ``texts`` the number of texts to work on; ``unit`` what ``rows`` counts
    (models: of a training); ``items`` what each shard asks for, where it is not rows; ``notes`` counts, by words for a
    person, what was left as it is, replaced or set aside while planning: plan and card show them.
    """

    suffix: str
    rows: int
    texts: int
    characters: int
    tokens: int
    sources: list[dict[str, Any]] = field(default_factory=list)
    schema: str = ""
    made_by: dict[str, str] = field(default_factory=dict)
    unit: Literal["rows", "models", "checkpoints", "files", "merges", "benchmarks"] = "rows"
    items: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


class Manifest:
    """A read manifest. Columns stay in Arrow, so 100,000 shards cost milliseconds."""

    def __init__(self, table: pa.Table, facts: Facts) -> None:
        self._table = table
        self.facts = facts

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, shard: int) -> Shard:
        return Shard(**{name: self._table[name][shard].as_py() for name in SCHEMA.names})

    def __iter__(self) -> Iterator[Shard]:
        for row in self._table.to_pylist():
            yield Shard(**row)

    def column(self, name: str) -> list[Any]:
        """One column over all shards, in the order of their ids."""
        values: list[Any] = self._table[name].to_pylist()
        return values


def write(path: Path, shards: Sequence[Shard], facts: Facts) -> None:
    """Write the manifest into a folder that is still being made (see ``files.whole_directory``)."""
    table = pa.Table.from_pylist([asdict(shard) for shard in shards], schema=SCHEMA)
    table = table.replace_schema_metadata({KEY: json.dumps(asdict(facts)).encode()})
    pq.write_table(table, path)


def read(path: Path) -> Manifest:
    """Read a manifest. Raises HalaError where it is none."""
    try:
        # Not pq.read_table: it imports pyarrow.dataset and with it pandas, which takes longer than all else here.
        table = pq.ParquetFile(path).read()
        facts = Facts(**json.loads(table.schema.metadata[KEY]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise HalaError(f"{path}: not a manifest of a run: {error}") from error
    return Manifest(table, facts)
