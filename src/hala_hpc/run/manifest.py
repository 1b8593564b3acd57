"""The plan of a run: one row per shard, written once, never again."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.run import seal
from hala_hpc.run.layout import RunDirectory

CURE = "it is the plan, which nothing makes again: put a copy back, or plan anew under another name"
ASSEMBLED = ("quantize", "compare")
"""Tasks with a last step, for manifests that do not say so."""
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


Unit = Literal["rows", "models", "checkpoints", "files", "merges", "benchmarks"]
"""What ``Facts.rows`` counts."""


@dataclass(frozen=True)
class Facts:
    """What is true of the whole run: its sources, the shape of its output, and what made it.

    ``sources`` holds a dict per input file (path, rows, bytes, and of which file it is a copy); ``schema`` the Arrow
    schema of the input rows (serialized, hex); ``texts`` the number of texts to work on; ``unit`` what ``rows`` counts
    (models for a training); ``items`` what each shard asks for, where it is not rows; ``notes`` counts, by words for a
    person, what was left as it is, replaced or set aside while planning: plan and card show them. ``sealed`` says that
    every Parquet file that the run's workers write is sealed (see ``seal``): one without a seal is damaged.
    ``assembled`` says that the run's result is RUN/final, which a worker makes of all shards as the last step.
    ``expected`` is what the rows of a training's dataset will come to (``tasks.train.prepare.expected``).
    """

    suffix: str
    rows: int
    texts: int
    characters: int
    tokens: int
    sources: list[dict[str, Any]] = field(default_factory=list)
    schema: str = ""
    made_by: dict[str, str] = field(default_factory=dict)
    unit: Unit = "rows"
    items: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    sealed: bool = False
    assembled: bool = False
    expected: dict[str, Any] = field(default_factory=dict)


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
    metadata = json.dumps(asdict(replace(facts, sealed=True)))
    seal.write_table(table.replace_schema_metadata({KEY: metadata.encode()}), path)


def read(path: Path) -> Manifest:
    """Read a manifest. Raises HalaError for another file, and for one that is not what was written."""
    try:
        table, sealed = seal.read(path)
        metadata = json.loads(table.schema.metadata[KEY])
        facts = Facts(**metadata)
        if facts.sealed and not sealed:
            raise seal.Damaged("is damaged: its seal is gone")
        table = table.select(SCHEMA.names)
        if "assembled" not in metadata:  # planned before manifests said so
            facts = replace(facts, assembled=bool(facts.items) and table["task"][0].as_py() in ASSEMBLED)
    except seal.Damaged as error:
        raise HalaError(f"{path}: {error}", CURE) from error
    except (KeyError, TypeError, ValueError) as error:
        raise HalaError(f"{path}: not a manifest of a run: {error}", CURE) from error
    return Manifest(table, facts)


def open_run(path: Path) -> tuple[RunDirectory, Manifest]:
    """The paths and the plan of the run at ``path``. Raises HalaError as ``read``."""
    plan = read(path / "manifest.parquet")
    return RunDirectory(path, plan.facts.suffix), plan
