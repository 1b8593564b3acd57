"""Rows become tokens, each with a mark that says whether the model is to learn to predict it.

A prepared shard is a file of tokens in Arrow, uncompressed, so that a training only maps it into memory.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hala_hpc.config.schema import Data
from hala_hpc.data import templates
from hala_hpc.data.documents import (
    CONTROL_WORDS,
    Chat,
    Document,
    PromptAnswer,
    Text,
    holds_control_words,
    reader_of,
)
from hala_hpc.data.schema import Row
from hala_hpc.data.spoken import Dropped
from hala_hpc.data.templates import Marks, Spans
from hala_hpc.tasks.train.options import PrepareOptions
from hala_hpc.text.prompts import ControlWords

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
    lines: list[tuple[int, int, Tokens, str | None]] = []
    for number, done in rows:
        if isinstance(done, str):
            lines.append((number, -1, nothing, done))
        else:
            lines.extend((number, index, piece, None) for index, piece in enumerate(done))
    numbers, indices, pieces, errors = zip(*lines, strict=True)
    offsets = pa.array(np.cumsum([0, *(len(piece.ids) for piece in pieces)]), pa.int32())
    ids = np.concatenate([piece.ids for piece in pieces], dtype=np.int32)
    loss = np.concatenate([piece.loss for piece in pieces]).astype(np.int8)
    columns: list[Any] = [
        pa.array(numbers, pa.int64()),
        pa.array(indices, pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(loss)),
        pa.array([int(piece.loss.sum()) for piece in pieces], pa.int32()),
        pa.array([piece.truncated for piece in pieces], pa.bool_()),
        pa.array(errors, pa.string()),
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
    row, piece, ids, loss, loss_tokens, truncated, error = cast(list[Any], batch.columns)
    return Opened(
        row=row.to_numpy(),
        piece=piece.to_numpy(),
        offsets=ids.offsets.to_numpy(),
        ids=ids.values.to_numpy(),
        loss=loss.values.to_numpy().view(np.bool_),
        loss_tokens=loss_tokens.to_numpy(),
        truncated=truncated.to_numpy(zero_copy_only=False),
        error=error,
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


Ids = npt.NDArray[np.int32]
Loss = npt.NDArray[np.bool_]


class Tokenizing:
    """How rows of one schema become tokens. Call it with a row.

    Special tokens come from the chat template alone; texts, and prompts with their answers, get one BOS, where the
    tokenizer has one, and EOS. Words of a row that are special tokens are text (``text.prompts``), but for those that
    ``control_tokens`` allows.
    """

    def __init__(self, tokenizer: Any, options: PrepareOptions, data: Data, schema: pa.Schema) -> None:
        """Raises HalaError where the columns do not fit the kind of the rows."""
        self.reader = reader_of(options.rows, data, schema)
        self._tokenizer = tokenizer
        self._options = options
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._eos = [tokenizer.eos_token_id]
        self._words = ControlWords(self._backend, options.control_tokens)
        self._marks = Marks(self._rendered, options.leave_out)

    def __call__(self, row: Row) -> list[Tokens]:
        """The pieces of a row: one, or for a long text several, none longer than the sequence length.

        Raises HalaError for a row of another form, Dropped for one that has nothing to learn or is too long.
        """
        return self.pieces(self.reader.read(row))

    def pieces(self, document: Document) -> list[Tokens]:
        """The pieces of a document, as of a row."""
        tokens = self._encoded(document)
        if isinstance(document, Text):
            return _cut(tokens, self._options.sequence_length)
        return [self._fitted(tokens)]

    def notes(self, document: Document) -> list[str]:
        """Parts of a document that are left out or may be misunderstood, in words that are the same for all rows.

        Raises HalaError where the chat template leaves out what ``leave_out`` does not name.
        """
        notes = [CONTROL_WORDS] if holds_control_words(document, self._words) else []
        if isinstance(document, Chat):
            missing = self._marks.look(document).left_out
            notes += [f"rows whose {name} the chat template leaves out" for name in sorted(missing)]
            notes += document.notes
            notes += ["turns of the assistant that are not to be learned"] * len(document.unlearned)
        return notes

    def length(self, document: Document) -> int:
        """Tokens of a document, however long."""
        return len(self._encoded(document).ids)

    def most(self, document: Document) -> int:
        """A number of tokens that a document cannot exceed, found without tokenizing it.

        A token stands for at least one byte of the normalized text; the word mark that some tokenizers put in front
        is one more. Raises HalaError where the chat template refuses the document.
        """
        texts = [self._words.restore(self._rendered(document)[0])] if isinstance(document, Chat) else document.texts
        normalizer = self._backend.normalizer
        sizes = [len((normalizer.normalize_str(text) if normalizer else text).encode()) + 1 for text in texts]
        return sum(sizes) + len(self._bos) + len(self._eos)

    def _encoded(self, document: Document) -> Tokens:
        if isinstance(document, Chat):
            text, spans = self._rendered(document)
            encoded = self._words.encode(text, self._marks.learned(document, spans))
            ids, loss = np.array(encoded.ids, np.int32), overlapping(encoded.offsets, encoded.spans)
        elif isinstance(document, PromptAnswer):
            before, answer = [*self._bos, *self._ids(document.prompt)], [*self._ids(document.answer), *self._eos]
            ids = np.array(before + answer, np.int32)
            loss = np.arange(len(ids)) >= len(before)
        else:
            ids = np.array([*self._bos, *self._ids(document.text), *self._eos], np.int32)
            loss = np.ones(len(ids), np.bool_)
        return _piece(ids, loss)

    def _rendered(self, chat: Chat) -> tuple[str, Spans]:
        """The words of the data in it are hidden."""
        rendered = templates.render(self._tokenizer, chat.hiding(self._words))
        return rendered.text, rendered.spans

    def _ids(self, text: str) -> list[int]:
        return self._words.encode(self._words.hide(text)).ids

    def _fitted(self, tokens: Tokens) -> Tokens:
        most = self._options.sequence_length
        if (length := len(tokens.ids)) > most:
            if self._options.too_long != "truncate":
                raise Dropped(f"too long: {length} tokens for sequences of {most}")
            tokens = replace(_piece(tokens.ids[:most], tokens.loss[:most]), truncated=True)
        if not tokens.loss.any():
            raise Dropped("no answer: none of it within the sequence length" if tokens.truncated else "empty: no loss")
        return tokens


def overlapping(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> Loss:
    """Which tokens hold a character of one of the spans.

    Parameters
    ----------
    offsets : of each token, the characters from and to. Some tokenizers leave spaces out: then a token of nothing but
        spaces seems empty, and begins where the token before it ends.
    """
    begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    before = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(ends)])[:-1] if len(ends) else ends
    begins = np.where(begins < ends, begins, np.minimum(before, ends))
    marks = np.zeros(len(begins), np.bool_)
    for start, stop in spans:
        marks |= (begins < stop) & (ends > start)
    return marks


def _piece(ids: Ids, loss: Loss) -> Tokens:
    """Nothing comes before the first token, so it is never predicted."""
    loss = loss.copy()
    loss[:1] = False
    return Tokens(ids, loss)


def _cut(tokens: Tokens, most: int) -> list[Tokens]:
    """Pieces of at most so many tokens, all of them kept; the last has at least two, or it would teach nothing."""
    length = len(tokens.ids)
    borders = [*range(0, length, most), length]
    if len(borders) > 2 and borders[-1] - borders[-2] == 1 and most > 2:
        borders[-2] -= 1
    return [_piece(tokens.ids[begin:end], tokens.loss[begin:end]) for begin, end in pairwise(borders)]
