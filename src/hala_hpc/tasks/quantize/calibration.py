"""Texts to run a model on while it is quantized: the first rows of a dataset, as the model would be given them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Model
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.chat import templates
from hala_hpc.data.chat.documents import CONTROL_WORDS, Chat, Document, Dropped, Kind, holds_control_words, reader_of
from hala_hpc.data.cut import Watch
from hala_hpc.data.files import sources
from hala_hpc.text.control import ControlWords


def samples(
    model: Model, data: Data, kind: Kind, count: int, length: int, copies: Path, watch: Watch, bad: BadRows
) -> list[list[int]]:
    """Token ids of the first ``count`` rows that hold anything, each cut to ``length``.

    Conversations go through the model's chat template; other texts begin with BOS, where the tokenizer has one. Words
    of the data that are control tokens are text (``text.control``), and counted in ``bad.notes``. ``copies`` is a
    folder for files that cannot be read as they are; ``bad`` is told of bad rows.

    Raises HalaError for data that cannot be read, rows of another form, and where no row holds anything.
    """
    tokenizer = templates.load_tokenizer(model)
    words = ControlWords(tokenizer.backend_tokenizer)
    found: list[list[int]] = []
    for document in _documents(data, kind, copies, watch, bad):
        if holds_control_words(document, words):
            bad.notes[CONTROL_WORDS] += 1
        found.append(_tokens(tokenizer, words, document)[:length])
        if len(found) == count:
            break
    if not found:
        raise HalaError("no row holds a text")
    return found


def _documents(data: Data, kind: Kind, copies: Path, watch: Watch, bad: BadRows) -> Iterator[Document]:
    for source, chunk in sources.read(data, copies, watch.say, bad):
        reader = reader_of(kind, data, chunk.schema())
        for number, row in zip(chunk.numbers, chunk.rows, strict=True):
            try:
                yield reader.read(row)
            except Dropped:
                continue
            except HalaError as error:
                bad.add(sources.where(source, number), error)


def _tokens(tokenizer: Any, words: ControlWords, document: Document) -> list[int]:
    if isinstance(document, Chat):
        text, before = templates.render(tokenizer, document.hiding(words)).text, []
    else:
        text = words.hide("".join(document.texts))
        before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*before, *words.encode(text).ids]
