"""The loop for row tasks: shards come in, requests go out, rows come back, shards are published.

The main thread feeds and empties the engine; a second thread does everything that waits for the disk (claiming and
reading the next shard, making finished rows durable, publishing), so the engine does not wait for the file server.
"""

import contextlib
import json
import random
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema, shards
from hala_hpc.data.schema import Row
from hala_hpc.engines.base import Completion, Engine, EngineDied, EngineUnreachable, Request
from hala_hpc.run import appending
from hala_hpc.worker.claims import Claims
from hala_hpc.worker.revival import Gone, Revival, StallWatch
from hala_hpc.worker.rows.shard import InFlight, OpenShard, Reading, RowInHand, Sent, Unasked
from hala_hpc.worker.rows.task import RowError, RowTask
from hala_hpc.worker.task import Context, Counters, Outcome, say

POLL_SECONDS = 0.1
PROGRESS_SECONDS = 5.0
"""How often the ledger notes how far the worker is."""
ASK_AGAIN_SECONDS, SELDOM_SECONDS = 5.0, 30.0
"""After finding nothing to claim, and with rows still out, look again this much later; each time twice as late."""

FEED_SECONDS = 1.0
"""Rows that ask for nothing are done while they are fed: so often, what else is due has its turn."""


class RowLoop:
    """State of one worker. ``work`` runs until nothing is left or a signal came."""

    def __init__(self, context: Context, task: RowTask) -> None:
        self._context = context
        self._worker = context.leases.beacon.name
        self._task = task
        self._work = task.work_on(schema.load(context.plan.facts.schema))
        self._claims = Claims(context)
        self._reading = Reading(context, self._claims)
        self._counters = Counters()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._engine: Engine | None = None if task.asks else Unasked()
        self._revival = Revival(context)
        self._stall = StallWatch(context.recipe.run.stall_seconds)
        self._doing = ""  # while the engine is gone
        self._in_flight = InFlight()
        self._feeding: OpenShard | None = None
        self._open: list[OpenShard] = []
        self._coming: Future[OpenShard | None] | None = None
        self._writing: list[Future[None]] = []
        self._ask_again, self._patience = 0.0, ASK_AGAIN_SECONDS
        self._flushed = self._noted = time.monotonic()

    def work(self) -> Outcome:
        """Raises whatever is a bug or a broken disk, after giving everything back."""
        with self._claims:
            try:
                while not self._context.should_stop():
                    if not self._turn():
                        return Outcome.FINISHED
                return Outcome.STOPPED
            except (OSError, HalaError):
                raise
            except Exception:
                self._abandon()  # a bug of ours, which one of the rows at hand may have brought out
                raise
            finally:
                self._end()

    def _turn(self) -> bool:
        """One round of the loop. False when there is nothing left to do."""
        try:
            self._feed()
            if not (self._open or self._coming):
                if not self._writing:
                    return self._wait_for_the_silent()
                futures.wait(self._writing, POLL_SECONDS)  # else our own last leases would look like a silent worker's
            elif self._engine is not None:
                engine = self._engine
                self._take(engine, engine.poll(POLL_SECONDS if self._in_flight or not self._coming else 0.0))
            if not self._in_flight and self._coming is not None and not self._coming.done():
                time.sleep(0.005)
        except (EngineDied, EngineUnreachable) as error:
            self._recover(error)
        self._tend()
        return True

    # --- shards come in -------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Send rows until the engine is full, going on to the next shard where one ends."""
        until = time.monotonic() + FEED_SECONDS
        while True:
            if self._feeding is not None and (self._feeding.claim.lost or not self._feeding.unsent):
                self._feeding = None
            self._look_ahead()
            shard = self._feeding or self._unfed() or self._next_shard()
            if shard is None:
                return
            self._feeding = shard
            if not shard.unsent:
                continue  # a whole engine would be started for nothing
            if self._engine is None:
                # Loading takes minutes, in which a worker that is ready may do the shard.
                self._give_back(shard, "deferred")
                self._engine = self._revival.start()
                continue
            engine = self._engine
            while shard.unsent and len(self._in_flight) < (1 if shard.careful else engine.capacity):
                if time.monotonic() > until:
                    return
                if (out := next(self._in_flight.shards(), None)) is not None and out.careful:
                    return  # a careful row is alone, whatever comes after it
                self._send(engine, shard)
            if shard.unsent:
                return

    def _unfed(self) -> OpenShard | None:
        """One whose rows came back unanswered."""
        return next((shard for shard in self._open if shard.unsent and not shard.claim.lost), None)

    def _look_ahead(self) -> None:
        """Have the next shard claimed and read before the rows at hand run out."""
        left = len(self._feeding.unsent) if self._feeding else 0
        is_time = self._engine is None or left <= self._engine.capacity
        if self._coming is None and is_time and time.monotonic() >= self._ask_again:
            self._coming = self._disk.submit(self._reading.next)

    def _next_shard(self) -> OpenShard | None:
        """The shard that was claimed ahead, if it is there by now."""
        if self._coming is None or not self._coming.done():
            return None
        if self._open and self._coming.exception() is not None:
            return None  # what is open is finished first, then the error is raised
        shard, self._coming = self._coming.result(), None
        if shard is None:
            self._ask_again = time.monotonic() + self._patience * random.uniform(0.5, 1.0)
            self._patience = min(2 * self._patience, SELDOM_SECONDS)
            return None
        self._patience = ASK_AGAIN_SECONDS
        self._open.append(shard)
        if shard.complete:  # all its rows were done when its worker died
            self._publish(shard)
        return shard

    def _wait_for_the_silent(self) -> bool:
        """Nothing to claim: go, unless a worker is silent and its shard may soon be ours."""
        is_last_look = not self._claims.wait()  # a shard may have been given back since
        self._coming = self._disk.submit(self._reading.next)
        if is_last_look and self._coming.result() is None:
            self._coming = None
        return self._coming is not None

    # --- requests go out, rows come back --------------------------------------------------------------------------

    def _send(self, engine: Engine, shard: OpenShard) -> None:
        number, row = shard.unsent.popleft()
        hand = RowInHand(number, row, self._work.do(row))
        if shard.careful:
            shard.begin(number)
            self._claims.storage(shard.flush)
        if not self._in_flight:
            self._stall.begin()  # the engine may hang even before its first completion
        self._go_on(engine, shard, hand, None)

    def _go_on(self, engine: Engine, shard: OpenShard, hand: RowInHand, completions: list[Completion] | None) -> None:
        """Give a row its completions (None: it begins), and send what it asks for next, or finish it."""
        if shard.claim.lost:
            return
        requests: list[Request] = []
        try:
            while not requests:  # a task may ask for nothing, and go on at once
                requests = next(hand.steps) if completions is None else hand.steps.send(completions)
                completions = []
        except StopIteration as end:
            self._finish(shard, hand, end.value)
            return
        except RowError as error:
            self._set_aside(shard, hand, str(error))
            return
        hand.expect(len(requests))
        self._counters["again"] += sum(request.attempt > 0 for request in requests)
        for index, request in enumerate(requests):
            out = len(self._in_flight)
            if (known := self._in_flight.ask(engine, request, (shard, hand, index))) is not None:
                self._settle(engine, shard, hand, index, known)
            self._counters["requests"] += 1
            self._counters["remembered"] += len(self._in_flight) == out

    def _take(self, engine: Engine, completions: list[Completion]) -> None:
        if completions:
            self._revival.answered()
            self._doing = ""
        for completion in completions:
            self._counters["prompt_tokens"] += completion.prompt_tokens
            self._counters["output_tokens"] += completion.output_tokens
            waiters, answer = self._in_flight.answered(completion)
            self._counters["thoughts"] += answer.thought
            self._counters["escaped"] += answer.escaped
            for waiter in waiters:
                self._settle(engine, *waiter, answer)
        if not self._in_flight:
            self._stall.end()
        elif completions:
            self._stall.put_off()

    def _settle(self, engine: Engine, shard: OpenShard, hand: RowInHand, index: int, completion: Completion) -> None:
        hand.completions[index] = completion
        hand.left -= 1
        if hand.left == 0:
            self._go_on(engine, shard, hand, [known for known in hand.completions if known is not None])

    def _finish(self, shard: OpenShard, hand: RowInHand, new: Row) -> None:
        shard.finish(hand.number, new)
        self._counters.update(self._task.counts(new))
        self._settled(shard)

    def _set_aside(self, shard: OpenShard, hand: RowInHand, error: str) -> None:
        shard.quarantine(hand.number, error)
        self._counters["quarantined"] += 1
        self._settled(shard)

    def _settled(self, shard: OpenShard) -> None:
        """One more row of a shard is done or set aside."""
        self._counters["rows"] += 1
        if shard.complete and not shard.claim.lost:
            self._publish(shard)

    # --- shards go out --------------------------------------------------------------------------------------------

    def _publish(self, shard: OpenShard) -> None:
        self._open.remove(shard)
        self._writing.append(self._disk.submit(self._write, shard))

    def _write(self, shard: OpenShard) -> None:
        """In the disk thread: write and publish, or give the shard back for another to try."""
        context, began = self._context, time.monotonic()
        try:
            self._claims.storage(shard.flush)
            shard.close()
            temporary = self._claims.storage(lambda: appending.temporary_output(context.run, shard.id, self._worker))
            made_by = json.dumps(context.plan.facts.made_by | {"worker": self._worker, "shard": shard.id}).encode()

            def write(place: Path) -> None:
                shards.write_output(place, shard.given, self._work.fields, shard.results, shard.errors, made_by)

            errors = len(shard.errors) + (shard.given.kept.quarantined if shard.given.kept else 0)
            done = len(shard.given.rows) - errors
            if self._claims.publish(shard.claim, temporary, began, write, done=done, errors=errors):
                self._revival.published()
        except BaseException:
            self._claims.give_back(shard.claim, done=shard.done)
            raise

    def _tend(self) -> None:
        """What is due now and then: durable rows, news for the ledger, shards that were taken from us."""
        now = time.monotonic()
        for future in [future for future in self._writing if future.done()]:
            self._writing.remove(future)
            future.result()
        for shard in [shard for shard in self._open if shard.claim.lost]:
            self._open.remove(shard)
            shard.close()
            self._claims.give_back(shard.claim, "lost", done=shard.done)
        if now - self._flushed >= self._context.recipe.run.flush_seconds:
            self._flushed = now
            self._writing += [self._disk.submit(self._claims.storage, shard.flush) for shard in self._open]
        if now - self._noted >= PROGRESS_SECONDS:
            self._progress()

    def _progress(self, working: dict[str, int] | None = None) -> None:
        self._noted = time.monotonic()
        at = self._working_on() if working is None else working
        busy = {"busy": round(self._in_flight.busy_seconds, 3)} if self._task.asks else {}
        sums = {**self._counters, **self._claims.published}
        self._context.ledger.write("progress", **sums, **busy, working_on=at, doing=self._doing)

    def _working_on(self) -> dict[str, int]:
        return {str(shard.id): shard.done for shard in self._open}

    # --- the end ---------------------------------------------------------------------------------------------------

    def _recover(self, gone: Gone) -> None:
        """The engine is gone: keep what is finished, and have another in its place.

        Only once that one answered something else can a row be to blame. Until then the shards with rows out are ours.
        Raises HalaError where no other is to be had: then nobody's attempts count.
        """
        if self._context.should_stop():  # a signal ended the engine as well as us: no fault of a row
            return
        self._stall.end()
        died = isinstance(gone, EngineDied)
        out = self._in_flight.clear()
        suspects = {shard.id: shard for sent in out for shard, _, _ in sent.waiters}
        self._note(gone, sorted(suspects))
        for shard in [shard for shard in self._open if died and shard.id not in suspects]:
            self._give_back(shard)
        alone = {shard.id: shard.withdraw() for shard in self._open}
        for shard in self._open:
            self._claims.storage(shard.flush)
        self._close_engine()
        self._feeding = None
        sample = out[0].request if out else None
        self._engine = self._revival.another(gone, sample, self._tend)
        if self._engine is None:
            return
        if not died:
            self._send_again(out, gone)
            return
        for shard in [shard for shard in suspects.values() if shard in self._open]:
            for number in alone[shard.id]:
                shard.begin(number)
            self._give_back(shard, "abandoned")

    def _note(self, gone: Gone, suspects: list[int]) -> None:
        died = isinstance(gone, EngineDied)
        said = f"the engine {'died' if died else 'is out of reach'}: {gone}"
        self._context.ledger.write("crashed" if died else "unreachable", error=said[:2_000], shards=suspects)
        say(said)
        self._doing = said[:200]
        self._progress()

    def _send_again(self, out: list[Sent], gone: Gone) -> None:
        """Rows that were out go out again; one that the engine failed at goes last, and after some times nowhere."""
        blamed = gone.request if isinstance(gone, EngineUnreachable) else None
        hands = {
            (shard.id, hand.number): (shard, hand, sent.id == blamed) for sent in out for shard, hand, _ in sent.waiters
        }
        for shard in list(self._open):
            mine = [(hand, is_blamed) for own, hand, is_blamed in hands.values() if own is shard]
            shard.send_again(hand for hand, is_blamed in mine if not is_blamed)
            for hand in [hand for hand, is_blamed in mine if is_blamed]:
                if shard.refused(hand):
                    self._set_aside(
                        shard, hand, f"unanswered: the engine failed each time, and answered others: {gone}"
                    )

    def _abandon(self) -> None:
        """Give all shards back; an attempt counts against those with rows out, for one of them may have done it."""
        suspects = {shard.id for shard in self._in_flight.shards()}
        for shard in [shard for shard in self._open if shard.id in suspects]:
            self._give_back(shard, "abandoned")

    def _give_back(self, shard: OpenShard, event: str = "released") -> None:
        """Keep what is finished of a shard, and let another have it; ``abandoned`` counts an attempt against it."""
        self._open.remove(shard)
        if self._feeding is shard:
            self._feeding = None
        try:
            if event != "abandoned":
                shard.withdraw()
            self._claims.storage(shard.flush)
            shard.close()
        finally:
            self._claims.give_back(shard.claim, event, done=shard.done)

    def _end(self) -> None:
        """Keep what is finished, give back what is not."""
        self._stall.end()
        if self._coming is not None and self._coming.exception() is None:
            coming = self._coming.result()
            self._open += [coming] if coming is not None else []
        self._disk.shutdown(wait=True)
        working = self._working_on()  # what is kept of them counts as done, also while nobody works on them
        try:
            for future in self._writing:
                future.result()
        finally:
            with contextlib.ExitStack() as stack:
                stack.callback(self._close_engine)
                stack.callback(self._progress, working)
                for shard in list(self._open):
                    stack.callback(self._give_back, shard)

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def work(context: Context) -> Outcome:
    """The entry that ``worker.job`` calls for every task whose ``loop`` is ``rows``."""
    return RowLoop(context, cast(RowTask, context.task)).work()
