"""Lists of documents, many of them, in two arrays; and documents into sequences of one length with little padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]
"""An array of integers."""


@dataclass
class _Open:
    """Sequences that have room left: by their room, runs ``(first, count)`` of neighbouring numbers."""

    rooms: list[int] = field(default_factory=list)  # sorted, those that some sequence has
    runs: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, room: int, first: int, count: int) -> None:
        if room == 0 or count == 0:
            return
        if room not in self.runs:
            insort(self.rooms, room)
            self.runs[room] = []
        self.runs[room].append((first, count))

    def tightest(self, length: int) -> int | None:
        """The least room that holds a document of ``length``."""
        place = bisect_left(self.rooms, length)
        return self.rooms[place] if place < len(self.rooms) else None

    def take(self, room: int) -> tuple[int, int]:
        """The run that was last added with this room."""
        run = self.runs[room].pop()
        if not self.runs[room]:
            del self.runs[room]
            self.rooms.pop(bisect_left(self.rooms, room))
        return run


def best_fit(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Pack documents into sequences by best-fit decreasing: the longest first, each where it leaves the least room.

    Documents of one length are placed together: a sequence with the least room that holds one of them takes as many
    as it holds, for what it then has left is less still. So time goes with the number of different lengths and
    rooms, not of documents.

    Parameters
    ----------
    lengths : in tokens, at least 1 and at most ``capacity``. Ties go to the document that comes first.
    capacity : tokens of a sequence.

    Returns
    -------
    items, offsets : sequence ``s`` holds the documents ``items[offsets[s]:offsets[s + 1]]``, each once, longest first.

    Raises
    ------
    ValueError : a document is empty or longer than a sequence.
    """
    if len(lengths) == 0:
        return np.empty(0, np.int64), np.zeros(1, np.int64)
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"documents of {lengths.min()} to {lengths.max()} tokens for sequences of {capacity}")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    sequence = _place(*np.unique(lengths, return_counts=True), capacity)
    by_sequence = np.argsort(sequence, kind="stable")
    return order[by_sequence], _offsets(np.bincount(sequence))


Step = tuple[int, int, int]
"""So many documents in each sequence from this one on, so many in all."""


def _place(lengths: Ints, counts: Ints, capacity: int) -> Ints:
    """The sequence of each document, documents sorted longest first. ``lengths`` are unique and ascending."""
    steps: list[Step] = []
    is_open = _Open()
    sequences = 0
    for length, left in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            room = is_open.tightest(length)
            if room is None:
                room, run = capacity, (sequences, -(-left // (capacity // length)))
                sequences += run[1]
            else:
                run = is_open.take(room)
            left -= _fill(is_open, steps, run, room, length, left)
    first, documents_each, documents = np.array(steps, np.int64).T
    start = np.cumsum(documents) - documents
    within = np.arange(int(documents.sum()), dtype=np.int64) - np.repeat(start, documents)
    sequence: Ints = np.repeat(first, documents) + within // np.repeat(documents_each, documents)
    return sequence


def _fill(is_open: _Open, steps: list[Step], run: tuple[int, int], room: int, length: int, left: int) -> int:
    """Fill sequences that have ``room`` with ``left`` documents, as far as they go. Returns how many they took."""
    first, count = run
    most = room // length
    full = min(count, left // most)
    rest = left - full * most if full < count else 0
    for sequences, documents in ((full, most), (min(rest, 1), rest)):
        if sequences:
            steps.append((first, documents, sequences * documents))
            is_open.add(room - documents * length, first, sequences)
        first += sequences
    is_open.add(room, first, run[0] + count - first)
    return full * most + rest


@dataclass(frozen=True)
class Sequences:
    """Sequence ``s`` holds the pieces ``items[offsets[s]:offsets[s + 1]]``."""

    items: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, sequence: int) -> list[int]:
        if not 0 <= sequence < len(self):
            raise IndexError(f"sequence {sequence} of {len(self)}")
        begin, end = self.offsets[sequence], self.offsets[sequence + 1]
        pieces: list[int] = self.items[begin:end].tolist()
        return pieces

    def take(self, which: Ints) -> "Sequences":
        """Some sequences, in the order given."""
        counts = np.diff(self.offsets)[which]
        offsets = _offsets(counts)
        shift = np.repeat(self.offsets[:-1][which] - offsets[:-1], counts)
        return Sequences(self.items[np.arange(offsets[-1]) + shift], offsets)

    def first(self, count: int) -> "Sequences":
        """The first so many sequences."""
        return Sequences(self.items[: self.offsets[count]], self.offsets[: count + 1])

    def after(self, count: int) -> "Sequences":
        """All but the first so many sequences."""
        return Sequences(self.items[self.offsets[count] :], self.offsets[count:] - self.offsets[count])

    def sums(self, values: Ints) -> Ints:
        """For each sequence, the sum of what ``values`` has for its pieces."""
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values[self.items], dtype=np.int64)])
        sums: Ints = np.diff(running[self.offsets])
        return sums

    def save(self, folder: Path, name: str) -> None:
        """Write two files into a folder that is still being made."""
        np.save(folder / f"{name}_items.npy", self.items.astype(np.int64))
        np.save(folder / f"{name}_offsets.npy", self.offsets.astype(np.int64))


def single(pieces: Ints) -> Sequences:
    """Each piece a sequence of its own."""
    return Sequences(pieces, np.arange(len(pieces) + 1, dtype=np.int64))


def joined(parts: Sequence[Sequences]) -> Sequences:
    """One after the other."""
    counts = np.concatenate([np.empty(0, np.int64), *(np.diff(part.offsets) for part in parts)])
    items = np.concatenate([np.empty(0, np.int64), *(part.items for part in parts)])
    return Sequences(items, _offsets(counts))


def load(folder: Path, name: str) -> Sequences:
    """Map what ``save`` wrote. Raises OSError, EOFError or ValueError where it is not there or not whole."""
    items, offsets = (np.load(folder / f"{name}_{part}.npy", mmap_mode="r") for part in ("items", "offsets"))
    if offsets[-1] != len(items):
        raise ValueError(f"{name} is not whole")
    return Sequences(items, offsets)


def _offsets(counts: Ints) -> Ints:
    offsets: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return offsets
