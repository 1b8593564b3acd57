"""Requests that are out at the engine, and who waits for each; and the answers that this worker has had before.

A text that is out, or was had before, is asked once: system prompts, greetings, empty-handed answers.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hala_hpc.engines.base import Completion, Engine, Request
from hala_hpc.text import thinking
from hala_hpc.worker.rows.shard import OpenShard, RowInHand

MOST_CHARACTERS = 32_000_000
"""Of remembered text (ours: some tens of megabytes)."""


class Memory:
    """The last completions, by the digest of their request; the least recently used are forgotten first.

    Equal requests get equal texts whichever came first, since a request's seed depends on its text alone.
    """

    def __init__(self, most_characters: int = MOST_CHARACTERS) -> None:
        self._most = most_characters
        self._characters = 0
        self._known: OrderedDict[bytes, Completion] = OrderedDict()

    def get(self, digest: bytes) -> Completion | None:
        if (known := self._known.get(digest)) is not None:
            self._known.move_to_end(digest)
        return known

    def put(self, digest: bytes, completion: Completion) -> None:
        if digest in self._known:
            return
        self._known[digest] = completion
        self._characters += len(completion.text)
        while self._characters > self._most:
            _, oldest = self._known.popitem(last=False)
            self._characters -= len(oldest.text)


Waiter = tuple[OpenShard, RowInHand, int]
"""The shard, its row, and which of the row's requests it is."""


@dataclass(frozen=True)
class Out:
    """A request that the engine has, and all that wait for it."""

    id: str
    request: Request
    waiters: list[Waiter]


class Outstanding:
    """Hands requests to the engine and finds, for a completion, whose it is. ``len`` is how many are out."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._ids = itertools.count()
        self._digests: dict[str, bytes] = {}  # by request id
        self._out: dict[bytes, Out] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def clear(self) -> list[Out]:
        """Nothing is out any more: the engine took everything with it. Returns what was out."""
        was = list(self._out.values())
        self._digests, self._out = {}, {}
        return was

    def ask(self, engine: Engine, request: Request, waiter: Waiter) -> Completion | None:
        """Ask for a text. Returns it at once where it was had before."""
        digest = request.digest()
        if (known := self._memory.get(digest)) is not None:
            return known
        if (out := self._out.get(digest)) is not None:
            out.waiters.append(waiter)
            return None
        id = str(next(self._ids))
        self._digests[id] = digest
        self._out[digest] = Out(id, request, [waiter])
        engine.add(id, request)
        return None

    def answered(self, completion: Completion) -> tuple[list[Waiter], Completion]:
        """Everybody who waits for this completion, and it without what the model thought before its answer."""
        digest = self._digests.pop(completion.id)
        out = self._out.pop(digest)
        answer = _answer(completion, out.request)
        self._memory.put(digest, answer)
        return out.waiters, answer

    def shards(self) -> Iterator[OpenShard]:
        """The shards with rows out, some of them more than once."""
        return (shard for out in self._out.values() for shard, _, _ in out.waiters)


def _answer(completion: Completion, request: Request) -> Completion:
    if completion.error is not None:
        return completion
    try:
        text = thinking.answer_of(completion.text, request.last, completion.opened)
    except thinking.EndlessThought as error:
        return replace(completion, error=f"thinking: {error} ({completion.output_tokens} tokens)", thought=True)
    return completion if text == completion.text else replace(completion, text=text, thought=True)
