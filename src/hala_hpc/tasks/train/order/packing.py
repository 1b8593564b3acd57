"""Lists of documents, many of them, in two arrays; and documents into sequences of one length with little padding.

The tokens of all datasets are one long list of pieces that stay on the disk until they are read.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.data.bad_rows import SET_ASIDE_NOTE
from hala_hpc.data.shards import reason_of
from hala_hpc.run import manifest
from hala_hpc.run.manifest import Facts
from hala_hpc.tasks.train.prepare import tokens
from hala_hpc.tasks.train.prepare.tokens import Opened

Ints = npt.NDArray[Any]
"""An array of integers."""


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


def _place(lengths: Ints, counts: Ints, capacity: int) -> Ints:
    """The sequence of each document, documents sorted longest first. ``lengths`` are unique and ascending."""
    filled: list[tuple[int, int, int]] = []  # first sequence, documents in each from it on, documents in all
    # Neighbouring sequences with the same room left, sorted: room, order (newest first), first sequence, how many.
    have_room: list[tuple[int, int, int, int]] = []
    newest_first = count(0, -1)
    sequences = 0
    for length, left in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            tightest = bisect_left(have_room, (length,))
            if tightest < len(have_room):
                room, _, first, neighbours = have_room.pop(tightest)
            else:
                room, first, neighbours = capacity, sequences, -(-left // (capacity // length))
                sequences += neighbours
            most = room // length
            full = min(neighbours, left // most)
            rest = left - full * most if full < neighbours else 0  # in the sequence after the full ones
            partial = int(rest > 0)
            left -= full * most + rest
            for number, documents in ((full, most), (partial, rest), (neighbours - full - partial, 0)):
                if number and documents:
                    filled.append((first, documents, number * documents))
                if number and room > documents * length:
                    insort(have_room, (room - documents * length, next(newest_first), first, number))
                first += number
    starts, documents_each, documents = np.array(filled, np.int64).T
    within = np.arange(int(documents.sum()), dtype=np.int64) - np.repeat(np.cumsum(documents) - documents, documents)
    sequence: Ints = np.repeat(starts, documents) + within // np.repeat(documents_each, documents)
    return sequence


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

    def split(self, at: int) -> tuple["Sequences", "Sequences"]:
        """The first so many sequences, and the others."""
        offsets, end = self.offsets, self.offsets[at]
        return Sequences(self.items[:end], offsets[: at + 1]), Sequences(self.items[end:], offsets[at:] - end)

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
        self.parts: list[Part] = []
        opened = [(number, file) for number, run in enumerate(self.runs) for file in self._open_run(run)]
        # Of each file, the lines that hold a piece.
        self._files: list[tuple[Opened, Ints]] = [(file, np.flatnonzero(file.piece >= 0)) for _, file in opened]
        counts = [len(kept) for _, kept in self._files]
        self._starts = np.cumsum([0, *counts]).tolist()
        self.lengths = _joined([np.diff(file.offsets)[kept] for file, kept in self._files], np.int32)
        self.loss_tokens = _joined([file.loss_tokens[kept] for file, kept in self._files], np.int32)
        self.rows = _joined([file.row[kept] for file, kept in self._files], np.int64)
        self.dataset = np.repeat(np.array([number for number, _ in opened], np.int16), counts)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, piece: int) -> Piece:
        """Views of the mapped files: nothing is copied, and nothing may be written."""
        if not 0 <= piece < len(self):
            raise IndexError(f"piece {piece} of {len(self)}")
        number = bisect_right(self._starts, piece) - 1
        file, kept = self._files[number]
        line = kept[piece - self._starts[number]]
        begin, end = file.offsets[line], file.offsets[line + 1]
        return file.ids[begin:end], file.loss[begin:end]

    def __reduce__(self) -> tuple[type["Prepared"], tuple[list[Path]]]:
        """A process that it is sent to maps the files itself."""
        return Prepared, (self.runs,)

    def describe(self, piece: int) -> str:
        """Where a piece is from, for a person: dataset, file and row (from 1)."""
        part = self.parts[self.dataset[piece]]
        return f"{part.name}: {place_of(manifest.read(part.run / 'manifest.parquet').facts, int(self.rows[piece]))}"

    def _open_run(self, path: Path) -> list[Opened]:
        """Open a run's shards."""
        run, plan = manifest.open_run(path)
        files = [_opened(run.shard_output(shard), len(plan)) for shard in range(len(plan))]
        reasons = Counter(reason_of(str(error)) for file in files for error in file.error.drop_null().to_pylist())
        truncated = sum(int(file.truncated.sum()) for file in files)
        self.parts.append(Part(path.name, path, plan.facts.rows, truncated, dict(reasons)))
        return files


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
