"""Every format that people have, read whole, from the middle, and in mixed company."""

import datetime
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.files import readers, sources
from tests.data.helpers import lines, planned, read, rows_of, write

ROWS = [{"text": f"t{n}", "n": n} for n in range(20)]
WHEN = datetime.datetime(2020, 1, 2, 3, 4, 5, 678)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize(
    "content",
    [
        lines(ROWS),
        lines(ROWS).rstrip(b"\n"),
        lines(ROWS).replace(b"\n", b"\r\n"),
        b"\n  \n" + lines(ROWS).replace(b"\n", b"\n\n\t\n"),
        b"\xef\xbb\xbf" + lines(ROWS),
    ],
    ids=["plain", "no newline at the end", "CRLF", "blank lines", "BOM"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_json_lines(tmp_path: Path, folder: Path, name: str, content: bytes) -> None:
    assert rows_of(folder, write(tmp_path / name, content)) == ROWS
    assert (folder / "input").exists() == (name not in ("a.jsonl", "a.ndjson"))


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" \n\t"], ids=["plain", "BOM", "space"])
def test_json_arrays(tmp_path: Path, folder: Path, name: str, before: bytes) -> None:
    content = before + json.dumps(ROWS, indent=2).encode()
    assert rows_of(folder, write(tmp_path / name, content)) == ROWS


def test_a_json_array_is_not_read_whole(tmp_path: Path, folder: Path) -> None:
    """Only so much as the limit needs: what follows may even be broken."""
    path = write(tmp_path / "a.json", json.dumps(ROWS * 10_000)[:-5_000])
    assert rows_of(folder, path, limit=7) == ROWS[:7]


def test_csv(tmp_path: Path, folder: Path) -> None:
    content = '\ufefftext,b\n"a, ""q""\nsecond line",1\n\n,\n"عربي",2.50\n'
    rows = [{"text": 'a, "q"\nsecond line', "b": "1"}, {"text": "", "b": ""}, {"text": "عربي", "b": "2.50"}]
    assert rows_of(folder, write(tmp_path / "a.csv", content)) == rows
    assert rows_of(tmp_path / "two", write(tmp_path / "a.csv.gz", content.replace("\n", "\r\n"))) == [
        {"text": 'a, "q"\r\nsecond line', "b": "1"},
        *rows[1:],
    ]


def test_text(tmp_path: Path, folder: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\n\r\n  two \u2028 still two\nthree")
    assert rows_of(folder, path) == [{"text": "one"}, {"text": "  two \u2028 still two"}, {"text": "three"}]


def test_parquet_of_many_types(tmp_path: Path, folder: Path) -> None:
    struct = pa.struct([("from", pa.dictionary(pa.int32(), pa.string())), ("value", pa.large_string())])
    table = pa.table(
        {
            "text": pa.array([f"t{n}" for n in range(20)], pa.large_string()),
            "word": pa.array(["a", "b"] * 10).dictionary_encode(),
            "turns": pa.array([[{"from": "human", "value": "hi"}]] * 10 + [None] * 10, pa.list_(struct)),
            "when": pa.array([WHEN] * 20, pa.timestamp("us")),
            "where": pa.array([WHEN] * 20, pa.timestamp("us", "Europe/Madrid")),
            "nano": pa.array([WHEN] * 20, pa.timestamp("ns")),
            "bytes": pa.array([b"\x00\xff"] * 20),
            "map": pa.array([[("k", 1)]] * 20, pa.map_(pa.string(), pa.int64())),
            "nothing": pa.nulls(20),
        }
    )
    path = write(tmp_path / "a.parquet", table)
    cut = planned(folder, path)
    assert read(folder, cut) == table.to_pylist()
    assert [shard.position for shard in cut.shards] == list(range(0, 20, 3))


def test_parquet_from_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(ROWS))
    assert pq.ParquetFile(path).num_row_groups == 3
    for position in range(21):
        found = [(number, row) for chunk in readers.chunks(path, position) for number, row in _zipped(chunk)]
        assert found == list(enumerate(ROWS))[position:]


def test_json_lines_from_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    whole = [pair for chunk in readers.chunks(path) for pair in _zipped(chunk)]
    for index, (position, _) in enumerate(whole):
        assert [pair for chunk in readers.chunks(path, position) for pair in _zipped(chunk)] == whole[index:]


def _zipped(chunk: readers.Chunk) -> list[tuple[int, dict[str, object]]]:
    return list(zip(chunk.positions, chunk.rows, strict=True))


def test_parquet_under_another_name(tmp_path: Path, folder: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(ROWS)).rename(tmp_path / "blob")
    assert rows_of(folder, path, format="parquet") == ROWS
    assert rows_of(tmp_path / "two", path.rename(tmp_path / "A.PARQUET")) == ROWS


def test_an_empty_parquet_among_others(tmp_path: Path, folder: Path) -> None:
    empty = write(tmp_path / "a.parquet", pa.Table.from_pylist(ROWS).slice(0, 0))
    full = write(tmp_path / "b.parquet", pa.Table.from_pylist(ROWS))
    assert rows_of(folder, empty, full) == ROWS


