"""Rows become tokens, each with a mark that says whether the model is to learn to predict it."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hala_hpc.config.schema import Data
from hala_hpc.data.arrow.schema import Row
from hala_hpc.data.chat import templates
from hala_hpc.data.chat.documents import (
    CONTROL_WORDS,
    Chat,
    Completion,
    Document,
    Dropped,
    Text,
    holds_control_words,
    reader_of,
)
from hala_hpc.data.chat.marks import Marks, Spans
from hala_hpc.tasks.train.options import Prepare
from hala_hpc.tasks.train.prepare.token_file import Tokens
from hala_hpc.text.control import ControlWords

Ids = npt.NDArray[np.int32]
Loss = npt.NDArray[np.bool_]


class Tokenizing:
    """How rows of one schema become tokens. Call it with a row.

    Special tokens come from the chat template alone; texts, and prompts with their answers, get one BOS, where the
    tokenizer has one, and EOS. Words of a row that are special tokens are text (``text.control``), but for those that
    ``control_tokens`` allows.
    """

    def __init__(self, tokenizer: Any, options: Prepare, data: Data, schema: pa.Schema) -> None:
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
        elif isinstance(document, Completion):
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
