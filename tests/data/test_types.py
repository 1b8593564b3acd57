"""What a value's type is on its way to Parquet and back: each object keeps its own keys, each value is what it was."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import schema, shards
from hala_hpc.data.columns import field_of
from hala_hpc.data.cut import Cut
from hala_hpc.data.documents import Chat, reader_of
from hala_hpc.data.files import readers
from hala_hpc.data.outputs import collect
from hala_hpc.data.schema import Row, digest_of
from hala_hpc.data.unify import infer, storable, unify
from tests.data.helpers import planned, read, rows_of, write

JSON = pa.json_()
WEATHER = {"name": "weather", "arguments": {"city": "Paris", "unit": None}}
ADD = {"name": "add", "arguments": {"x": 2, "y": 2.5}}
LISTED = {"name": "list", "arguments": {}}


def tool(name: str, **properties: Any) -> Row:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def called(call: Row, *tools: Row) -> Row:
    turns = [
        {"role": "user", "content": "Please"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "12."},
    ]
    return {"messages": turns, "tools": list(tools)}


CALLS = [
    called(WEATHER, tool("weather", city={"type": "string", "default": None}, unit={"enum": ["C", "F"]})),
    called(ADD, tool("add", x={"type": "number"}, y={"type": "number", "minimum": 0})),
    called(LISTED, tool("list")),
]

keys = st.sampled_from(["a", "b", "", "a.b", "نص"])
numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)
alike = st.lists(st.fixed_dictionaries({"a": st.text(max_size=2), "b": st.integers(-3, 3)}), max_size=3)
columns = st.dictionaries(keys, values | alike, max_size=3)


def parquet(table: pa.Table) -> pa.Table:
    """As it is once it was written and read."""
    file = io.BytesIO()
    pq.write_table(table, file)
    return pq.ParquetFile(file).read()


def exactly(value: Any, in_object: bool = False) -> Any:
    """A form that tells values apart, types and all; but of a column's own numbers 1 and 1.0 are one."""
    if isinstance(value, dict):
        return {key: exactly(item, True) for key, item in value.items()}
    if isinstance(value, list):
        return [exactly(item, in_object) for item in value]
    if isinstance(value, float) and not in_object and value.is_integer():
        return "int", str(int(value))
    return type(value).__name__, repr(value)


def told(rows: Sequence[Row], names: Sequence[str]) -> list[list[Any]]:
    """The columns of rows; one that a row lacks is null."""
    return [[exactly(row.get(name)) for name in names] for row in rows]


@settings(max_examples=150, deadline=None)
@given(content=st.lists(columns, min_size=1, max_size=6), cut=st.integers(0, 6))
def test_rows_are_what_they_were_after_parquet(content: list[Row], cut: int) -> None:
    """Any rows, seen at once or in two parts, whichever is seen first."""
    rows = [row | {"id": "x"} for row in content]
    parts = [infer(part) for part in (rows[:cut], rows[cut:]) if part]
    for found in (unify(parts[0], parts[-1]), unify(parts[-1], parts[0])):
        table = parquet(schema.to_table(rows, storable(found)))
        assert told(schema.to_rows(table), found.names) == told(rows, found.names)
        assert table.schema == storable(schema.load(schema.dump(found)))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([{"a": 1}, {"a": 2}], pa.struct([("a", pa.int64())])),
        ([{"a": 1}, None], pa.struct([("a", pa.int64())])),
        ([{"a": 1}, {"b": 2}], JSON),
        ([{"a": 1}, {"a": None}], JSON),
        ([{"a": 1}, {"a": 2.5}], pa.struct([("a", JSON)])),
        ([{"a": {"b": 1}}, {"a": {"c": 1}}], pa.struct([("a", JSON)])),
        ([{"a": 1}, {}], JSON),
        ([1, 2.5], pa.float64()),
        ([1, "1"], JSON),
        ([1.5, False], JSON),
        ([[1.5], [False]], pa.list_(JSON)),
        ([[1], [2.5]], pa.list_(pa.float64())),
        ([[{"a": 1}], [{"a": 2}, None]], pa.list_(pa.struct([("a", pa.int64())]))),
        ([[{"a": 1}], [{"b": 2}]], pa.list_(JSON)),
        ([["a"], [{"b": 2}]], pa.list_(JSON)),
        ([["a"], "a"], JSON),
        ([[], None], pa.list_(pa.null())),
        ([2**60 + 1, 2.5], JSON),
        ([-1, 2**64 - 1], JSON),
    ],
)
def test_types_of_json_values(values: list[Any], kind: pa.DataType) -> None:
    """The same at once and from two parts."""
    rows = [{"c": value} for value in values]
    assert infer(rows).field("c").type == kind
    one, other = (infer([row]) for row in rows)
    assert unify(one, other).field("c").type == unify(other, one).field("c").type == kind


