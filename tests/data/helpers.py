"""Small datasets on the disk, planned as shards and read back."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.schema import Data, Run
from hala_hpc.data import cut as cutting
from hala_hpc.data import shards
from hala_hpc.data.cut import Cut
from hala_hpc.data.schema import Row, row_bytes

NOTHING = cutting.PlanWatch()


def lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(path: Path, content: bytes | str | pa.Table | Sequence[Row]) -> Path:
    """Bytes and text as they are, a table as Parquet with small row groups, rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path, row_group_size=7)
        return path
    raw = content.encode() if isinstance(content, str) else content if isinstance(content, bytes) else lines(content)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def planned(folder: Path, *paths: Path, rows: int = 3, **data: Any) -> Cut:
    """Cut files into shards; every text of a row at its top level counts."""
    folder.mkdir(exist_ok=True)
    asked = Data(path=list(map(str, paths)), **data)
    run = Run(shard_rows=rows)
    return cutting.cut(asked, run, "translate", folder, lambda _: lambda row: ["x"] if row else [], NOTHING)


def read(folder: Path, cut: Cut) -> list[Row]:
    """All shards' rows, one after the other, whatever else the manifest says of them held against it."""
    found: list[Row] = []
    for shard in cut.shards:
        given = shards.read_input(folder, shard, cut.facts)
        assert (shard.start, shard.rows) == (len(found), len(given.rows) or None)
        assert [number for number, _ in given.numbered()] == list(range(shard.start, shard.start + shard.rows))
        found += given.rows
    assert len(found) == cut.facts.rows == sum(source["rows"] for source in cut.facts.sources)
    return found


def rows_of(folder: Path, *paths: Path, **data: Any) -> list[Row]:
    return read(folder, planned(folder, *paths, **data))


def same(one: Sequence[Row], other: Sequence[Row]) -> bool:
    """Equal but for absent keys and 1 against 1.0."""
    return list(map(row_bytes, one)) == list(map(row_bytes, other))
