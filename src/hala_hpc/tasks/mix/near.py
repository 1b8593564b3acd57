"""Which texts are the same, and which nearly: digests, and signatures of MinHash with their index (rensa's)."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hala_hpc.tasks.mix.examples import Example
from hala_hpc.tasks.mix.options import Duplicates

SEED: Final = 42
"""Of the hashes of MinHash (ours): one for all mixes, so that signatures can be compared."""
BATCH: Final = 500
"""Texts whose shingles are in memory at once."""
DIGEST_BYTES: Final = 16
Keys = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


def normal(text: str) -> str:
    """A text as duplicates are known by it: NFKC, no difference of case, and a space for any white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def parts_of(example: Example, by: str) -> list[str]:
    """The normalised texts that an example is compared by; all of it where there is nothing before its answer."""
    before, answer = example.said()
    parts = [*map(normal, before)]
    return parts if by == "prompt" and any(parts) else [*parts, normal(answer)]


def digest_of(parts: Sequence[str], beside: bytes = b"") -> bytes:
    """Of what an example is compared by, texts and what is beside them: two with one digest say the same."""
    return hashlib.blake2b("\0".join(parts).encode() + b"\0\0" + beside, digest_size=DIGEST_BYTES).digest()


def signatures(texts: Iterable[tuple[str, bytes]], options: Duplicates) -> Iterator[bytes]:
    """The MinHash of each text over its shingles of characters, as rensa writes it down.

    With each text comes what is beside it. Texts beside other tools or calls have no shingle in common; those beside
    the same are as alike as their words, however long the tools are.
    """
    from rensa import RMinHash

    left = iter(texts)
    while batch := list(islice(left, BATCH)):
        sets = [_apart(shingles(text, options.shingle), beside) for text, beside in batch]
        yield from (hashed.__getstate__() for hashed in RMinHash.from_token_sets(sets, options.permutations, SEED))


def shingles(text: str, length: int) -> list[str]:
    """All pieces of so many characters; of a shorter text itself."""
    return [text[at : at + length] for at in range(max(1, len(text) - length + 1))]


def _apart(pieces: list[str], beside: bytes) -> list[str]:
    if not beside:
        return pieces
    mark = hashlib.blake2b(beside, digest_size=DIGEST_BYTES).hexdigest()
    return [mark + piece for piece in pieces]


def first_of_each(keys: Keys) -> Flags:
    """Which digests are there for the first time; ``keys`` has two uint64 a row."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal ones the first comes first
    ordered = keys[order]
    is_first = np.ones(len(keys), bool)
    is_first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return is_first


class NearDuplicates:
    """Signatures, given in order: one is kept unless one that was kept before is as alike as ``near`` says."""

    def __init__(self, options: Duplicates) -> None:
        from rensa import RMinHashDeduplicator

        self._options, self._number = options, 0
        self._index: Any = RMinHashDeduplicator(options.near, options.permutations, True, options.bands, SEED)

    def kept(self, given: Iterable[bytes]) -> list[bool]:
        """Whether each stays."""
        pairs = [(str(self._number + at), self._read(state)) for at, state in enumerate(given)]
        self._number += len(pairs)
        flags: list[bool] = self._index.add_pairs(pairs)
        return flags

    def _read(self, state: bytes) -> Any:
        from rensa import RMinHash

        hashed = RMinHash(self._options.permutations, SEED)
        hashed.__setstate__(state)
        return hashed
