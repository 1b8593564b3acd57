"""What is in which step: drawn once, before a training starts, kept in a folder, and mapped by every rank."""

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt

from hala_hpc.config.errors import HalaError
from hala_hpc.run import files
from hala_hpc.tasks.train.options import Options, global_batch, steps_of
from hala_hpc.tasks.train.order import packing
from hala_hpc.tasks.train.order.packing import Ints, Prepared, Sequences, best_fit

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
        self._weight = np.array([part.weight for part in options.datasets.values()])[dataset]
        self._weight[self._is_held] = 0

    def held_out(self) -> Sequences:
        """The sequences of the evaluation; without packing, the shortest first."""
        held = self._sequences(np.flatnonzero(self._is_held[self._row]), "held out", 0)
        return held if self._packed else held.take(np.argsort(held.sums(self._lengths), kind="stable"))

    def training(self) -> Sequences:
        """All steps of the training, one after the other, in sequences."""
        steps: list[Sequences] = []
        spent, carry = 0, packing.single(np.empty(0, np.int64))
        for epoch, share in self._epochs():
            drawn = self._epoch(epoch, share)
            whole, carry = self._into_steps(packing.joined([carry, drawn]), epoch)
            if self._options.tokens is not None and len(whole):
                costs = spent + np.cumsum(self._costs(whole))
                spent = int(costs[-1])
                if spent >= self._options.tokens:
                    enough = int(np.searchsorted(costs, self._options.tokens)) + 1
                    return packing.joined([*steps, whole.split(enough * self._batch)[0]])
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
        sequences = self._sequences(pieces, "documents", epoch)
        shuffled = self._random("sequences", epoch).permutation(len(sequences))
        return sequences.take(shuffled[: int(np.ceil(share * len(sequences)))])

    def _sequences(self, pieces: Ints, what: str, epoch: int) -> Sequences:
        if not self._packed:
            return packing.single(pieces)
        pieces = self._random(what, epoch).permutation(pieces)  # which of those of one length go together
        items, offsets = best_fit(self._lengths[pieces], self._options.sequence_length)
        return Sequences(pieces[items], offsets)

    def _into_steps(self, stream: Sequences, epoch: int) -> tuple[Sequences, Sequences]:
        """Whole steps, and the sequences that are left. Without packing, those of a step are about equally long."""
        steps = len(stream) // self._batch
        whole, rest = stream.split(steps * self._batch)
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
    """Refuse data that are not those of the options, or give no order."""
    if len(options.datasets) != len(prepared.parts):
        raise HalaError(f"task.datasets: {len(options.datasets)}, but {len(prepared.parts)} are prepared")
    for number, (name, part) in enumerate(zip(options.datasets, prepared.parts, strict=True)):
        if not (prepared.dataset == number).any():
            dropped = ", ".join(f"{count} {reason}" for reason, count in part.dropped.items())
            raise HalaError(f"task.datasets.{name}: no row is left to train on ({dropped})")
    if prepared.lengths.max() > options.sequence_length:
        raise HalaError(
            f"task.sequence_length: {options.sequence_length}, but documents were prepared with "
            f"{prepared.lengths.max()} tokens",
            "prepare them anew, in a new run",
        )


VERSION: Final = 1
"""Raised when the same recipe and data would give another order."""


class PreparedDataset(TypedDict):
    """One part of the mixture as it was prepared, and how much of it is seen."""

    kind: str
    weight: float
    rows: int
    pieces: int
    tokens: int
    loss_tokens: int
    seen_tokens: int
    truncated_rows: int
    dropped_rows: int
    dropped: dict[str, int]


class OrderReport(TypedDict):
    """What the preparation of a training came to. ``key``: digest of all that the order depends on.

    ``tokens`` and ``loss_tokens`` count what the training sees over all its epochs, without padding. ``padding_share``
    is of what is computed: packed sequences are padded to the full length, others to the longest of so many neighbours
    as one GPU takes at once.
    """

    steps: int
    batch: int
    sequences: int
    sequence_length: int
    packed: bool
    tokens: int
    loss_tokens: int
    loss_token_share: float
    padding_share: float
    truncated_rows: int
    dropped_rows: int
    held_out_rows: int
    held_out_sequences: int
    datasets: dict[str, PreparedDataset]
    key: str


