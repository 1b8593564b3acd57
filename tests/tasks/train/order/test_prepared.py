"""Prepared datasets are mapped, not read: as one list of pieces, over shards and datasets."""

import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.tasks.train.prepare import tokens
from hala_hpc.tasks.train.prepare.task import check_shard
from tests.tasks.train.order import prepared_runs


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    first = prepared_runs.write(tmp_path / "first", [[3], "too long: 9 tokens", [4, 4, 2], [1]], shard_rows=2)
    return [first, prepared_runs.write(tmp_path / "second", ["empty: nothing", "empty: nothing", [5]], shard_rows=2)]


def test_pieces_of_all_datasets_in_order(two: list[Path]) -> None:
    prepared = Prepared(two)
    assert prepared.lengths.tolist() == [3, 4, 4, 2, 1, 5]
    assert prepared.loss_tokens.tolist() == [1, 2, 2, 1, 0, 2]
    assert prepared.rows.tolist() == [0, 2, 2, 2, 3, 2]
    assert prepared.dataset.tolist() == [0, 0, 0, 0, 0, 1]
    assert [prepared[piece][0].tolist() for piece in range(len(prepared))] == [
        [0, 1, 2],
        [2000, 2001, 2002, 2003],
        [2100, 2101, 2102, 2103],
        [2200, 2201],
        [3000],
        [2000, 2001, 2002, 2003, 2004],
    ]
    assert prepared[2][1].tolist() == [False, True, False, True]
    assert [part.dropped for part in prepared.parts] == [{"too long": 1}, {"empty": 2}]
    assert [part.rows for part in prepared.parts] == [4, 3]
    assert prepared.describe(3) == "first: a.jsonl: row 3"
    with pytest.raises(IndexError):
        prepared[6]


def test_nothing_is_copied_and_nothing_can_be_written(two: list[Path]) -> None:
    prepared = Prepared(two)
    ids, loss = prepared[1]
    assert (ids.dtype, loss.dtype) == (np.int32, np.bool_)
    assert np.shares_memory(ids, prepared._files[1][0].ids)
    for array in (ids, loss):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_another_process_maps_the_files_itself(two: list[Path]) -> None:
    prepared = Prepared(two)
    sent = pickle.dumps(prepared)
    assert len(sent) < 1000
    assert pickle.loads(sent)[2][0].tolist() == prepared[2][0].tolist()


@pytest.mark.slow
def test_ten_thousand_shards_open_quickly_and_take_no_descriptors(tmp_path: Path) -> None:
    run = prepared_runs.write(tmp_path / "many", [[5]] * 10_000, shard_rows=1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    began = time.monotonic()
    prepared = Prepared([run])
    assert time.monotonic() - began < 20  # some 3 s on an idle core
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 5
    assert prepared[9_999][0].tolist() == [9_999_000 + token for token in range(5)]


def test_an_unfinished_or_broken_dataset_is_refused(two: list[Path]) -> None:
    output = RunDirectory(two[0], ".arrow").shard_output(1)
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HalaError, match="not readable"):
        Prepared(two)
    output.unlink()
    with pytest.raises(HalaError, match="not all of its 2 shards are prepared"):
        Prepared(two)


def test_every_flip_in_a_column_of_a_token_file_is_found(two: list[Path]) -> None:
    """Arrow pads its buffers: a flip there changes nothing that anybody reads."""
    plan = manifest.read(two[0] / "manifest.parquet")
    path = RunDirectory(two[0], ".arrow").shard_output(0)
    whole, written = path.read_bytes(), tokens.read(path)
    before = written.batch.to_pylist()
    assert check_shard(plan[0], path, 512).problems == ()
    draw, found = random.Random(5), 0
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.unlink()  # the file is mapped: a new one takes its place
        path.write_bytes(flipped)
        if check_shard(plan[0], path, 512).problems:
            found += 1
        else:
            assert tokens.read(path).batch.to_pylist() == before
    assert found > 20
