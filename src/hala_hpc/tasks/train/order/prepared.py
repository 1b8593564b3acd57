"""The tokens of all datasets of a training: one long list of pieces that stay on the disk until they are asked for."""

from bisect import bisect_right
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
from hala_hpc.tasks.train.prepare import token_file
from hala_hpc.tasks.train.prepare.token_file import Opened

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
        return token_file.read(path)
    except FileNotFoundError as error:
        run = path.parents[2]
        raise HalaError(f"{run}: not all of its {shards} shards are prepared", f"`hala resume {run}`") from error
    except (pa.ArrowException, OSError) as error:
        raise HalaError(f"{path}: not readable: {error}", "remove it, and `hala resume` makes it again") from error


def _joined(arrays: Sequence[npt.NDArray[Any]], kind: type) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *arrays], dtype=kind)