def test_mixed_formats_and_columns(tmp_path: Path, folder: Path) -> None:
    """Shards run on from one file into the next, whatever it is; columns that a file lacks are null."""
    paths = [
        write(tmp_path / "a.parquet", pa.Table.from_pylist(ROWS)),
        write(tmp_path / "b.jsonl", [{"text": "b", "extra": {"x": [1]}}] * 4),
        write(tmp_path / "c.csv", "text,note\nc,7\n"),
        write(tmp_path / "d.json", json.dumps([{"text": "d"}] * 5)),
        write(tmp_path / "e.txt", "e\nf\n"),
        write(tmp_path / "f.jsonl.gz", ROWS),
    ]
    expected = [*ROWS, *[{"text": "b", "extra": {"x": [1]}}] * 4, {"text": "c", "note": "7"}, *[{"text": "d"}] * 5]
    expected += [{"text": "e"}, {"text": "f"}, *ROWS]
    for rows in (1, 3, 100):
        assert rows_of(tmp_path / f"run{rows}", *paths, rows=rows) == expected


def test_folders_and_globs(tmp_path: Path) -> None:
    names = ["b/2.jsonl", "b/1.jsonl", "a/deep/3.parquet", "a/4.json.gz"]
    hidden = [".git/x.jsonl", "_cache/x.jsonl", "b/.hidden.jsonl", "b/notes.md", "b/x.gz"]
    for name in [*names, *hidden]:
        write(tmp_path / "in" / name, "")
    found = sources.resolve(Data(path=[str(tmp_path / "in")]))
    assert [path.relative_to(tmp_path / "in").as_posix() for path in found] == sorted(names)
    found = sources.resolve(Data(path=[str(tmp_path / "in/b/*.jsonl"), str(tmp_path / "in/a/**/*.parquet")]))
    assert [path.name for path in found] == ["1.jsonl", "2.jsonl", "3.parquet"]
    with pytest.raises(HalaError, match=r"1\.jsonl is named twice"):
        sources.resolve(Data(path=[str(tmp_path / "in/b"), str(tmp_path / "in/b/1.jsonl")]))


def test_the_limit_counts_over_all_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, ROWS) for name in ("a.jsonl", "b.jsonl")]
    for limit in (1, 19, 20, 21, 40, 100):
        assert rows_of(tmp_path / f"run{limit}", *paths, limit=limit) == (ROWS + ROWS)[:limit]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text":\n', "a.jsonl:3: not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not UTF-8: byte 0xff at byte 11 of the line (data.enc"),
        ("a.jsonl", b"{}\n[1]\n", "a.jsonl:2: a row is a JSON object, this is a list"),
        ("a.jsonl", b'{"n": 123456789012345678901}\n', "a.jsonl:1: the number 123456789012345678901 does not fit"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "a.json: not a valid JSON array after row 1: "),
        ("a.json", b'[{"text": "a"}, 5]', "a.json: row 2: a row is a JSON object, this is a number"),
        ("a.json", b'[{"text": "\xff"}]', "a.json: row 1: not UTF-8"),
        ("a.json", b'[{"n": 123456789012345678901}]', "a.json: row 1: the number 123456789012345678901 does not"),
        ("a.json", b"5", "a.json: not a JSON array, it begins with '5'"),
        ("a.json.gz", b"5", "a.json.gz: not a JSON array"),
        ("a.csv", b"text,b\n1,2\n3\n", "a.csv: line 3: does not have the 2 fields"),
        ("a.csv", b"text,b\n1,2,3\n", "a.csv: line 2: does not have the 2 fields"),
        ("a.csv", b"text,text\n1,2\n", "a.csv: line 1: the header names 'text' twice"),
        ("a.csv", b"text,,\n1,2,3\n", "a.csv: line 1: the header names '' twice"),
        ("a.csv", b'text\nok\n"a"b\n', "a.csv: line 3: cannot be read as csv"),
        ("a.csv", b"text\n\xff\n", "a.csv: line 2: not UTF-8 (data.encoding names another"),
        ("a.txt", b"ok\n\xff", "a.txt: line 2: not UTF-8"),
        ("a.txt", b"\xff\xfea", "a.txt: row 1: cannot be read as text: 'utf-16-le' codec"),
        ("a.parquet", b"PAR1", "a.parquet: not readable as Parquet"),
        ("a.parquet.gz", b"PAR1", "a.parquet.gz: not a Parquet file"),
        ("a.foo", b"", "a.foo: cannot tell its format by its ending (set data.format to parquet, arrow, "),
        ("a.jsonl", b"", "no rows in "),
        ("a.csv", b"text,b\n", "no rows in "),
        ("a.json", b"[]", "no rows in "),
    ],
)
def test_broken_files(tmp_path: Path, folder: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        planned(folder, write(tmp_path / name, content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", ["cut off", "damaged"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_broken_gzip(tmp_path: Path, folder: Path, name: str, broken: str) -> None:
    path = write(tmp_path / name, lines([{"text": "abc" * n, "n": n**6} for n in range(500)]))
    raw = bytearray(path.read_bytes())
    if broken == "damaged":
        raw[200:260] = bytes(60)
    path.write_bytes({"cut off": bytes(raw[:-30]), "damaged": bytes(raw)}[broken])
    with pytest.raises(HalaError, match=rf"{re.escape(name)}[: ]"):
        planned(folder, path)


def test_a_source_that_changed(tmp_path: Path, folder: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    cut = planned(folder, path)
    write(path, lines(ROWS).replace(b'"t4"', b'"T4"'))
    with pytest.raises(HalaError, match=r"a\.jsonl: changed since the run was planned \(shard 1\)"):
        read(folder, cut)
    path.unlink()
    with pytest.raises((HalaError, FileNotFoundError)):
        read(folder, cut)
