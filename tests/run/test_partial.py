"""Finished rows of an unfinished shard survive what can happen to a file."""

import datetime
import resource
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.run import appending
from hala_hpc.run.appending import PartialFile
from tests.run.helpers import bare_run


def keep(run, worker: str, *rows: int) -> PartialFile:  # type: ignore[no-untyped-def]
    file = PartialFile(run, 0, worker)
    for row in rows:
        file.add({"row": row, "new": {"text": f"«{row}»\n{worker}"}})
    file.flush()
    return file


def test_rows_of_several_workers_are_read_together(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    keep(run, "ada", 1, 2).close()
    keep(run, "bo", 2, 3).close()
    found = appending.read(run, 0)
    assert sorted(found) == [1, 2, 3]
    assert {record["new"]["text"] for record in found[2]} == {"«2»\nada", "«2»\nbo"}


def test_garbage_and_a_torn_end_cost_only_themselves(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    file = keep(run, "ada", 1, 2)
    with file.path.open("ab") as raw:
        raw.write(b'\xff\xfe\x00\n[1]\n{"row": "x"}\n{"no": 1}\nnull\n{"row": 3, "new": {"te')
        for mark in (b'{"hala:type": {}}', b'{"hala:type": "date"}', b'{"hala:type": "Decimal", "value": "x"}'):
            raw.write(b'\n{"row": 5, "new": ' + mark + b"}\n")
    file.add({"row": 4, "new": {}})
    file.flush()
    assert sorted(appending.read(run, 0)) == [1, 2, 4]
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-14])
    assert sorted(appending.read(run, 0)) == [1, 2]


def test_a_flipped_bit_anywhere_costs_rows_and_changes_none(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    file = keep(run, "ada", 1, 2, 3)
    file.close()
    whole, data = appending.read(run, 0), file.path.read_bytes()
    for bit in range(8 * len(data)):
        file.path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        kept = appending.read(run, 0)
        assert len(kept) >= 1 and kept.items() <= whole.items(), bit


def test_lines_without_a_checksum_are_those_of_earlier_versions(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    (run.partial_folder(0) / "000000.ada.jsonl").write_text('{"row": 1, "new": {"text": "«1»"}}\n')
    assert appending.read(run, 0) == {1: [{"row": 1, "new": {"text": "«1»"}}]}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cut=st.integers(0, 400))
def test_a_file_cut_anywhere_gives_whole_rows_in_order(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    run = bare_run(tmp_path_factory.mktemp("run"), 1)
    file = keep(run, "ada", *range(8))
    file.close()
    file.path.write_bytes(file.path.read_bytes()[:cut])
    found = appending.read(run, 0)
    assert sorted(found) == list(range(len(found)))
    assert all(records == [{"row": row, "new": {"text": f"«{row}»\nada"}}] for row, records in found.items())


def test_rows_that_did_not_fit_stay_pending_and_are_written_later(tmp_path: Path) -> None:
    """A limit on the file's size acts as a disk that is full: the last write is cut short."""
    run = bare_run(tmp_path, 1)
    file = keep(run, "ada", 0)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for row in range(1, 20):
        file.add({"row": row, "new": {"text": "x" * 50}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert file.path.stat().st_size == 500
    assert 0 < len(appending.read(run, 0)) < 20
    file.flush()
    assert sorted(appending.read(run, 0)) == list(range(20))


def test_what_flush_returned_for_survives_a_kill(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    script = f"""
from pathlib import Path
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.appending import PartialFile
file = PartialFile(RunDirectory(Path({str(tmp_path)!r})), 0, "ada")
for row in range(100_000):
    file.add({{"row": row, "new": {{}}}})
    if row % 7 == 0:
        file.flush()
        print(row, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    told += map(int, process.communicate()[0].split())
    assert set(range(told[-1] + 1)) <= appending.read(run, 0).keys()


def test_values_that_json_has_no_word_for_come_back_as_they_were(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    new = {
        "at": datetime.datetime(2024, 5, 1, 12, 30, 1, 5, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 5, 1),
        "time": datetime.time(1, 2, 3, 4),
        "took": datetime.timedelta(days=-1, microseconds=3),
        "cost": Decimal("1.10"),
        "image": b"\x00\xff",
        "none": None,
        "turns": [{"at": datetime.datetime(2024, 5, 1), "n": 1.5}],
    }
    file = PartialFile(run, 0, "ada")
    file.add({"row": 0, "new": new})
    file.flush()
    assert appending.read(run, 0)[0] == [{"row": 0, "new": new}]
    with pytest.raises(TypeError, match="cannot be kept"):
        file.add({"row": 1, "new": {"x": object()}})


def test_drop_removes_all_of_one_shard(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 2, suffix="")
    keep(run, "ada", 0).close()
    temporary = appending.temporary_output(run, 0, "bo")
    (temporary / "in").mkdir(parents=True)
    other = PartialFile(run, 1, "ada")
    other.add({"row": 9, "new": {}})
    other.flush()
    appending.drop(run, 0)
    appending.drop(run, 0)
    assert appending.read(run, 0) == {}
    assert list(run.partial_folder(0).iterdir()) == [other.path]


def test_nothing_to_flush_makes_no_file(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    keep(run, "ada").close()
    assert list(run.partial_folder(0).iterdir()) == []


def test_maps_and_a_key_named_as_our_tag_come_back_as_they_were(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 1)
    kind = pa.map_(pa.string(), pa.list_(pa.map_(pa.string(), pa.binary())))
    column = pa.array([[("a", [[("b", b"\x00")]])], [], None], kind)
    tags = [{"hala:type": "bytes", "value": "AA=="}, {"hala:type": ["date"]}, {"hala:type": {"hala:type": None}}]
    file = PartialFile(run, 0, "ada")
    file.add({"row": 1, "new": {"maps": column.to_pylist(), "tags": tags}})
    file.flush()
    new = appending.read(run, 0)[1][0]["new"]
    assert pa.array(new["maps"], kind).equals(column)
    assert new["tags"] == tags
