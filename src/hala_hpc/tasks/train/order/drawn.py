"""In which order documents are seen: drawn once from the seed, the same for whatever number of GPUs.

Each epoch is drawn anew: which rows of a weighted dataset it sees, how documents are packed, and the order of the
sequences. All datasets are shuffled and packed together. The epochs form one stream, cut into steps; what does not fill
a step begins the next epoch's, so only the last step of all may be shorter.
"""

import itertools
import zlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.options import Options
from hala_hpc.tasks.train.order import packing
from hala_hpc.tasks.train.order.packing import Sequences, best_fit
from hala_hpc.tasks.train.order.prepared import Prepared

Ints = npt.NDArray[Any]
WINDOW_STEPS: Final = 64
"""Without packing, sequences are sorted by length within so many steps (ours; transformers takes 50 batches)."""


class Order:
    """Draws the order of a training.

    Every random choice has a generator of its own, made of the seed and of what it is for, so none depends on how much
    others have drawn.
    """

    def __init__(self, prepared: Prepared, options: Options, packed: bool, batch: int) -> None:
        """``batch`` is the number of sequences of a step. Raises HalaError for data and options that do not fit."""
        _check(prepared, options)
        self._lengths = prepared.lengths
        self._options = options
        self._packed = packed
        self._batch = batch
        is_first = np.diff(prepared.rows, prepend=-1) != 0
        is_first |= np.diff(prepared.dataset, prepend=np.int16(-1)) != 0
        self._row = np.cumsum(is_first) - 1  # of each piece: pieces of a row are neighbours
        dataset = prepared.dataset[is_first]
        self._is_held = self._draw_held(len(dataset))
        self._phase = self._draw_phases(dataset)
        self._weight = np.array([one.weight for one in options.datasets.values()])[dataset]
        self._weight[self._is_held] = 0

    def held_out(self) -> Sequences:
        """The sequences of the evaluation; without packing, the shortest first."""
        found = self._sequences(np.flatnonzero(self._is_held[self._row]), "held out", 0)
        return found if self._packed else found.take(np.argsort(found.sums(self._lengths), kind="stable"))

    def training(self) -> Sequences:
        """All steps of the training, one after the other, in sequences. Raises HalaError where there is nothing."""
        steps: list[Sequences] = []
        spent, carry = 0, packing.single(np.empty(0, np.int64))
        for epoch, share in self._epochs():
            drawn = self._epoch(epoch, share)
            whole, carry = self._into_steps(packing.joined([carry, drawn]), epoch)
            if self._options.tokens is not None:
                costs = spent + np.cumsum(self._costs(whole))
                if len(costs) and costs[-1] >= self._options.tokens:
                    enough = int(np.searchsorted(costs, self._options.tokens)) + 1
                    return packing.joined([*steps, whole.first(enough * self._batch)])
                spent = int(costs[-1]) if len(costs) else spent
            steps.append(whole)
        return packing.joined([*steps, carry])

    def _epochs(self) -> Iterator[tuple[int, float]]:
        """Epochs, and how much of each is seen; without end where the recipe counts tokens."""
        if self._options.tokens is not None:
            yield from zip(itertools.count(), itertools.repeat(1.0))
        for epoch in range(int(np.ceil(self._options.epochs))):
            yield epoch, min(1.0, self._options.epochs - epoch)

    def _epoch(self, epoch: int, share: float) -> Sequences:
        """The sequences of an epoch in the order in which they are seen."""
        # A row of weight 0.4 comes in two of five epochs, whichever five: by its phase, not by chance.
        before = np.floor(self._weight * epoch + self._phase)
        times = (np.floor(self._weight * (epoch + 1) + self._phase) - before).astype(np.int64)
        pieces = np.repeat(np.arange(len(self._row)), times[self._row])
        found = self._sequences(pieces, "documents", epoch)
        shuffled = self._random("sequences", epoch).permutation(len(found))
        return found.take(shuffled[: int(np.ceil(share * len(found)))])

    def _sequences(self, pieces: Ints, what: str, epoch: int) -> Sequences:
        if not self._packed:
            return packing.single(pieces)
        pieces = self._random(what, epoch).permutation(pieces)  # which of those of one length go together
        items, offsets = best_fit(self._lengths[pieces], self._options.sequence_length)
        return Sequences(pieces[items], offsets)

    def _into_steps(self, stream: Sequences, epoch: int) -> tuple[Sequences, Sequences]:
        """Whole steps, and the sequences that are left. Without packing, those of a step are about equally long."""
        steps = len(stream) // self._batch
        whole, rest = stream.first(steps * self._batch), stream.after(steps * self._batch)
        if self._packed or not steps:
            return whole, rest
        window = np.arange(len(whole)) // (self._batch * WINDOW_STEPS)
        by_length = np.lexsort((whole.sums(self._lengths), window)).reshape(steps, self._batch)
        shuffled = np.lexsort((self._random("steps", epoch).random(steps), np.arange(steps) // WINDOW_STEPS))
        return whole.take(by_length[shuffled].ravel()), rest

    def _costs(self, whole: Sequences) -> Ints:
        """Tokens of each step, padding included: packed sequences are full, others as long as the step's longest."""
        sizes = whole.sums(self._lengths).reshape(-1, self._batch)
        longest = np.full(len(sizes), self._options.sequence_length) if self._packed else sizes.max(axis=1, initial=0)
        costs: Ints = longest * self._batch
        return costs

    def _draw_held(self, rows: int) -> npt.NDArray[np.bool_]:
        wanted = self._options.evaluation.rows
        if wanted >= rows:
            raise HalaError(
                f"task.evaluation.rows: {wanted} of {rows} rows held out leaves none to train on", "fewer, or 0"
            )
        held = np.zeros(rows, np.bool_)
        held[self._random("held out", 0).permutation(rows)[:wanted]] = True
        return held

    def _draw_phases(self, dataset: Ints) -> Ints:
        """For each row a place in [0, 1), those of the rows that are trained on evenly spread in each dataset."""
        phase = np.zeros(len(dataset))
        for number in range(len(self._options.datasets)):
            rows = np.flatnonzero((dataset == number) & ~self._is_held)
            phase[rows] = self._random("phases", number).permutation(len(rows)) / max(1, len(rows))
        return phase

    def _random(self, what: str, number: int) -> np.random.Generator:
        return np.random.default_rng([self._options.seed, zlib.crc32(what.encode()), number])


def _check(prepared: Prepared, options: Options) -> None:
    """Refuse what gives no order, or would draw epochs for ever."""
    if len(options.datasets) != len(prepared.parts):
        raise HalaError(f"task.datasets: {len(options.datasets)}, but {len(prepared.parts)} are prepared")
    for number, (name, dataset) in enumerate(options.datasets.items()):
        if not dataset.weight > 0:
            raise HalaError(f"task.datasets.{name}.weight: {dataset.weight}", "more than 0; or leave the dataset out")
        if not (prepared.dataset == number).any():
            dropped = ", ".join(f"{count} {reason}" for reason, count in prepared.parts[number].dropped.items())
            raise HalaError(f"task.datasets.{name}: no row is left to train on ({dropped})")
    if prepared.lengths.max() > options.sequence_length:
        raise HalaError(
            f"task.sequence_length: {options.sequence_length}, but documents were prepared with "
            f"{prepared.lengths.max()} tokens",
            "prepare them anew, in a new run",
        )
    if (not options.epochs > 0) if options.tokens is None else options.tokens < 1:
        raise HalaError("task.epochs, task.tokens: nothing to train on", "one of them more than 0")
