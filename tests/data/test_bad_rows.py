"""Rows that cannot be taken: all of them named at once, or set aside, and passed over by the worker as well."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Run
from hala_hpc.data import bad_rows, shards
from hala_hpc.data import cut as cutting
from hala_hpc.data.bad_rows import LEFT_OUT, BadRows
from hala_hpc.data.cut import Cut
from hala_hpc.data.files import readers, sources
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import shape_of
from tests.data.helpers import NOTHING, lines, planned, read, rows_of, write

BROKEN = b'{"text":\n'
DOUBLED = b'{"text": "first", "a": {"b": 1, "c": [{"d": 1, "d" : 2}]}}\n'
HALF = b'{"text": "cut \\ud83d", "n": [NaN, -Infinity, 1.5], "\\udc00": "\\ud83d\\ude00"}\n'


def texts_of(row: Row) -> list[str]:
    """As shapes do: a row whose text is none is refused."""
    if not isinstance(row.get("text"), str):
        raise HalaError(f"column 'text' holds {readers.what(row.get('text'))}, not text")
    return [row["text"]]


def cut_texts(folder: Path, *paths: Path, rows: int = 2, **data: Any) -> Cut:
    folder.mkdir()
    asked = Data(path=list(map(str, paths)), **data)
    return cutting.cut(asked, Run(shard_rows=rows), "translate", folder, lambda _: texts_of, NOTHING)


def test_all_bad_rows_are_named_in_one_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([{"text": "a"}]) + BROKEN + b"[]\n" + lines([{"text": 5}, {"text": "b"}]))
    with pytest.raises(HalaError) as caught:
        cut_texts(tmp_path / "run", path)
    said = str(caught.value)
    assert said.startswith(f"3 bad rows: {path}:2: not valid JSON: ")
    assert f"; {path}:3: a row is a JSON object, this is a list; {path}: row 4: column 'text' holds a number" in said
    assert "data.bad_rows=set_aside leaves such rows out" in said


def test_a_column_that_only_a_bad_row_has_is_not_said_to_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": "a", "meta": {"k": "x"}}, {"id": "b", "meta": {"k": "x", "j": 2}}])
    asked = Data(path=[str(path)], columns=["meta.j"])

    def find(schema: pa.Schema) -> cutting.TextsOf:
        shape = shape_of(asked, [], schema)
        return lambda row: [text for _, text in shape.texts(row)]

    with pytest.raises(HalaError, match=r"a\.jsonl: row 2: column 'meta\.j' holds a number, not text"):
        cutting.cut(asked, Run(), "translate", tmp_path, find, NOTHING)


def test_of_many_bad_rows_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([{"text": "a"}]) + BROKEN * 20)
    with pytest.raises(HalaError, match=r"^20 bad rows: .*a\.jsonl:6: [^;]*; and 15 more \("):
        cut_texts(tmp_path / "run", path)
    write(path, lines([{"text": "a"}]) + BROKEN * 5000)
    with pytest.raises(HalaError, match=r"^1,000 or more bad rows: "):
        cut_texts(tmp_path / "two", path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_what_is_set_aside_is_counted_and_listed_and_passed_over_again(tmp_path: Path, name: str) -> None:
    given = [
        b'{"text": "a"}\n',
        BROKEN,
        b'{"text": 5}\n',
        b'{"text": "b"}\n',
        DOUBLED,
        b'{"text": "c"}\n',
        b'{"text": []}\n',
    ]
    content = b"[" + b",".join(given).replace(BROKEN, b'{"text":}') + b"]" if name == "a.json" else b"".join(given)
    path = write(tmp_path / name, content)
    cut = cut_texts(tmp_path / "run", path, bad_rows="set_aside")
    assert read(tmp_path / "run", cut) == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert cut.facts.notes == {
        "rows set aside: not valid JSON": 1,
        "rows set aside: column 'text' holds a number, not text": 1,
        "rows set aside: the key 'd' is there twice": 1,
        "rows set aside: column 'text' holds a list, not text": 1,
    }
    listed = [json.loads(line) for line in (tmp_path / "run" / bad_rows.SET_ASIDE).read_text().splitlines()]
    numbers = sorted(int(line["where"].replace(": row ", ":").rsplit(":", 1)[1]) for line in listed)
    assert numbers == [2, 3, 5, 7]
    assert shards.read_input(tmp_path / "run", cut.shards[0], cut.facts).table.schema.field("text").type == pa.string()


def test_rows_of_csv_text_and_parquet_are_set_aside_too(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.csv", b'text,b\n1,2\n3\n"x"y,1\n\xff,1\n4,5\n'),
        write(tmp_path / "b.txt", b"one\n\xff\ntwo\n"),
        write(tmp_path / "c.parquet", _with_bad_text(["x", "\x00", "y", "z"])),
    ]
    cut = cut_texts(tmp_path / "run", *paths, bad_rows="set_aside")
    expected = [{"text": "1", "b": "2"}, {"text": "4", "b": "5"}, {"text": "one"}, {"text": "two"}]
    assert read(tmp_path / "run", cut) == [*expected, {"text": "x"}, {"text": "y"}, {"text": "z"}]
    assert sum(cut.facts.notes.values()) == 5
    with pytest.raises(HalaError, match=r"c\.parquet: row 2: column 'text' holds what is not a value of its type"):
        cut_texts(tmp_path / "two", paths[2])


def _with_bad_text(texts: list[str]) -> pa.Table:
    """A column of text in which a NUL became a byte that is no UTF-8."""
    column = pa.array(texts)
    offsets, data = column.buffers()[1:]
    raw = pa.py_buffer(data.to_pybytes().replace(b"\x00", b"\xff"))
    return pa.table({"text": pa.StringArray.from_buffers(len(texts), offsets, raw)})


def test_the_limit_counts_rows_that_are_taken(tmp_path: Path) -> None:
    rows = [{"text": n if n % 3 else f"t{n}"} for n in range(3000)]
    for name, content in (("a.jsonl", lines(rows)), ("a.json", json.dumps(rows).encode())):
        path = write(tmp_path / name, content)
        cut = cut_texts(tmp_path / f"run-{name}", path, rows=400, bad_rows="set_aside", limit=900)
        assert read(tmp_path / f"run-{name}", cut) == [row for row in rows if isinstance(row["text"], str)][:900]
        assert cut.facts.notes == {"rows set aside: column 'text' holds a number, not text": 1798}
        listed = (tmp_path / f"run-{name}" / bad_rows.SET_ASIDE).read_text().splitlines()
        assert json.loads(listed[-1])["where"] == f"{path}: row 2697"
    copied = (tmp_path / "run-a.json/input/00000.jsonl").read_bytes().splitlines()
    assert len(copied) == 2700


def test_bad_rows_after_the_limit_are_nobodys_business(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", lines([{"text": "a"}]) + BROKEN),
        write(tmp_path / "b.json", '[{"text": "a"}, {"text": '),
        write(tmp_path / "c.parquet", _with_bad_text(["a", "\x00"])),
    ]
    for path in paths:
        assert rows_of(tmp_path / f"run-{path.name}", path, limit=1) == [{"text": "a"}]


def test_a_row_that_cannot_be_kept_is_not_counted_in_its_shard(tmp_path: Path) -> None:
    deep = pa.array(["1", "[" * 300 + "]" * 300, "3"], pa.string()).cast(pa.json_())
    path = write(tmp_path / "a.parquet", pa.table({"text": ["a", "b", "c"], "deep": deep}))
    cut = cut_texts(tmp_path / "run", path, rows=9, bad_rows="set_aside")
    assert [row["text"] for row in read(tmp_path / "run", cut)] == ["a", "c"]


def test_nothing_but_bad_rows_is_refused_though_set_aside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", BROKEN * 2)
    with pytest.raises(HalaError, match=r"^2 bad rows: .*a\.jsonl:1: .*a\.jsonl:2: "):
        cut_texts(tmp_path / "run", path, bad_rows="set_aside")


def test_a_damaged_list_of_what_was_set_aside_stops_the_worker(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines([{"text": "a"}]) + BROKEN * 2)
    cut = cut_texts(tmp_path / "run", path, bad_rows="set_aside")
    listed = tmp_path / "run" / bad_rows.SET_ASIDE
    listed.write_bytes(listed.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(HalaError, match=r"set_aside\.jsonl: names 1 row of .*a\.jsonl, not 2"):
        read(tmp_path / "run", cut)


def test_halves_of_pairs_and_nan_are_mended_and_counted(tmp_path: Path) -> None:
    row = {"text": "cut \ufffd", "n": [None, None, 1.5], "\ufffd": "😀"}
    for name, content in (("a.jsonl", HALF), ("a.json", b"[" + HALF + b"]")):
        cut = planned(tmp_path / f"run-{name}", write(tmp_path / name, content))
        assert read(tmp_path / f"run-{name}", cut) == [row]
        assert cut.facts.notes == {readers.NAN: 1, readers.HALF: 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1, "a": 1}', "the key 'a' is there twice"),
        (b'{"a" : 1, "a": 1}', "the key 'a' is there twice"),
        (b'{"a": 1, "\\u0061": 1}', "the key 'a' is there twice"),
        (b'{"x\\u0022: y": "\\u0022: ", "b": 1, "b": "\\":"}', "the key 'b' is there twice"),
        (b'{"x": "\\"\\u003a", "b": 1, "b": 2}', "the key 'b' is there twice"),
        (b'{"a": [{"b": NaN, "b": 2}]}', "the key 'b' is there twice"),
        (b'{"a": 1e999}', "the number 1e999 does not fit"),
        (b'{"a": NaN, "b": -9223372036854775809}', "the number -9223372036854775809 does not fit"),
        (b'{"a": ' + b"9" * 5000 + b"}", "does not fit 64 bits"),
        (b'{"a": NaN', "not valid JSON: unexpected character"),
        (b'{"a": "\t"}', "not valid JSON: unexpected control character"),
        (b'{"a": ' + b"[" * 260 + b"]" * 260 + b"}", "nested more than 254 deep"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON: depth limit exceeded"),
        (b"NaN", "a row is a JSON object, this is null"),
    ],
)
def test_lines_that_are_no_row(line: bytes, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        readers.parse_row(line)
    assert said in str(caught.value)


@given(st.recursive(st.none() | st.integers(-9, 9) | st.text('":\\ \ud7ff'), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text('":\\ab '), inner, max_size=3)
)))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_keys_that_are_there_once_are_never_taken_for_doubled(value: Any) -> None:
    for separators in ((",", ":"), (" , ", " : ")):
        line = json.dumps({"x": value}, separators=separators).encode()
        assert readers.parse_row(line) == {"x": value}
        with pytest.raises(HalaError, match="the key 'x' is there twice"):
            readers.parse_row(line[:-1] + b', "x": 1}')


def test_reasons_are_counted_apart_up_to_a_number() -> None:
    notes: Counter[str] = Counter()
    bad = BadRows("set_aside", notes)
    for number in range(30):
        bad.add(f"row {number}", HalaError(f"turn {number} of 'messages' has no 'role'"))
        bad.add(f"row {number}", HalaError(f"role '{chr(97 + number)}' is unknown: which is it?"))
    assert notes["rows set aside: turn N of 'messages' has no 'role'"] == 30
    assert notes["rows set aside: of other reasons"] == 30 - (bad_rows.REASONS - 1)


def test_who_needs_rows_only_once_reads_as_many_as_the_limit(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", lines([{"text": "a"}]) + BROKEN + lines([{"text": "b"}])),
        write(tmp_path / "b.csv", "text\nc\n" + "d\n" * 50),
    ]
    asked = Data(path=list(map(str, paths)), bad_rows="set_aside", limit=3)
    notes: Counter[str] = Counter()
    bad = BadRows(asked.bad_rows, notes, most=1)
    found = [row for _, chunk in sources.read(asked, tmp_path / "copies", NOTHING.say, bad) for row in chunk.rows]
    assert found == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert notes == {"rows set aside: not valid JSON": 1}
    with pytest.raises(HalaError, match=r"^.*a\.jsonl:2: not valid JSON"):
        list(sources.read(replace(asked, bad_rows="refuse"), tmp_path / "copies", NOTHING.say, BadRows(most=1)))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_that_the_condition_leaves_out_are_counted_and_passed_over(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"row {number}", "lang": "en" if number % 3 else "fr"} for number in range(9_000)]
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2_000)
    whole = cut_texts(tmp_path / "run", path, rows=1_000, where='lang == "en" and text != "row 1"', limit=4_000)
    assert whole.facts.rows == 4_000
    assert whole.facts.notes[LEFT_OUT] == sum(row["lang"] == "fr" for row in rows[:6_002]) + 1
    again = [row for shard in whole.shards for row in shards.read_input(tmp_path / "run", shard, whole.facts).rows]
    assert again == [row for row in rows if row["lang"] == "en"][1:4_001]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("language == 1", "data.where: 'language == 1': rows have no 'language'"),
        ("lang > 1", "data.where: "),
        ("lang == ''", "leaves out all 2"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(tmp_path: Path, condition: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "lang": "en"}\n' * 2)
    with pytest.raises(HalaError, match=said):
        cut_texts(tmp_path / "run", path, where=condition)
