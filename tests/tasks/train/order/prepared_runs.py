"""Prepared datasets on the disk, made of given lengths: what an index is built from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.tasks.train.prepare import tokens
from hala_hpc.tasks.train.prepare.tokens import Done, Tokens

Row = Sequence[int] | str
"""Lengths of a row's pieces, or the reason why it was dropped."""


def write(path: Path, rows: Sequence[Row], shard_rows: int = 100) -> Path:
    """A finished run of kind prepare. Token ``t`` of piece ``p`` of row ``r`` is ``1000 r + 100 p + t``."""
    path.mkdir(parents=True)
    run = RunDirectory(path, ".arrow")
    starts = range(0, len(rows), shard_rows)
    run.create_folders(len(starts))
    shards = []
    for number, start in enumerate(starts):
        part = rows[start : start + shard_rows]
        done = [(start + offset, _done(start + offset, row)) for offset, row in enumerate(part)]
        tokens.write(run.shard_output(number), done, b"{}", f"digest {number}")
        shards.append(Shard(number, "prepare", "a.jsonl", 0, start, len(part), 1, 1, f"digest {number}"))
    sources = [{"path": "a.jsonl", "rows": len(rows), "original": "a.jsonl"}]
    manifest.write(run.manifest, shards, Facts(".arrow", len(rows), len(rows), 1, 1, sources))
    return path


def _done(number: int, row: Row) -> Done:
    if isinstance(row, str):
        return row
    return [
        Tokens(np.arange(length, dtype=np.int32) + 1000 * number + 100 * piece, np.arange(length) % 2 == 1)
        for piece, length in enumerate(row)
    ]
