"""What one rank sees in one forward pass: a pure function of the index, the layout and the rank.

So a resume needs no skipping, and another number of ranks sees the same global batches, only cut otherwise.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hala_hpc.tasks.train.options import Layout
from hala_hpc.tasks.train.order.index import Index
from hala_hpc.tasks.train.order.packing import Prepared

IGNORED = -100
"""Label of a token that is not learned, as torch's cross entropy has it."""
Batch = dict[str, torch.Tensor]


class Batches(Dataset[Batch]):
    """All micro-batches of one rank, in order: ``accumulation`` of them make a step."""

    def __init__(self, index: Index, layout: Layout, rank: int, collate: "Collate") -> None:
        self._index, self._layout, self._rank, self._collate = index, layout, rank, collate

    def __len__(self) -> int:
        return self._index.steps * self._layout.accumulation

    def __getitem__(self, number: int) -> Batch:
        step, turn = divmod(number, self._layout.accumulation)
        first = (turn * self._layout.world + self._rank) * self._layout.per_device
        # Alike in length side by side, so that little is padded and no rank waits for another.
        sequences = sorted(self._index.step(step), key=self._collate.tokens, reverse=True)
        return self._collate(sequences[first : first + self._layout.per_device], self._layout.per_device)


class Collate:
    """Sequences of pieces become tensors of shape (sequences, tokens); with ``flat`` (1, all tokens).

    Parameters
    ----------
    pad : the token that fills up.
    form : how documents in one sequence are kept apart: ``padded`` (one document each, with a mask), ``positions``
        (positions start anew, sequences side by side) or ``flat`` (the same, all sequences in one row, for kernels of
        variable length).
    conv : whether the model's convolutions need it too (``seq_idx``).
    """

    def __init__(self, prepared: Prepared, pad: int, form: str, conv: bool) -> None:
        self._prepared, self._pad, self._form, self._conv = prepared, pad, form, conv

    def __call__(self, sequences: Sequence[Sequence[int]], rows: int) -> Batch:
        """``rows``: fill up to so many with rows that are not learned, for a last step that is not full."""
        filled = [self._row(pieces) for pieces in sequences]
        filled += [self._row(())] * (max(rows, 1) - len(filled))
        if self._form == "flat":
            filled = [tuple(np.concatenate(parts) for parts in zip(*filled, strict=True))]
        width = max(2, *(len(ids) for ids, *_ in filled))
        ids, labels, positions, documents = (
            torch.from_numpy(np.stack([self._filled(row[part], width, part) for row in filled])) for part in range(4)
        )
        batch: Batch = {"input_ids": ids, "labels": labels}
        if self._form == "padded":
            batch["attention_mask"] = (documents >= 0).long()
        else:
            batch["position_ids"] = positions
            if self._conv:
                batch["seq_idx"] = (documents % (documents.max() + 2)).int()
        return batch

    def tokens(self, pieces: Sequence[int]) -> int:
        """The length of a sequence."""
        return int(self._prepared.lengths[list(pieces)].sum())

    def _row(self, pieces: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Ids, labels, positions and document numbers; the first token of a document is predicted by nothing."""
        ids, labels, positions, documents = [], [], [], []
        for number, piece in enumerate(pieces):
            tokens, loss = self._prepared[piece]
            label = np.where(loss, tokens, IGNORED).astype(np.int64)
            label[:1] = IGNORED
            ids.append(tokens.astype(np.int64))
            labels.append(label)
            positions.append(np.arange(len(tokens)))
            documents.append(np.full(len(tokens), number))
        empty = np.zeros(0, np.int64)
        return tuple(np.concatenate([empty, *parts]) for parts in (ids, labels, positions, documents))

    def _filled(self, values: np.ndarray, width: int, part: int) -> np.ndarray:
        """Fill up at the end, as a document of its own that is not learned."""
        more = width - len(values)
        rest = np.arange(more) if part == 2 else np.full(more, (self._pad, IGNORED, 0, -1)[part])
        return np.concatenate([values, rest])


class Loader:
    """Iterates from ``start`` on, and says the length of the whole: so the trainer counts steps as if never broken."""

    def __init__(self, batches: Batches, start: int, workers: int, pin: bool) -> None:
        self.dataset = batches
        self._loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(start, len(batches)),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
            # Of its own: else starting an iterator would draw from the global one, which noise comes from.
            generator=torch.Generator().manual_seed(0),
            multiprocessing_context="fork" if workers else None,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)
