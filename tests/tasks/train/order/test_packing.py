"""Best-fit packing: against a plain implementation, in seconds, with little padding on real documents."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hala_hpc.tasks.train.order.packing import best_fit


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    items, offsets = best_fit(np.array(lengths, np.int32), capacity)
    return [items[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]


def plain(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as the book has it: one document at a time, every sequence looked at."""
    rooms: list[int] = []
    found: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fits = [(room, number) for number, room in enumerate(rooms) if room >= lengths[item]]
        if not fits:
            rooms.append(capacity)
            found.append([])
            fits = [(capacity, len(rooms) - 1)]
        _, best = min(fits)
        rooms[best] -= lengths[item]
        found[best].append(item)
    return found


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.lists(st.integers(1, c), max_size=80), st.just(c))))
def test_it_packs_as_the_plain_algorithm_does(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    found = packed(lengths, capacity)
    assert sorted(item for sequence in found for item in sequence) == list(range(len(lengths)))
    sums = [sum(lengths[item] for item in sequence) for sequence in found]
    assert all(0 < total <= capacity for total in sums)
    # Which of several sequences of equal room takes a document is free; how full they get is not.
    assert sorted(sums) == sorted(sum(lengths[item] for item in sequence) for sequence in plain(lengths, capacity))


@pytest.mark.parametrize("lengths", [[0, 3], [5, 9]])
def test_documents_that_cannot_be_packed_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="for sequences of 8"):
        best_fit(np.array(lengths), 8)


@pytest.mark.parametrize("capacity", [512, 2048, 4096])
def test_real_documents_leave_at_most_two_percent_of_padding(data: Path, capacity: int) -> None:
    """Alpaca's rows by their bytes, some four to a token."""
    rows = [row for file in (data / "instructions/alpaca_52k").glob("*.json") for row in json.loads(file.read_text())]
    assert len(rows) == 52_002
    sizes = [sum(len(text.encode()) for text in row.values()) // 4 + 12 for row in rows]
    lengths = np.minimum(sizes, capacity)
    items, offsets = best_fit(lengths, capacity)
    assert np.array_equal(np.sort(items), np.arange(len(rows)))
    assert 1 - lengths.sum() / ((len(offsets) - 1) * capacity) <= 0.02


@pytest.mark.slow
def test_four_million_documents_take_seconds() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1.2, 4_000_000), 1, 4096).astype(np.int32)
    began = time.monotonic()
    items, offsets = best_fit(lengths, 4096)
    assert time.monotonic() - began < 10
    assert np.add.reduceat(lengths[items], offsets[:-1]).max() <= 4096
    assert np.array_equal(np.bincount(items), np.ones(len(lengths)))