def nested(levels: int) -> str:
    return '{"a":[' * levels + "1" + "]}" * levels


def test_what_is_nested_deeply(tmp_path: Path) -> None:
    raw = f'{{"text":"x","deep":{nested(100)}}}'
    assert rows_of(tmp_path / "run", write(tmp_path / "a.jsonl", raw)) == [json.loads(raw)]
    for levels in (150, 400):
        raw = f'{{"text":"x","deep":{nested(levels)}}}'
        with pytest.raises(HalaError, match=r"b\.jsonl:1: nested more than 254 deep"):
            planned(tmp_path / "two", write(tmp_path / "b.jsonl", raw))


def outputs(run: Path, *paths: Path) -> tuple[pa.Table, list[Row]]:
    """All rows of a run whose new column is the messages, as its outputs hold them and as they are read again."""
    cut = planned(run, *paths)
    whole = schema.load(cut.facts.schema)
    fields = [whole.field("messages").with_name("messages_ar")] if "messages" in whole.names else []
    tables = []
    for shard in cut.shards:
        given = shards.read_input(run, shard, cut.facts)
        results = {number: {"messages_ar": row.get("messages")} for number, row in given.numbered()}
        path = run / f"{shard.id}.parquet"
        shards.write_output(path, given, fields, results, {}, b"{}")
        assert shards.check_output(shard, path, cut.facts, fields).problems == ()
        tables.append(pq.ParquetFile(path).read())
    table = pa.concat_tables(tables)
    pq.write_table(table, run / "all.parquet")
    return table, [row for chunk in readers.chunks(run / "all.parquet") for row in chunk.rows]


def chats(rows: Sequence[Row], column: str) -> list[Chat]:
    """As a training reads them."""
    found = infer(rows)
    reader = reader_of("chat", Data(shape="messages", columns=[column]), found)
    documents = [reader.read(row) for row in rows]
    assert all(isinstance(document, Chat) for document in documents)
    return documents  # type: ignore[return-value]


def test_tool_calls_keep_their_own_arguments_from_source_to_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CALLS)
    table, again = outputs(tmp_path / "run", path)
    for name in ("messages", "messages_ar"):
        assert table.schema.field(name).type == pa.list_(JSON)
        assert [orjson.dumps(row[name]) for row in again] == [orjson.dumps(row["messages"]) for row in CALLS]
        assert chats(again, name) == chats(CALLS, "messages")
    assert [orjson.dumps(row["tools"]) for row in again] == [orjson.dumps(row["tools"]) for row in CALLS]
    chat = chats(again, "messages_ar")[0]
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "unit": None}
    assert [tool["function"]["name"] for tool in chat.tools or []] == ["weather"]


@pytest.mark.slow
def test_other_peoples_library_reads_lists_of_turns_and_we_read_what_it_writes(tmp_path: Path) -> None:
    import datasets

    outputs(tmp_path / "run", write(tmp_path / "a.jsonl", CALLS))
    file, cache = str(tmp_path / "run/all.parquet"), str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    assert loaded.features["messages_ar"] == loaded.features["messages"] == datasets.List(datasets.Json())
    assert [row["messages_ar"] for row in loaded] == [row["messages"] for row in CALLS]
    assert [row["tools"] for row in loaded] == [row["tools"] for row in CALLS]
    written = tmp_path / "theirs.parquet"
    datasets.Dataset.from_list(CALLS, on_mixed_types="use_json").to_parquet(str(written))
    table, again = outputs(tmp_path / "two", written)
    assert chats(again, "messages_ar") == chats(CALLS, "messages")
    assert table.schema.field("messages_ar").type == table.schema.field("messages").type


