"""Lists of documents, many of them, in two arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]


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
