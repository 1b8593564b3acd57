"""Shards on their way through a worker: claimed and read; rows to be sent, in flight, and back.

A text that repeats is requested once, as its answer is in flight or cached: system prompts, greetings, empty answers.
"""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.data import shards
from hala_hpc.data.schema import Row
from hala_hpc.data.shards import ShardInput
from hala_hpc.engines.base import Completion, Engine, Request
from hala_hpc.run import appending
from hala_hpc.run.appending import ROW, PartialFile
from hala_hpc.run.layout import RunDirectory
from hala_hpc.text import prompts
from hala_hpc.worker.claims import Claim, Claims
from hala_hpc.worker.rows.task import RowSteps
from hala_hpc.worker.storage import StorageAway
from hala_hpc.worker.task import Context

CAREFUL_FROM = 3
"""From this attempt on a shard goes row by row, for something in it may have killed two workers."""
BEGUN: Final = "begun"
"""Key of a record that a careful worker leaves before it sends a row: if the worker dies, that row did it. With the
value false it takes that back."""
MOST_CHARACTERS = 32_000_000
"""Characters that the cache holds at most (ours: some tens of megabytes)."""
MOST_UNREADABLE = 3
"""Different shards in a row that cannot even be read: then something is wrong with this node, not with them."""
MOST_REFUSALS = 3
"""So often an engine fails at a row, and answers others in between, before the row is set aside."""


@dataclass
class RowInHand:
    """A row that is worked on. Its ``completions`` are awaited, in the order of the requests that it yielded last."""

    number: int
    row: Row
    steps: RowSteps
    completions: list[Completion | None] = field(default_factory=list)
    left: int = 0

    def expect(self, requests: int) -> None:
        """So many completions are awaited from now on."""
        self.completions, self.left = [None] * requests, requests


class OpenShard:
    """A claimed shard, with what earlier workers had finished of it."""

    def __init__(self, run: RunDirectory, claim: Claim, given: ShardInput, worker: str) -> None:
        self.claim = claim
        self.given = given
        self.careful = claim.lease.attempt >= CAREFUL_FROM
        self.results: dict[int, Row] = {}
        self.errors: dict[int, str] = {}
        self._begun: set[int] = set()
        self._refusals: Counter[int] = Counter()
        self._file = PartialFile(run, claim.shard, worker)
        self._lock = threading.Lock()
        self._take_up(run)
        done = self.results.keys() | self.errors.keys()
        self.unsent = deque((number, row) for number, row in given.to_do() if number not in done)
        self.taken_up = self.done

    @property
    def id(self) -> int:
        return self.claim.shard

    @property
    def done(self) -> int:
        return len(self.results) + len(self.errors) + self.given.shard.kept

    @property
    def complete(self) -> bool:
        return self.done == len(self.given.rows)

    def begin(self, number: int) -> None:
        """Note that this row is tried now; to be flushed before it is."""
        self._begun.add(number)
        with self._lock:
            self._file.add({ROW: number, BEGUN: True})

    def finish(self, number: int, new: Row) -> None:
        self.results[number] = new
        with self._lock:
            self._file.add({ROW: number, "new": new})

    def quarantine(self, number: int, error: str) -> None:
        self.errors[number] = error
        with self._lock:
            self._file.add({ROW: number, "error": error})

    def withdraw(self) -> set[int]:
        """Take back what ``begin`` said of unfinished rows, and return them: none of them stopped the worker.

        To be flushed.
        """
        withdrawn = self._begun - self.results.keys() - self.errors.keys()
        with self._lock:
            for number in withdrawn:
                self._file.add({ROW: number, BEGUN: False})
            self._begun.clear()
        return withdrawn

    def send_again(self, hands: Iterable[RowInHand]) -> None:
        """Rows that were out with an engine that is out of reach are to be sent before the others."""
        back = {hand.number: hand.row for hand in hands}
        self.unsent.extendleft(sorted(back.items(), reverse=True))

    def refused(self, hand: RowInHand) -> bool:
        """Send a row last that an engine failed at, while it answers others. True when that was once too often."""
        self._refusals[hand.number] += 1
        if self._refusals[hand.number] >= MOST_REFUSALS:
            return True
        self.unsent.append((hand.number, hand.row))
        return False

    def flush(self) -> None:
        """Make what is finished durable."""
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _take_up(self, run: RunDirectory) -> None:
        for number, records in appending.read(run, self.id).items():
            if (kept := next((record for record in records if BEGUN not in record), None)) is None:
                if sum(1 if record[BEGUN] else -1 for record in records) > 0:
                    died = "worker died: while it did this row alone, after others had died at its shard"
                    self.quarantine(number, died)
            elif "error" in kept:
                self.errors[number] = kept["error"]
            else:
                self.results[number] = kept["new"]