@dataclass(frozen=True)
class Index:
    """The order of a training. ``steps`` are optimizer steps, ``batch`` the sequences of each but perhaps the last.

    ``held_out`` are the sequences of the evaluation.
    """

    steps: int
    batch: int
    sequences: Sequences
    held_out: list[list[int]]
    report: OrderReport

    def step(self, step: int) -> list[list[int]]:
        """The global batch of a step (from 0): its sequences, each a list of pieces of ``Prepared``."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        last = min((step + 1) * self.batch, len(self.sequences))
        return [self.sequences[sequence] for sequence in range(step * self.batch, last)]


def build(prepared: Prepared, options: Options, can_pack: bool, target: Path) -> Index:
    """Decide the order and keep it in the folder ``target``, whole or not at all; what stands there already is used.

    Parameters
    ----------
    prepared : of the datasets of ``options``, in their order.
    can_pack : whether the model keeps the documents of one sequence apart.

    Raises
    ------
    HalaError : nothing to train on, packing that the model cannot do, or an index of another recipe or other data.
    """
    if options.packing and not can_pack:
        raise HalaError(
            "task.packing: this model, as it is loaded here, does not keep the documents of a sequence apart",
            "task.packing=null packs where it can be done",
        )
    packed = can_pack if options.packing is None else options.packing
    batch = global_batch(options)
    key = _key(prepared, options, packed, batch)
    if not target.exists():
        order = Order(prepared, options, packed, batch)
        held_out, training = order.held_out(), order.training()
        if not len(training):
            raise HalaError(
                "task.epochs is too small: no sequence is left to train on", "see also task.datasets.NAME.weight"
            )
        report = _report(prepared, options, packed, batch, training, held_out, key)
        try:
            with files.whole_directory(target) as folder:
                training.save(folder, "training")
                held_out.save(folder, "held_out")
                (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        except FileExistsError:
            pass  # another was first, with the same
    index = load(target)
    if index.report["key"] != key:
        raise HalaError(f"{target} is of another recipe or of other data", "give the run another name")
    return index


def load(path: Path) -> Index:
    """Map an index that ``build`` made. Raises HalaError for anything else."""
    try:
        report: OrderReport = json.loads((path / "report.json").read_text())
        training, held_out = packing.load(path, "training"), packing.load(path, "held_out")
        lists = [held_out[sequence] for sequence in range(len(held_out))]
        return Index(report["steps"], report["batch"], training, lists, report)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise HalaError(f"{path} is not an index of a training: {error}") from error


def _key(prepared: Prepared, options: Options, packed: bool, batch: int) -> str:
    """Digest of all that the order depends on."""
    weights = [dataset.weight for dataset in options.datasets.values()]
    lengths = (options.sequence_length, options.epochs, options.tokens)
    settings = [VERSION, weights, lengths, options.evaluation.rows, options.seed, packed, batch]
    hashed = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
    for array in (prepared.dataset, prepared.rows, prepared.lengths, prepared.loss_tokens):
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def _report(
    prepared: Prepared, options: Options, packed: bool, batch: int, training: Sequences, held_out: Sequences, key: str
) -> OrderReport:
    sizes = training.sums(prepared.lengths)
    tokens, loss_tokens = int(sizes.sum()), int(prepared.loss_tokens[training.items].sum(dtype=np.int64))
    padded = len(training) * options.sequence_length if packed else _padded(sizes, batch, options.batch.per_device)
    parts = _parts(prepared, options, training)
    return {
        "steps": steps_of(len(training), batch),
        "batch": batch,
        "sequences": len(training),
        "sequence_length": options.sequence_length,
        "packed": packed,
        "tokens": tokens,
        "loss_tokens": loss_tokens,
        "loss_token_share": round(loss_tokens / tokens, 6),
        "padding_share": round(1 - tokens / padded, 6),
        "truncated_rows": sum(part["truncated_rows"] for part in parts.values()),
        "dropped_rows": sum(part["dropped_rows"] for part in parts.values()),
        "held_out_rows": options.evaluation.rows,
        "held_out_sequences": len(held_out),
        "datasets": parts,
        "key": key,
    }


def _padded(sizes: Ints, batch: int, per_device: int) -> int:
    """Tokens computed when every ``per_device`` neighbours of a step are padded to the longest of them."""
    starts = np.flatnonzero(np.arange(len(sizes)) % batch % per_device == 0)
    return int((np.maximum.reduceat(sizes, starts) * np.diff(starts, append=len(sizes))).sum())


def _parts(prepared: Prepared, options: Options, training: Sequences) -> dict[str, PreparedDataset]:
    count = len(prepared.parts)
    pieces = np.bincount(prepared.dataset, minlength=count)
    tokens = np.bincount(prepared.dataset, prepared.lengths, count)
    loss_tokens = np.bincount(prepared.dataset, prepared.loss_tokens, count)
    seen = np.bincount(prepared.dataset[training.items], prepared.lengths[training.items], count)
    return {
        name: {
            "kind": dataset.kind,
            "weight": dataset.weight,
            "rows": part.rows,
            "pieces": int(pieces[number]),
            "tokens": int(tokens[number]),
            "loss_tokens": int(loss_tokens[number]),
            "seen_tokens": int(seen[number]),
            "truncated_rows": part.truncated,
            "dropped_rows": sum(part.dropped.values()),
            "dropped": part.dropped,
        }
        for number, ((name, dataset), part) in enumerate(zip(options.datasets.items(), prepared.parts, strict=True))
    }