def json_column(values: Sequence[Any], kind: pa.DataType = JSON) -> pa.Array:
    return pa.array([orjson.dumps(value).decode() for value in values]).cast(kind)


def test_json_is_read_at_any_depth_and_stays_the_type_that_it_was(tmp_path: Path) -> None:
    texts = pa.array(['{"a":null}', "[1,2.5]", '"x"', "null"])
    inner = pa.StructArray.from_arrays([texts.cast(JSON), pa.array([1, None, 3, 4])], ["json", "n"])
    lists = pa.LargeListArray.from_arrays([0, 1, 2, 4], inner)
    pairs: list[Any] = [[("k", '{"b":{}}')], [], None]
    mapped = pa.array(pairs, pa.map_(pa.string(), pa.string())).cast(pa.map_(pa.string(), JSON))
    table = pa.table({"id": ["x", "y", "z"], "l": lists, "m": mapped})
    path = write(tmp_path / "a.parquet", table)
    expected = [
        {"id": "x", "l": [{"json": {"a": None}, "n": 1}], "m": [("k", {"b": {}})]},
        {"id": "y", "l": [{"json": [1, 2.5]}], "m": []},
        {"id": "z", "l": [{"json": "x", "n": 3}, {"json": None, "n": 4}], "m": None},
    ]
    assert rows_of(tmp_path / "run", path) == expected
    found, _ = outputs(tmp_path / "two", path)
    assert found.select(table.column_names) == table
    other = write(tmp_path / "b.parquet", table.drop_columns(["m"]).append_column("new", pa.array([1, 2, 3])))
    found, again = outputs(tmp_path / "three", path, other)
    assert found.schema.field("l").type == lists.type
    assert [row["l"] for row in again] == [row["l"] for row in expected] * 2


def test_a_column_of_json_that_is_none_is_refused_in_a_line(tmp_path: Path) -> None:
    table = pa.table({"text": ["x"], "j": pa.array(['{"a":']).cast(JSON)})
    with pytest.raises(HalaError, match=r"a\.parquet: row 1: column 'j' holds a text that is not JSON"):
        planned(tmp_path / "run", write(tmp_path / "a.parquet", table))


def test_large_integers_in_json_keep_their_digits(tmp_path: Path) -> None:
    table = pa.table({"text": ["x"], "j": pa.array(['{"a": 18446744073709551615}']).cast(JSON)})
    assert rows_of(tmp_path / "run", write(tmp_path / "a.parquet", table))[0]["j"] == {"a": 2**64 - 1}
    table = table.set_column(1, "j", pa.array(['{"a": 18446744073709551616}']).cast(JSON))
    with pytest.raises(HalaError, match="holds a value that cannot be kept: Integer exceeds 64-bit range"):
        planned(tmp_path / "two", write(tmp_path / "b.parquet", table))


def test_nulls_of_a_parquet_struct_are_keys_that_an_object_lacks(tmp_path: Path) -> None:
    """As other tools write tool calls of different arguments: each call has the arguments of all."""
    given = [{"city": "Paris"}, {"x": 2, "y": 3}, {"at": [None, {"city": "x"}]}]
    turns = [{"role": "assistant", "tool_calls": [{"arguments": arguments}]} for arguments in given]
    table = pa.Table.from_pylist([{"messages": [{"role": "user", "content": "x"}, turn]} for turn in turns])
    path = write(tmp_path / "a.parquet", table)
    found, again = outputs(tmp_path / "run", path)
    assert found.schema.field("messages_ar").type == table.schema.field("messages").type
    assert found.select(["messages"]) == table
    arguments = [row["messages_ar"][1]["tool_calls"][0]["arguments"] for row in again]
    assert arguments == given
    assert again[0]["messages"][0] == {"role": "user", "content": "x"}


