"""From rows to shards and back: nothing is lost, doubled or changed, and what is gets caught."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.data import shards
from hala_hpc.data.cut import Cut
from hala_hpc.data.files import readers
from hala_hpc.data.schema import Row, digest_of
from hala_hpc.run.manifest import Shard
from hala_hpc.run.verify import ShardReport
from tests.data.helpers import planned, read, same, write

FIELDS = [pa.field("new", pa.string())]

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 1, 2**53, 2**53 + 1, -(2**53), 2**63, 2**64 - 1])
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([1.0, -0.0, 2.0**53, 1e300])
plain = st.none() | st.booleans() | numbers | floats | words
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
tame = st.none() | words | st.integers(-5, 5) | st.lists(st.dictionaries(st.sampled_from("ab"), words, max_size=2))


def rows(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    names = st.sampled_from(["text", "n", "nested", "بيانات", "a.b", ""])
    row = st.dictionaries(names, inner, max_size=4).map(lambda row: {"id": "x"} | row)
    return st.lists(row, min_size=1, max_size=12)


def finished(shard: Shard, run: Path, cut: Cut, errors: dict[int, str] | None = None) -> Path:
    """The output of a shard whose every row, but for those with errors, got a new column."""
    given = shards.read_input(run, shard, cut.facts)
    errors = errors or {}
    results = {number: {"new": f"{number}"} for number, _ in given.numbered() if number not in errors}
    path = run / f"{shard.id}.parquet"
    shards.write_output(path, given, FIELDS, results, errors, b'{"by": "test"}')
    return path


def check(shard: Shard, path: Path, cut: Cut) -> ShardReport:
    return shards.check_output(shard, path, cut.facts, FIELDS)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), files=st.lists(rows(values) | rows(tame), min_size=1, max_size=4), size=st.integers(1, 5))
def test_every_row_comes_back(data: st.DataObject, files: list[list[Row]], size: int) -> None:
    """Any rows, in any files, in chunks of any size, in shards of any size: in, out, and proven."""
    chunk = data.draw(st.integers(1, 4), label="rows of a chunk")
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_ROWS", chunk)
        run = Path(name, "run")
        paths = [write(Path(name, f"{index}.jsonl"), content) for index, content in enumerate(files)]
        cut = planned(run, *paths, rows=size)
        expected = [row for content in files for row in content]
        found = read(run, cut)
        assert found == expected
        for shard in cut.shards:
            path = finished(shard, run, cut)
            assert check(shard, path, cut) == ShardReport(done=shard.rows)
            assert same(shards_rows(path, cut), expected[shard.start : shard.start + shard.rows])


def shards_rows(path: Path, cut: Cut) -> list[Row]:
    """The input columns of an output."""
    inputs = shards.schema.load(cut.facts.schema)
    return shards.schema.to_rows(pq.read_table(path).select(inputs.names).cast(inputs))


@settings(max_examples=40, deadline=None)
@given(
    content=rows(st.none() | words) | rows(tame), groups=st.integers(1, 4), size=st.integers(1, 5), second=st.booleans()
)
def test_parquet_columns_stay_what_they_are(content: list[Row], groups: int, size: int, second: bool) -> None:
    try:
        table = pa.Table.from_pylist(content)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # no single type fits, so nobody has it as Parquet
        return
    with tempfile.TemporaryDirectory() as name:
        run, path = Path(name, "run"), Path(name, "a.parquet")
        try:
            pq.write_table(table, path, row_group_size=groups)
        except pa.ArrowNotImplementedError:  # a struct without fields
            return
        more = [write(Path(name, "b.parquet"), table.slice(0, 2))] if second else []
        cut = planned(run, path, *more, rows=size)
        outputs = [pq.read_table(finished(shard, run, cut)) for shard in cut.shards]
        original = pq.read_table(path)
        whole = pa.concat_tables([original, original.slice(0, 2)]) if second else original
        assert pa.concat_tables(outputs).select(whole.column_names) == whole
        assert outputs[0].select(whole.column_names).schema == original.schema


@pytest.fixture
def planned_rows(tmp_path: Path) -> tuple[Path, Cut]:
    content = [{"text": f"t{n}", "extra": {"n": n}} for n in range(10)]
    run = tmp_path / "run"
    return run, planned(run, write(tmp_path / "a.jsonl", content), rows=5)


def _without(table: pa.Table, *numbers: int) -> pa.Table:
    return table.take([number for number in range(table.num_rows) if number not in numbers])


def _changed(table: pa.Table) -> pa.Table:
    texts = table["text"].to_pylist()
    return table.set_column(table.column_names.index("text"), "text", pa.array(["T0", *texts[1:]]))


def _swapped(table: pa.Table) -> pa.Table:
    """Two texts trade places; the row numbers stand in order."""
    texts = table["text"].take([1, 0, 2, 3, 4])
    return table.set_column(table.column_names.index("text"), "text", texts)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda table: _without(table, 2), "1 row lost, the first is row 2"),
        (lambda table: pa.concat_tables([table, table.slice(3, 1)]), "1 row twice, the first is row 3"),
        (
            lambda table: table.take([0, 1, 2, 4, 4]),
            "1 row lost, the first is row 3; 1 row twice, the first is row 4",
        ),
        (_changed, "its rows are not those of the source"),
        (_swapped, "its rows are not those of the source"),
        (lambda table: table.take([1, 0, 2, 3, 4]), "its rows are out of order"),
        (lambda table: table.drop_columns(["extra"]), "lacks the columns extra"),
        (lambda table: table.drop_columns(["new"]), "lacks the columns new"),
        (lambda table: table.slice(0, 0), "5 rows lost, the first is row 0"),
        (lambda table: table.set_column(0, "text", pa.array([[1]] * 5)), "its columns are of other types"),
    ],
)
def test_a_spoiled_output_is_caught(
    planned_rows: tuple[Path, Cut], spoil: Callable[[pa.Table], pa.Table], said: str
) -> None:
    run, cut = planned_rows
    path = finished(cut.shards[0], run, cut)
    pq.write_table(spoil(pq.read_table(path)), path)
    assert said in "; ".join(check(cut.shards[0], path, cut).problems)


def test_an_output_of_another_shard_or_none(planned_rows: tuple[Path, Cut]) -> None:
    run, cut = planned_rows
    other = finished(cut.shards[1], run, cut)
    said = "; ".join(check(cut.shards[0], other, cut).problems)
    assert "5 rows lost, the first is row 0" in said
    assert "5 rows of another shard, the first is row 5" in said
    other.write_bytes(other.read_bytes()[:-100])
    assert "its seal is broken" in check(cut.shards[1], other, cut).problems[0]
    other.write_bytes(b"PAR1")
    assert "not readable" in check(cut.shards[1], other, cut).problems[0]


def test_rows_that_failed_are_counted_by_reason(planned_rows: tuple[Path, Cut]) -> None:
    run, cut = planned_rows
    errors = {5: "too long: 9 tokens", 7: "too long: 8 tokens", 9: "empty"}
    report = check(cut.shards[1], finished(cut.shards[1], run, cut, errors), cut)
    assert report == ShardReport(2, shards.Counter({"too long": 2, "empty": 1}))


def test_shards_are_cut_by_tokens_too(tmp_path: Path) -> None:
    from hala_hpc.config.schema import Data, Run
    from hala_hpc.data import cut as cutting

    texts = ["x" * 4 * size for size in (10, 10, 100, 1, 1)]
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    (tmp_path / "run").mkdir()
    found = cutting.cut(
        Data(path=[str(path)]),
        Run(shard_tokens=30),
        "t",
        tmp_path / "run",
        lambda _: lambda row: [row["text"]],
        cutting.PlanWatch(),
    )
    assert [shard.rows for shard in found.shards] == [2, 1, 2]
    assert [shard.tokens for shard in found.shards] == [22, 101, 4]
    assert (found.facts.texts, found.facts.characters) == (5, sum(map(len, texts)))


@pytest.mark.parametrize(
    "pair",
    [
        ({"n": 2**60 + 1}, {"n": 2.5}),
        ({"n": {"m": [2**60 + 1]}}, {"n": {"m": [2.5]}}),
        ({"n": 1}, {"n": True}),
        ({"n": 1}, {"n": "1"}),
        ({"n": {}}, {"n": {"a": 1}}),
        ({"n": [{}]}, {"n": [{"a": []}]}),
        ({"n": None}, {"n": [None]}),
        ({"n": [None, None]}, {"n": [{"a": [[None, None]]}]}),
        ({"n": [None, None]}, {"n": []}),
        ({}, {"n": {"a": {"b": None}}}),
    ],
)
def test_values_that_no_single_type_fits(tmp_path: Path, pair: tuple[Row, Row]) -> None:
    run = tmp_path / "run"
    for order in (pair, pair[::-1]):
        paths = [write(tmp_path / f"{index}.jsonl", [row]) for index, row in enumerate(order)]
        cut = planned(run, *paths)
        path = finished(cut.shards[0], run, cut)
        assert check(cut.shards[0], path, cut).problems == ()
        assert same(shards_rows(path, cut), order)


def _tables() -> Iterator[tuple[str, pa.Array, pa.Array]]:
    from datetime import datetime

    when = datetime(2020, 1, 2, 3, 4, 5, 678)
    yield "small int and float", pa.array([7]), pa.array([2.5])
    yield "dictionary and string", pa.array(["a"]).dictionary_encode(), pa.array(["b"])
    yield "string and large", pa.array(["a"]), pa.array(["b"], pa.large_string())
    yield "us and ns", pa.array([when], pa.timestamp("us")), pa.array([when], pa.timestamp("ns"))
    yield "struct and struct", pa.array([{"a": 1}]), pa.array([{"b": "x"}])


@pytest.mark.parametrize(("one", "other"), [pytest.param(a, b, id=name) for name, a, b in _tables()])
def test_parquet_files_of_different_types(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    run = tmp_path / "run"
    paths = [write(tmp_path / f"{i}.parquet", pa.table({"text": ["x"], "n": a})) for i, a in enumerate((one, other))]
    cut = planned(run, *paths)
    assert check(cut.shards[0], finished(cut.shards[0], run, cut), cut).problems == ()


def test_a_required_column_that_another_file_lacks(tmp_path: Path) -> None:
    required = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("n", pa.int64(), nullable=False)])
    one = write(tmp_path / "a.parquet", pa.table({"text": ["a"], "n": [1]}, schema=required))
    two = write(tmp_path / "b.parquet", pa.table({"text": ["b"]}))
    cut = planned(tmp_path / "run", one, two)
    assert check(cut.shards[0], finished(cut.shards[0], tmp_path / "run", cut), cut).problems == ()


def test_reserved_and_doubled_columns() -> None:
    schema = pa.schema([("text", pa.string()), ("text_ar", pa.string())])
    with pytest.raises(HalaError, match="column 'text_ar' is there already"):
        shards.refuse_reserved(schema, ["text_ar"])
    shards.refuse_reserved(pa.schema([("hala_row", pa.int64()), ("hala_row_1", pa.int64())]), [])
    with pytest.raises(HalaError, match="two columns are named 'a'"):
        shards.refuse_reserved(pa.schema([("a", pa.int64()), ("a", pa.int64())]), [])
    with pytest.raises(HalaError, match="two columns are named 'b'"):
        shards.refuse_reserved(schema, ["b", "b"])


def test_columns_of_earlier_runs_are_renamed_by_their_age() -> None:
    names = ["hala_row_1", "text", "hala_row", "hala_truncated", "hala_error_12", "hala_rows"]
    renamed = ["hala_row_2", "text", "hala_row_1", "hala_truncated_1", "hala_error_13", "hala_rows"]
    assert shards.as_stored(names) == renamed
    assert shards.as_stored(["text", "hala_truncated", "hala_row_1"]) == ["text", "hala_truncated", "hala_row_1"]


def test_digest_of_equal_rows() -> None:
    assert digest_of([{"a": 1, "b": None, "c": {"d": None}}]) == digest_of([{"c": {}, "a": 1.0}])
    assert digest_of([{"a": 1}]) != digest_of([{"a": "1"}])
    assert digest_of([{"a": [None, 1]}]) != digest_of([{"a": [1]}])
    assert digest_of([{"a": 1}, {"b": 2}]) != digest_of([{"b": 2}, {"a": 1}])
