"""Texts that this worker has had before are asked for once: system prompts, greetings, empty-handed answers."""

from collections import OrderedDict

from hala_hpc.engines.base import Completion

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
