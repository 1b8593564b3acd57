"""Files as people have them: compressed, encoded, named and laid out in all usual ways."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pytest

from hala_hpc.config import layers
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import FILE, Data
from hala_hpc.data.files import opening, sources
from tests.data.helpers import lines, planned, rows_of, write

ROWS = [{"text": f"t{n} عربي é", "n": n} for n in range(20)]


def _pa(codec: str) -> Callable[[bytes], bytes]:
    return lambda raw: bytes(pa.Codec(codec).compress(raw, asbytes=True)) if codec != "lz4" else _lz4(raw)


def _lz4(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as out:
        out.write(raw)
    return bytes(sink.getvalue().to_pybytes())


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _pa("zstd"), ".lz4": _pa("lz4")}


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_of_every_format(tmp_path: Path, ending: str) -> None:
    csv = "text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in ROWS)
    contents = {
        "a.jsonl": lines(ROWS), "b.json": json.dumps(ROWS).encode(), "c.csv": csv.encode(), "d.txt": b"one\ntwo\n",
    }  # fmt: skip
    folder = tmp_path / "in"
    folder.mkdir()
    for name, raw in contents.items():
        (folder / f"{name}{ending}").write_bytes(COMPRESS[ending](raw))
    texts = [{"text": row["text"], "n": str(row["n"])} for row in ROWS]
    assert rows_of(tmp_path / "run", folder) == [*ROWS, *ROWS, *texts, {"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.arrow"])
def test_compressed_files_that_are_cut_off(tmp_path: Path, name: str, ending: str) -> None:
    raw = (b'[{"text": "' if name == "a.json" else b"text") + os.urandom(5000).hex().encode() + b'"}]'
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(COMPRESS[ending](raw)[:2000])
    with pytest.raises(HalaError, match=rf"{name}{ending}[: ]"):
        planned(tmp_path / "run", path)


def test_compression_is_told_by_content(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    paths[0].write_bytes(gzip.compress(lines(ROWS)))
    paths[1].write_bytes(lines(ROWS))
    assert rows_of(tmp_path / "run", *paths) == ROWS + ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.json.gz"])
def test_encodings(tmp_path: Path, name: str) -> None:
    rows = [{"text": "café ±"}, {"text": "señor"}]
    form = name.split(".")[1]
    text = {"jsonl": lines(rows).decode(), "json": json.dumps(rows, ensure_ascii=False)}.get(form)
    text = text or ("text\n" if form == "csv" else "") + "café ±\nseñor\n"
    for encoding, asked in (("latin-1", "latin-1"), ("utf-16", None), ("utf-16-le", "utf-16-le"), ("utf-8-sig", None)):
        path = write(tmp_path / encoding / name, text.encode(encoding))
        assert rows_of(tmp_path / f"run-{encoding}", path, encoding=asked) == rows
    path = write(tmp_path / name, text.encode("latin-1"))
    with pytest.raises(HalaError, match=r"not UTF-8.*data\.encoding names another"):
        planned(tmp_path / "run", path)
    with pytest.raises(HalaError, match=r"row \d: cannot be read as \w+: 'utf-16-le' codec"):
        planned(tmp_path / "two", write(tmp_path / name, text.encode("utf-16-le") + b"x"), encoding="utf-16-le")


@pytest.mark.parametrize("name", ["nonsense", "base64", "é", "\x00"])
def test_encodings_that_are_none(name: str) -> None:
    with pytest.raises(HalaError, match=r"data\.encoding: no encoding"):
        opening.encoding_of(b"", name)


def test_what_separates_fields(tmp_path: Path) -> None:
    row = [{"text": "2, 3", "b": "x"}]
    for name, separator, asked in (
        ("a.csv", ";", ";"),
        ("b.tsv", "\t", None),
        ("c.csv", "\t", "\\t"),
        ("d.tsv", ";", ";"),
    ):
        path = write(tmp_path / name, f"text{separator}b\n2, 3{separator}x\n")
        assert rows_of(tmp_path / f"run-{name}", path, delimiter=asked) == row
    with pytest.raises(HalaError, match=r"a\.csv: line 1: one column named 'text;b' \(data\.delimiter=';' splits it\)"):
        planned(tmp_path / "run", tmp_path / "a.csv")
    with pytest.raises(HalaError, match=r"c\.csv: line 1: .*'text\\tb' \(data\.delimiter='\\t' splits it\)"):
        planned(tmp_path / "two", tmp_path / "c.csv")
    with pytest.raises(HalaError, match=r"data\.delimiter: 'ab' is not one character"):
        planned(tmp_path / "three", tmp_path / "a.csv", delimiter="ab")


def test_an_array_under_another_name_is_read(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "run", write(tmp_path / "a.jsonl", json.dumps(ROWS))) == ROWS
    assert rows_of(tmp_path / "two", write(tmp_path / "blob", json.dumps(ROWS))) == ROWS
    assert rows_of(tmp_path / "three", write(tmp_path / "other", lines(ROWS))) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_within_a_document(tmp_path: Path, indent: int | None) -> None:
    document = {"version": "1", "more": [[{"x": "]}"}]], "data": {"rows": ROWS}, "after": [1]}
    path = write(tmp_path / "a.json", json.dumps(document, indent=indent))
    assert rows_of(tmp_path / "run", path, field="data.rows") == ROWS
    with pytest.raises(
        HalaError, match=r"a\.json: one object, with lists of objects in it \(data\.field=data\.rows if"
    ):
        planned(tmp_path / "two", path)
    with pytest.raises(HalaError, match=r"no list at data\.field=nope \(lists: more, data\.rows, after\)"):
        planned(tmp_path / "three", path, field="nope")


def test_one_conversation_in_a_json_file_is_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}]}
    assert rows_of(tmp_path / "run", write(tmp_path / "a.json", json.dumps(row))) == [row]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"a": 1}, {"a": "x]}', "not a valid JSON array after row 1: it ends in the middle"),
        ('[{"a": 1}}, {"a": 2}]', "not a valid JSON array after row 0: a bracket is missing"),
        ('[{"a": 1}] [', "not a valid JSON array after row 1: '[' follows its end"),
        ('[{"a": 1},, {"a": 2}]', "row 2: not valid JSON"),
        ('[{"a": 1},]', "row 2: not valid JSON"),
        ('[{"a": 1, "a": 2}]', "row 1: the key 'a' is there twice"),
        ('[[{"a": 1}]]', "row 1: a row is a JSON object, this is a list"),
    ],
)
def test_broken_arrays(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        planned(tmp_path / "run", write(tmp_path / "a.json", content))
    assert said in str(caught.value)


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    for name, make in (("a.arrow", pa.ipc.new_file), ("b.arrow", pa.ipc.new_stream)):
        with make(tmp_path / name, table.schema) as out:
            out.write_table(table, max_chunksize=7)
    feather.write_feather(table, str(tmp_path / "c.feather"))
    paths = [tmp_path / name for name in ("a.arrow", "b.arrow", "c.feather")]
    assert rows_of(tmp_path / "run", *paths) == ROWS * 3
    assert rows_of(tmp_path / "two", paths[0], limit=9) == ROWS[:9]
    for path in paths:
        write(path, path.read_bytes()[:-200])
        with pytest.raises(HalaError, match=rf"{path.name}: (not readable as Arrow|row|cannot|not)"):
            planned(tmp_path / f"run-{path.name}", path)
    with pytest.raises(HalaError, match=r"d\.arrow: not readable as Arrow"):
        planned(tmp_path / "three", write(tmp_path / "d.arrow", "nonsense"))


@pytest.mark.parametrize("fields", [["text", "text"], ["", ""], ["text", "a"]])
def test_doubled_columns_of_parquet_and_arrow(tmp_path: Path, fields: list[str]) -> None:
    doubled = pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["b", "b"])
    table = pa.Table.from_arrays([pa.array(["x"]), doubled if fields[1] == "a" else pa.array(["x"])], names=fields)
    write(tmp_path / "a.parquet", table)
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as out:
        out.write_table(table)
    twice = "a.b" if fields[1] == "a" else fields[1]
    for name in ("a.parquet", "b.arrow"):
        with pytest.raises(HalaError, match=rf"{name}: two columns are named '{twice}'"):
            planned(tmp_path / f"run-{name}", tmp_path / name)


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=3)
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"left by a map")
    assert rows_of(tmp_path / "run", tmp_path / "one") == ROWS
    both = datasets.DatasetDict({"train_sft": whole.select(range(15)), "other": whole.select(range(15, 20))})
    both.save_to_disk(str(tmp_path / "two"))
    assert rows_of(tmp_path / "run2", tmp_path / "two", split="other") == ROWS[15:]
    with pytest.raises(HalaError, match=r"several splits: train_sft \(1\), other \(1\) \(data\.split=train_sft takes"):
        planned(tmp_path / "run3", tmp_path / "two")


def test_folders_of_the_hub_have_splits(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"):
        write(tmp_path / "sharded" / name, [{"text": name}])
    for name in ("train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"):
        write(tmp_path / "folders" / name, [{"text": name}])
    for name, split, expected in (
        ("sharded", "test", ["data/test-00000-of-00001.jsonl"]),
        ("sharded", "all", ["data/test-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl"]),
        ("folders", "train", ["train/a.jsonl", "train/b.jsonl"]),
        ("folders", "validation", ["dev/a.jsonl"]),
    ):
        assert _names(tmp_path / name, split=split) == expected
    for name in ("sharded", "folders"):
        with pytest.raises(HalaError, match=r"holds several splits: train \(\d\), (test|validation) \(1\)"):
            _names(tmp_path / name)
    with pytest.raises(HalaError, match=r"has no split 'dev' \(splits: train, test\)"):
        _names(tmp_path / "sharded", split="dev")


def test_a_card_names_splits_and_configurations(tmp_path: Path) -> None:
    for name in ("x/1.jsonl", "x/2.jsonl", "y/1.jsonl", "quarantine.jsonl"):
        write(tmp_path / name, [{"text": name}])
    card = "---\nconfigs:\n- config_name: default\n  data_files: x/*.jsonl\n---\n# x\n"
    (tmp_path / "README.md").write_text(card)
    assert _names(tmp_path) == ["x/1.jsonl", "x/2.jsonl"]
    cut = planned(tmp_path / "run", tmp_path / "x", tmp_path / "y")
    assert cut.facts.notes == {}
    (tmp_path / "README.md").write_text(
        "---\r\nconfigs:\r\n- config_name: one\r\n  data_files:\r\n  - split: left\r\n    path: x/1.jsonl\r\n"
        "  - split: right\r\n    path: [x/2.jsonl]\r\n- config_name: two\r\n  data_dir: y\r\n---\r\n"
    )
    assert _names(tmp_path, hub_config="one", split="right") == ["x/2.jsonl"]
    assert _names(tmp_path, hub_config="two") == ["y/1.jsonl"]
    with pytest.raises(HalaError, match=r"data\.hub_config: which of several in .*README\.md \(valid: one, two\)"):
        _names(tmp_path)
    with pytest.raises(HalaError, match=r"no 'three' in"):
        _names(tmp_path, hub_config="three")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: 5\n---\n")
    with pytest.raises(HalaError, match=r"README\.md: its configs cannot be followed: "):
        _names(tmp_path)


def test_what_a_card_leaves_out_is_counted(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00001.jsonl", "quarantine.jsonl"):
        write(tmp_path / "in" / name, [{"text": name}])
    (tmp_path / "in/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data/*.jsonl\n---\n")
    (tmp_path / "in/picture.png").write_bytes(b"")
    cut = planned(tmp_path / "run", tmp_path / "in")
    assert cut.facts.rows == 1
    assert list(cut.facts.notes.values()) == [1, 1]
    assert all(note.startswith("files left out of data.path's folders: ") for note in cut.facts.notes)


def test_files_that_tell_about_data_are_no_data(tmp_path: Path) -> None:
    for name in ("README.txt", "LICENSE.txt", "dataset_infos.json", "dataset_info.json", "requirements.txt"):
        write(tmp_path / name, "{}")
    write(tmp_path / "a.jsonl", ROWS)
    assert _names(tmp_path) == ["a.jsonl"]


def test_numbers_in_names_are_sorted_by_value(tmp_path: Path) -> None:
    names = ["2/part-1.jsonl", "2/part-2.jsonl", "2/part-10.jsonl", "10/part-1.jsonl", "x.jsonl"]
    for name in names:
        write(tmp_path / name, [{"text": name}])
    assert _names(tmp_path) == names
    found = sources.resolve(Data(path=[str(tmp_path / "2" / "*.jsonl")]))
    assert [path.name for path in found] == ["part-1.jsonl", "part-2.jsonl", "part-10.jsonl"]


def test_folders_names_become_columns(tmp_path: Path) -> None:
    parquet = pa.table({"text": ["p", "q"]})
    write(tmp_path / "in/lang=en/year=2020/a.parquet", parquet)
    write(tmp_path / "in/lang=a%2Fb/b.jsonl", [{"text": "j"}, {"text": "k", "lang": "own"}])
    write(tmp_path / "in/lang=__HIVE_DEFAULT_PARTITION__/c.csv", "text\nc\n")
    expected = [
        {"text": "c", "lang": None},
        {"text": "j", "lang": "a/b"}, {"text": "k", "lang": "own"},
        {"text": "p", "lang": "en", "year": "2020"}, {"text": "q", "lang": "en", "year": "2020"},
    ]  # fmt: skip
    found = rows_of(tmp_path / "run", tmp_path / "in", rows=1)
    assert found == expected
    globbed = rows_of(tmp_path / "two", tmp_path / "in/lang=e*/*/*.parquet")
    assert globbed == expected[3:]


def test_files_and_folders_that_are_links(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs/1234", ROWS)
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/a.jsonl").symlink_to(blob)
    (tmp_path / "in/deep/again").symlink_to(tmp_path / "in")
    (tmp_path / "more").mkdir()
    write(tmp_path / "more/b.jsonl", ROWS[:1])
    (tmp_path / "in/more").symlink_to(tmp_path / "more")
    assert rows_of(tmp_path / "run", tmp_path / "in") == [*ROWS, *ROWS[:1]]
    assert rows_of(tmp_path / "two", blob) == ROWS
    (tmp_path / "c.csv").symlink_to(write(tmp_path / "blobs/5678", "text\nc\n"))
    for given in (str(tmp_path / "c.csv"), "c.csv", "./in/../c.csv"):
        path = layers.resolved(given, tmp_path, FILE["path"])
        assert path == str(tmp_path / "c.csv")
    assert rows_of(tmp_path / "three", Path(path)) == [{"text": "c"}]
    assert layers.resolved("..", tmp_path / "in", FILE["path"]) == str(tmp_path)
    blob.unlink()
    for entry in (tmp_path / "in", tmp_path / "in/*.jsonl", tmp_path / "in/a.jsonl"):
        with pytest.raises(HalaError, match=r"a\.jsonl is a link to .*/blobs/1234, which is not there"):
            sources.resolve(Data(path=[str(entry)]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Data(path=["/x/s3:/b/y.parquet"]), "URLs cannot be read (download it first; data.hub=ORG/NAME reads from "),
        (Data(path=["/x/https:/b/y.parquet"]), "URLs cannot be read"),
        (Data(path=["A"], split="test"), "data.split: A is not a folder, so it has no split 'test' (data.split=null)"),
        (Data(path=["A"], hub_config="x"), "data.hub_config: A is not a folder"),
        (Data(path=["A"], revision="x"), "data.revision: is for a dataset on the hub"),
        (Data(path=["A"], delimiter=";"), "data.delimiter: A is jsonl"),
        (Data(path=["A", "P"], field="x", format="csv"), "data.field: A is csv"),
        (Data(path=["P"], encoding="latin-1"), "data.encoding: P is parquet"),
        (Data(hub="org/name", encoding="latin-1"), "data.encoding: is for files (data.path)"),
        (Data(path=["pipe"]), "pipe: neither a file nor a folder"),
        (Data(path=["nope"]), "nope: no such file or folder"),
    ],
)  # fmt: skip
def test_keys_that_change_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Data, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "A", ROWS)
    write(tmp_path / "P.parquet", pa.Table.from_pylist(ROWS)).rename(tmp_path / "P")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HalaError) as caught:
        sources.resolve(asked)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid x\n", "only a pointer of Git LFS"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid x\n", "only a pointer of Git LFS"),
        ("a.zip", b"PK\x03\x04", "cannot tell its format by its ending (unpack it)"),
        ("a.xlsx", b"PK\x03\x04", "(save it as CSV)"),
        ("a.pkl", b"\x80\x04", "a pickle runs code"),
    ],
)
def test_files_that_cannot_be_read_say_what_to_do(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        planned(tmp_path / "run", write(tmp_path / name, content))
    assert said in str(caught.value)


def _names(folder: Path, split: str | None = None, hub_config: str | None = None) -> list[str]:
    found = sources.resolve(Data(path=[str(folder)], split=split, hub_config=hub_config))
    return [path.relative_to(folder).as_posix() for path in found]