def test_columns_that_were_marked_as_json_text_are_still_read(tmp_path: Path) -> None:
    """As older commits kept mixed columns."""
    values = [[{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": "x"}], None]
    texts = pa.array([None if value is None else orjson.dumps(value).decode() for value in values])
    field = pa.field("messages", pa.string(), metadata={"hala": "json"})
    table = pa.Table.from_arrays([pa.array([1, 2, 3]), texts], schema=pa.schema([pa.field("id", pa.int64()), field]))
    path = write(tmp_path / "old.parquet", table)
    found, again = outputs(tmp_path / "run", path)
    assert [row["messages_ar"] for row in again] == [row["messages"] for row in again] == values
    assert found.schema.field("messages_ar").type == pa.string()
    new = write(tmp_path / "new.jsonl", [{"id": 4, "messages": values[1]}])
    found, again = outputs(tmp_path / "two", path, new)
    assert [row["messages_ar"] for row in again] == [*values, values[1]]
    assert found.schema.field("messages").type == JSON


def proven(run: Path, cut: Cut) -> list[Row]:
    """Rows of all outputs of a run, each proven."""
    found: list[Row] = []
    for shard in cut.shards:
        given = shards.read_input(run, shard, cut.facts)
        path = run / f"{shard.id}.parquet"
        shards.write_output(path, given, [], {}, {}, b"{}")
        assert shards.check_output(shard, path, cut.facts, []).problems == ()
        found += schema.to_rows(pq.ParquetFile(path).read())
    return found


def test_runs_that_older_commits_planned_go_on(tmp_path: Path) -> None:
    """They marked columns of mixed values, and took columns of JSON for text."""
    rows = [{"text": "a", "mixed": 1}, {"text": "b", "mixed": {"a": None}}]
    cut = planned(tmp_path / "run", write(tmp_path / "a.jsonl", rows))
    fields = [pa.field("text", pa.string()), pa.field("mixed", pa.string(), metadata={"hala": "json"})]
    older = replace(cut, facts=replace(cut.facts, schema=schema.dump(pa.schema(fields)), sealed=False))
    assert [row["mixed"] for row in proven(tmp_path / "run", older)] == [1, {"a": None}]

    lists = pa.array([['{"a": 1}'], None]).cast(pa.list_(JSON))
    cut = planned(tmp_path / "two", write(tmp_path / "b.parquet", pa.table({"text": ["a", "b"], "l": lists})))
    digest = digest_of([{"text": "a", "l": ['{"a": 1}']}, {"text": "b", "l": None}])
    older = replace(cut, shards=[replace(shard, digest=digest) for shard in cut.shards])
    assert [row["l"] for row in proven(tmp_path / "two", older)] == [[{"a": 1}], None]
    other = replace(cut, shards=[replace(shard, digest=digest_of([{}])) for shard in cut.shards])
    with pytest.raises(HalaError, match="changed since the run was planned"):
        proven(tmp_path / "two", other)


def test_the_card_names_columns_of_json(tmp_path: Path) -> None:
    cut = planned(tmp_path / "run", write(tmp_path / "a.jsonl", [{"id": 1, "meta": {"a": 1}}, {"id": 2, "meta": {}}]))
    text = collect.card(tmp_path / "run", cut.facts, collect.Collected("x", 1, 2, {}, 0))
    assert "Objects of `meta` differ in their keys or types: they are of Arrow's JSON type" in text
    cut = planned(tmp_path / "two", write(tmp_path / "b.jsonl", [{"id": 1, "meta": {"a": 1}}]))
    assert "JSON" not in collect.card(tmp_path / "two", cut.facts, collect.Collected("x", 1, 1, {}, 0))


def test_a_path_into_objects_that_differ() -> None:
    found = infer([{"translation": {"en": "a"}}, {"translation": {"en": "b", "es": "c"}}])
    assert field_of("translation.en", found) == pa.field("translation.en", pa.string())
    assert field_of("other.en", found) is None


def _contradictions() -> Iterator[tuple[str, pa.Array, pa.Array, str]]:
    from datetime import date, datetime
    from decimal import Decimal

    when = datetime(2020, 1, 2, 3, 4, 5, 678)
    yield "number and text", pa.array([1]), pa.array(["x"]), "int64 in .*0.parquet and text in .*1.parquet"
    yield "text and number", pa.array(["x"]), pa.array([1.5]), "text in .*0.parquet and double in .*1.parquet"
    yield "large int and float", pa.array([2**60 + 1]), pa.array([2.5]), "int64 in .* and double in "
    yield (
        "time and date",
        pa.array([when]),
        pa.array([date(2020, 1, 2)]),
        r"timestamp\[us\] in .* and date32\[day\] in ",
    )
    yield "decimal and int", pa.array([Decimal("1.5")]), pa.array([2]), r"decimal128\(2, 1\) in .* and int64 in "
    yield "two decimals", pa.array([Decimal("1.5")]), pa.array([Decimal("1.50")]), r"decimal128\(2, 1\) in "
    yield "bytes and text", pa.array([b"a"]), pa.array(["a"]), "binary in .* and text in "
    yield "unsigned and signed", pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), "uint64 in .* and int64 in "
    yield "object and text", pa.array([{"a": 1}]), pa.array(["x"]), "text in .*1.parquet and object in .*0.parquet"
    yield "JSON and number", json_column([1]), pa.array([1]), "int64 in .*1.parquet and JSON in .*0.parquet"


@pytest.mark.parametrize(
    ("one", "other", "said"), [pytest.param(a, b, said, id=name) for name, a, b, said in _contradictions()]
)
def test_parquet_files_that_contradict_each_other_are_refused(
    tmp_path: Path, one: pa.Array, other: pa.Array, said: str
) -> None:
    paths = [write(tmp_path / f"{i}.parquet", pa.table({"text": ["x"], "n": a})) for i, a in enumerate((one, other))]
    with pytest.raises(HalaError, match=f"^data: column 'n' is {said}.*same type in all files"):
        planned(tmp_path / "run", *paths)


@pytest.mark.parametrize(
    ("one", "other", "kind", "note"),
    [
        (pa.array([7]), pa.array([2.5]), pa.float64(), "n: double"),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string()), pa.large_string(), None),
        (pa.array(["a"]), pa.array([None], pa.null()), pa.string(), None),
        (pa.array([{"a": 1}]), pa.array([{"b": "x"}]), pa.struct([("a", pa.int64()), ("b", pa.string())]), None),
        (pa.array([{"a": 1}]), pa.array([{"a": "x"}]), pa.struct([("a", JSON)]), "n: object with JSON"),
        (pa.array([[2**60 + 1]]), pa.array([[2.5]]), JSON, "n: JSON"),
        (pa.array([[{"a": 1}]]), pa.array([["x"]]), pa.list_(JSON), "n: list of JSON"),
        (json_column([1]), pa.array([{"a": 1}]), JSON, "n: JSON"),
    ],
)
def test_parquet_files_of_types_that_one_holds(
    tmp_path: Path, one: pa.Array, other: pa.Array, kind: pa.DataType, note: str | None
) -> None:
    paths = [write(tmp_path / f"{i}.parquet", pa.table({"id": ["x"], "n": a})) for i, a in enumerate((one, other))]
    cut = planned(tmp_path / "run", *paths)
    assert schema.load(cut.facts.schema).field("n").type == kind
    words = "columns are of another type than in some of their files"
    assert cut.facts.notes == ({f"{words} ({note})": 1} if note else {})
    _, again = outputs(tmp_path / "two", *paths)
    assert [row["n"] for row in again] == [row["n"] for row in read(tmp_path / "run", cut)]


def test_a_declared_type_is_not_given_up_for_rows_of_json(tmp_path: Path) -> None:
    declared = write(tmp_path / "a.parquet", pa.table({"id": [1]}))
    mixed = write(tmp_path / "b.jsonl", [{"id": 1}, {"id": "x"}])
    texts = write(tmp_path / "c.csv", "id\n7\n")
    with pytest.raises(HalaError, match=r"column 'id' is int64 in .*a\.parquet and JSON in .*b\.jsonl"):
        planned(tmp_path / "run", mixed, declared)
    with pytest.raises(HalaError, match=r"column 'id' is int64 in .*a\.parquet and text in .*c\.csv"):
        planned(tmp_path / "run", declared, texts)
    assert rows_of(tmp_path / "two", mixed, texts) == [{"id": 1}, {"id": "x"}, {"id": "7"}]
