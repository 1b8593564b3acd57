"""Lists of documents, many of them, in two arrays; and documents into sequences of one length with little padding.

The tokens of all datasets are one long list of pieces that stay on the disk until they are read.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.data.bad_rows import SET_ASIDE_NOTE
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts
from hala_hpc.tasks.train.prepare import tokens
from hala_hpc.tasks.train.prepare.tokens import Opened

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


Piece = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""Token ids, and which of them are to be predicted."""


@dataclass(frozen=True)
class Part:
    """What is true of one dataset. ``dropped`` counts its rows that are not in the tokens, by reason."""

    name: str
    run: Path
    rows: int
    truncated: int
    dropped: dict[str, int] = field(default_factory=dict)


class Prepared:
    """Pieces of all datasets, in the order of datasets, rows and pieces within a row.

    Attributes
    ----------
    lengths : int32, tokens of each piece.
    loss_tokens : int32, how many of them are to be predicted.
    dataset : int16, the number of the run, in the order given.
    rows : int64, the row within its run that the piece is of, in source order.
    parts : one for each dataset.
    """

    def __init__(self, runs: Sequence[Path]) -> None:
        """Map the outputs of finished ``prepare`` runs. Raises HalaError where one is missing, unfinished or broken."""
        self.runs = list(runs)
        self._files: list[Opened] = []
        self._kept: list[npt.NDArray[Any]] = []  # of each file, the lines that hold a piece
        self.parts: list[Part] = []
        files_of = [self._open_run(run) for run in self.runs]
        self._starts = np.cumsum([0, *map(len, self._kept)]).tolist()
        pairs = list(zip(self._files, self._kept, strict=True))
        self.lengths = _joined([np.diff(file.offsets)[kept] for file, kept in pairs], np.int32)
        self.loss_tokens = _joined([file.loss_tokens[kept] for file, kept in pairs], np.int32)
        self.rows = _joined([file.row[kept] for file, kept in pairs], np.int64)
        numbers = np.repeat(np.arange(len(self.runs), dtype=np.int16), files_of)
        self.dataset = np.repeat(numbers, np.diff(self._starts))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, piece: int) -> Piece:
        """Views of the mapped files: nothing is copied, and nothing may be written."""
        if not 0 <= piece < len(self):
            raise IndexError(f"piece {piece} of {len(self)}")
        number = bisect_right(self._starts, piece) - 1
        file = self._files[number]
        line = self._kept[number][piece - self._starts[number]]
        begin, end = file.offsets[line], file.offsets[line + 1]
        return file.ids[begin:end], file.loss[begin:end]

    def __reduce__(self) -> tuple[type["Prepared"], tuple[list[Path]]]:
        """A process that it is sent to maps the files itself."""
        return Prepared, (self.runs,)

    def describe(self, piece: int) -> str:
        """Where a piece is from, for a person: dataset, file and row (from 1)."""
        part = self.parts[self.dataset[piece]]
        return f"{part.name}: {place_of(manifest.read(part.run / 'manifest.parquet').facts, int(self.rows[piece]))}"

    def _open_run(self, path: Path) -> int:
        """Open a run's shards. Returns how many there are."""
        plan = manifest.read(path / "manifest.parquet")
        run = RunDirectory(path, plan.facts.suffix)
        reasons: Counter[str] = Counter()
        truncated = 0
        for shard in range(len(plan)):
            file = _opened(run.shard_output(shard), len(plan))
            kept = file.piece >= 0
            if not kept.all():
                reasons.update(error.split(":", 1)[0] for error in file.error.to_pylist() if error is not None)
            truncated += int(file.truncated.sum())
            self._files.append(file)
            self._kept.append(np.flatnonzero(kept))
        self.parts.append(Part(path.name, path, plan.facts.rows, truncated, dict(reasons)))
        return len(plan)


def place_of(facts: Facts, row: int) -> str:
    """The file and the row in it (from 1) of a row of a run; where rows were set aside, counted without them."""
    taken = " of those taken" if any(note.startswith(SET_ASIDE_NOTE) for note in facts.notes) else ""
    for source in facts.sources:
        if row < source["rows"]:
            return f"{source['original']}: row {row + 1}{taken}"
        row -= source["rows"]
    raise IndexError(f"row {row} of a run of {facts.rows}")


def _opened(path: Path, shards: int) -> Opened:
    try:
        return tokens.read(path)
    except FileNotFoundError as error:
        run = path.parents[2]
        raise HalaError(f"{run}: not all of its {shards} shards are prepared", f"`hala resume {run}`") from error
    except (pa.ArrowException, OSError) as error:
        raise HalaError(f"{path}: not readable: {error}", "remove it, and `hala resume` makes it again") from error


def _joined(arrays: Sequence[npt.NDArray[Any]], kind: type) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *arrays], dtype=kind)