class Reading:
    """Claims shards and reads them; used by the worker's disk thread, for it waits for the file server."""

    def __init__(self, context: Context, claims: Claims) -> None:
        self._context, self._claims = context, claims
        self._unreadable: set[int] = set()

    def next(self) -> OpenShard | None:
        """The next shard; None when nothing can be claimed. Raises HalaError after too many that cannot be read."""
        while (claim := self._claims.find()) is not None:
            try:
                shard = self._claims.storage(partial(self._opened, claim))
            except shards.SourceAway as error:
                self._claims.missed(claim, error)
                continue
            except StorageAway:
                self._claims.give_back(claim)
                raise
            except (HalaError, OSError) as error:
                self._claims.give_back(claim, "failed", error=str(error))
                self._unreadable.add(claim.shard)
                if len(self._unreadable) >= MOST_UNREADABLE:
                    raise HalaError(f"{MOST_UNREADABLE} shards in a row cannot be read: {error}") from error
                continue
            self._unreadable.clear()
            self._claims.reached(claim)
            self._claims.note("claimed", claim, taken_up=shard.taken_up)
            return shard
        return None

    def _opened(self, claim: Claim) -> OpenShard:
        run, plan = self._context.run, self._context.plan
        given = shards.read_input(run.path, plan[claim.shard], plan.facts)
        return OpenShard(run, claim, given, self._context.leases.beacon.name)


class AnswerCache:
    """The last completions, by the digest of their request; the least recently used go first.

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
class Sent:
    """A request that the engine has, by its digest in hexadecimal, and all that wait for it."""

    id: str
    request: Request
    waiters: list[Waiter]


class Unasked:
    """In the place of an engine, where no row asks one."""

    capacity = 1

    def add(self, id: str, request: Request) -> None:
        raise RuntimeError(f"{id}: a task that asks for nothing asked for {request.last[:200]!r}")

    def poll(self, seconds: float) -> list[Completion]:
        del seconds
        return []

    def close(self) -> None:
        pass


class InFlight:
    """Hands requests to the engine and finds whose a completion is. ``len`` is how many are in flight."""

    def __init__(self) -> None:
        self._cache = AnswerCache()
        self._sent: dict[str, Sent] = {}  # by id
        self._busy, self._since = 0.0, 0.0  # seconds of earlier stretches with requests, and since when there are some

    def __len__(self) -> int:
        return len(self._sent)

    def clear(self) -> list[Sent]:
        """Nothing is in flight any more, for the engine took everything with it. Returns what was."""
        self._busy, sent = self.busy_seconds, list(self._sent.values())
        self._sent = {}
        return sent

    @property
    def busy_seconds(self) -> float:
        """How long, in all, the engine had requests."""
        return self._busy + (time.monotonic() - self._since if self._sent else 0.0)

    def ask(self, engine: Engine, request: Request, waiter: Waiter) -> Completion | None:
        """Send a request. Returns its answer at once where it is cached."""
        digest = request.digest()
        if (known := self._cache.get(digest)) is not None:
            return known
        if (sent := self._sent.get(id := digest.hex())) is not None:
            sent.waiters.append(waiter)
        else:
            self._since = self._since if self._sent else time.monotonic()
            self._sent[id] = Sent(id, request, [waiter])
            engine.add(id, request)
        return None

    def answered(self, completion: Completion) -> tuple[list[Waiter], Completion]:
        """Everybody who waits for this completion, and it without what the model thought before its answer."""
        busy, sent = self.busy_seconds if len(self._sent) == 1 else None, self._sent.pop(completion.id)
        self._busy = self._busy if busy is None else busy
        answer = _answer(completion, sent.request)
        self._cache.put(bytes.fromhex(sent.id), answer)
        return sent.waiters, answer

    def shards(self) -> Iterator[OpenShard]:
        """The shards with rows in flight, some of them more than once."""
        return (shard for sent in self._sent.values() for shard, _, _ in sent.waiters)


def _answer(completion: Completion, request: Request) -> Completion:
    if completion.error is not None:
        return completion
    try:
        text = prompts.answer_of(completion.text, request.last, completion.opened)
    except prompts.EndlessThought as error:
        return replace(completion, error=f"thinking: {error} ({completion.output_tokens} tokens)", thought=True)
    return completion if text == completion.text else replace(completion, text=text, thought=True)
