"""Small files damaged at random are read, or refused in a line; what is planned is what a worker reads."""

import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from tests.data.helpers import lines, planned, read

ROWS = [
    {"text": "a é", "n": 1, "turns": [{"role": "u", "content": None}]},
    {"text": "b \ud83d", "n": 2.5, "turns": []},
    {"text": "c", "x": {"y": [1, "z"]}},
]
PIECES = [b'"', b"{", b"]", b"\xff", b"\x00", b"\r", b",", b"\\u", b"NaN", b"\xef\xbb\xbf", b"\n\n", b"9" * 30]
TIMES = 40


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _arrow(make: Callable[..., pa.RecordBatchStreamWriter]) -> bytes:
    sink = io.BytesIO()
    with make(sink, TABLE.schema) as out:
        out.write_table(TABLE)
    return sink.getvalue()


def _zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(raw)
    return bytes(sink.getvalue().to_pybytes())


TABLE = pa.table({"text": ["a", "b", "c"], "s": [{"a": 1}, None, {"a": 2}]})
JSONL = json.dumps(ROWS[0]).encode() + b"\n" + json.dumps(ROWS[1]).encode() + b"\n" + lines(ROWS[2:])
FILES = {
    "a.jsonl": JSONL,
    "a.json": json.dumps(ROWS).encode(),
    "document.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "a.csv": b'text,n\na,1\n"b\n",2\n',
    "a.txt": b"a\nb\n",
    "a.parquet": _parquet(TABLE),
    "a.arrow": _arrow(pa.ipc.new_file),
    "b.arrow": _arrow(pa.ipc.new_stream),
    "a.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "a.jsonl.zst": _zstd(JSONL),
}


@pytest.mark.parametrize("name", FILES)
def test_damage_never_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    chance = random.Random(name)
    for _ in range(TIMES):
        path = tmp_path / name
        path.write_bytes(_damaged(bytearray(FILES[name]), chance))
        asked = {"bad_rows": chance.choice(["refuse", "set_aside"]), "limit": chance.choice([None, 2])}
        asked |= {"field": "data"} if name == "document.json" else {}
        try:
            cut = planned(tmp_path / "run", path, **asked)
        except HalaError as error:
            assert str(path) in str(error)
        else:
            assert len(read(tmp_path / "run", cut)) == cut.facts.rows
        shutil.rmtree(tmp_path / "run")


def _damaged(raw: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(len(raw) + 1)
        match chance.randrange(4):
            case 0:
                raw[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del raw[place:]
            case 2:
                raw[place:place] = chance.choice(PIECES)
            case _:
                del raw[place : place + chance.randrange(20)]
    return bytes(raw)
