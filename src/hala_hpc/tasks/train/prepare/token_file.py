"""The file of a prepared shard: tokens in Arrow, uncompressed, so that a training only maps it into memory."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # number of the row in its run, in source order
        ("piece", pa.int32()),  # 0, 1, … of its row; -1: the row was dropped
        ("input_ids", pa.list_(pa.int32())),
        ("loss", pa.list_(pa.int8())),  # 1: this token is to be predicted
        ("loss_tokens", pa.int32()),
        ("truncated", pa.bool_()),  # tokens beyond the sequence length were left out
        ("error", pa.string()),  # why the row was dropped, as ``reason: detail``
    ]
)
MADE_BY, INPUT, CONTENT, COLUMNS = b"hala", b"hala_input", b"hala_content", b"hala_columns"
"""Metadata keys: what made the file, the digest of the rows that it was made of, that of its own tokens, and that of
all its columns (older files have none)."""


@dataclass(frozen=True)
class Tokens:
    """One document, or a piece of one: ``ids`` int32 and ``loss`` bool, both of its length.

    The first token never has a loss: nothing comes before it to predict it from.
    """

    ids: npt.NDArray[np.int32]
    loss: npt.NDArray[np.bool_]
    truncated: bool = False


@dataclass(frozen=True)
class Opened:
    """One file, mapped: all large arrays are views into it. Piece ``i`` is ``ids[offsets[i]:offsets[i + 1]]``."""

    row: npt.NDArray[np.int64]
    piece: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    loss: npt.NDArray[np.bool_]
    loss_tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    error: "pa.Array[Any]"
    metadata: dict[bytes, bytes]
    batch: "pa.RecordBatch"


Done = list[Tokens] | str
"""What became of a row: its pieces, or the reason for which it was dropped."""


def write(path: Path, rows: Iterable[tuple[int, Done]], made_by: bytes, digest: str) -> None:
    """Write a shard's rows, given with their numbers. ``digest`` is that of the shard's input."""
    nothing = Tokens(np.empty(0, np.int32), np.empty(0, np.bool_))
    lines = [
        (number, index, piece, error)
        for number, done in rows
        for index, piece, error in (
            [(-1, nothing, done)] if isinstance(done, str) else [(i, piece, None) for i, piece in enumerate(done)]
        )
    ]
    pieces = [piece for _, _, piece, _ in lines]
    offsets = pa.array(np.cumsum([0, *(len(piece.ids) for piece in pieces)]), pa.int32())
    ids = np.concatenate([piece.ids for piece in pieces], dtype=np.int32)
    loss = np.concatenate([piece.loss for piece in pieces]).astype(np.int8)
    columns: list[Any] = [
        pa.array([number for number, *_ in lines], pa.int64()),
        pa.array([index for _, index, *_ in lines], pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(loss)),
        pa.array([int(piece.loss.sum()) for piece in pieces], pa.int32()),
        pa.array([piece.truncated for piece in pieces], pa.bool_()),
        pa.array([error for *_, error in lines], pa.string()),
    ]
    metadata = {MADE_BY: made_by, INPUT: digest.encode(), CONTENT: content_digest(ids, loss).encode()}
    metadata[COLUMNS] = columns_digest(pa.RecordBatch.from_arrays(columns, schema=SCHEMA)).encode()
    schema = SCHEMA.with_metadata(metadata)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def read(path: Path) -> Opened:
    """Map a file. Raises pyarrow.ArrowException or OSError where it is not a file of tokens."""
    # The map outlives the open file, so ten thousand shards do not take ten thousand descriptors.
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        if file.schema.names != SCHEMA.names or file.num_record_batches != 1:
            raise pa.ArrowInvalid("not a file of prepared tokens")
        batch = file.get_batch(0)
    lists: Any = batch.column(2)
    flags: Any = batch.column(3)
    return Opened(
        row=batch.column(0).to_numpy(),
        piece=batch.column(1).to_numpy(),
        offsets=lists.offsets.to_numpy(),
        ids=lists.values.to_numpy(),
        loss=flags.values.to_numpy().view(np.bool_),
        loss_tokens=batch.column(4).to_numpy(),
        truncated=batch.column(5).to_numpy(zero_copy_only=False),
        error=batch.column(6),
        metadata=dict(file.schema.metadata or {}),
        batch=batch,
    )


def content_digest(ids: npt.NDArray[np.int32], loss: npt.NDArray[Any]) -> str:
    """Digest of all tokens and their loss: what ``verify`` holds a file against."""
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(np.ascontiguousarray(ids).data)
    hashed.update(np.ascontiguousarray(loss).view(np.int8).data)
    return hashed.hexdigest()


def columns_digest(batch: "pa.RecordBatch") -> str:
    """Digest of all values of all columns, whatever memory they lie in."""
    hashed = hashlib.blake2b(digest_size=16)
    for column in batch.columns:
        for part in (column.offsets, column.values) if isinstance(column, pa.ListArray) else (column,):
            values = part if isinstance(part, pa.StringArray) else part.to_numpy(zero_copy_only=False)
            said = repr(values.to_pylist()).encode() if isinstance(values, pa.StringArray) else values.tobytes()
            hashed.update(len(said).to_bytes(8, "little") + said)
    return hashed.hexdigest()
