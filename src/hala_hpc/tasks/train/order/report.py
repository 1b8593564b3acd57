"""What the preparation of a training came to: tokens, padding, what was cut off or left out."""

from typing import Any

import numpy as np

from hala_hpc.tasks.train.options import Options, steps_of
from hala_hpc.tasks.train.order.packing import Sequences
from hala_hpc.tasks.train.order.prepared import Prepared


def of(
    prepared: Prepared, options: Options, packed: bool, batch: int, training: Sequences, held_out: Sequences
) -> dict[str, Any]:
    """The report, plain data for JSON.

    ``tokens`` and ``loss_tokens`` count what the training sees over all its epochs, without padding; ``datasets`` has
    each part as it was prepared, and ``seen_tokens`` of it. ``padding_share`` is of what is computed: packed sequences
    are padded to the full length, others to the longest of so many neighbours as one GPU takes at once.
    """
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
        "loss_token_share": round(loss_tokens / tokens, 6) if tokens else 0.0,
        "padding_share": round(1 - tokens / padded, 6) if padded else 0.0,
        "truncated_rows": sum(part["truncated_rows"] for part in parts.values()),
        "dropped_rows": sum(part["dropped_rows"] for part in parts.values()),
        "held_out_rows": options.evaluation.rows,
        "held_out_sequences": len(held_out),
        "datasets": parts,
    }


def _padded(sizes: Any, batch: int, per_device: int) -> int:
    """Tokens computed when every ``per_device`` neighbours of a step are padded to the longest of them."""
    if not len(sizes):
        return 0
    place = np.arange(len(sizes))
    group = place // batch * batch + place % batch // per_device
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    counts = np.diff(np.append(starts, len(sizes)))
    return int((np.maximum.reduceat(sizes, starts) * counts).sum())


def _parts(prepared: Prepared, options: Options, training: Sequences) -> dict[str, dict[str, Any]]:
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
