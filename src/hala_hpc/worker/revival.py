"""An engine to begin with, and another in place of one that is gone.

Whether a row did it is only known once the new engine has answered something else: one that cannot start, or answers
nobody, is no row's fault.
"""

import faulthandler
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from hala_hpc.config.errors import HalaError
from hala_hpc.engines.base import Engine, EngineDied, EngineUnreachable, Message, Request
from hala_hpc.worker.task import REST_SECONDS, Context, say

MOST_DEATHS = 5
"""Engines that die without a shard published in between: one more than a single poisoned row can cost."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before an engine that is out of reach is asked again; each time twice as long."""
TRIAL = "trial"
TRIAL_TOKENS = 16
"""Enough to see that an engine writes; some endpoints take no less."""

Gone = EngineDied | EngineUnreachable


class StallWatch:
    """Ends this process, with the traceback of each thread, when an engine that has requests is silent for too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = 0.0

    def begin(self) -> None:
        """From now on an answer must come."""
        self._begun = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds, exit=True)

    def put_off(self) -> None:
        """One came. Each beginning costs milliseconds, so a tenth of the time is not worth one."""
        if time.monotonic() - self._begun > self._seconds / 10:
            self.begin()

    def end(self) -> None:
        """No more is awaited."""
        faulthandler.cancel_dump_traceback_later()


class Revival:
    """How often engines died, and since when one is out of reach."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._deaths = 0
        self._away_since: float | None = None
        self._wait = FIRST_WAIT

    def start(self) -> Engine:
        """The recipe's engine. Raises HalaError where it does not start; the log then says why."""
        began = time.monotonic()
        try:
            engine = self._context.start_engine()
        except HalaError:
            raise
        except Exception as error:
            say(f"the engine does not start:\n{''.join(traceback.format_exception(error))}")
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            raise HalaError(
                f"the engine does not start: {reason}", "the lines above say more; no row counts it"
            ) from error
        self._context.ledger.write("loaded", seconds=round(time.monotonic() - began, 3))
        return engine

    def answered(self) -> None:
        """An engine did some of the work: it is not away any more."""
        self._away_since, self._wait = None, FIRST_WAIT

    def published(self) -> None:
        """A shard was published: deaths before it do not count any more."""
        self._deaths = 0

    def another(self, gone: Gone, sample: Request | None, meanwhile: Callable[[], None]) -> Engine | None:
        """An engine that has answered a short request in the form of ``sample``. None: a signal came first.

        ``meanwhile`` is called every moment. Raises HalaError after too many deaths, or when it was away for too long.
        """
        while True:
            self._count(gone)
            if isinstance(gone, EngineUnreachable) and not self._sleep(meanwhile):
                return None
            engine, has_answered = self.start(), False
            try:
                has_answered = sample is None or self._tried(engine, sample, meanwhile)
                return engine if has_answered else None
            except (EngineDied, EngineUnreachable) as error:
                gone = error
            finally:
                if not has_answered:
                    engine.close()

    def _count(self, gone: Gone) -> None:
        if isinstance(gone, EngineDied):
            self._deaths += 1
            if self._deaths >= MOST_DEATHS:
                raise HalaError(
                    f"{MOST_DEATHS} engines in a row died, the last: {gone}", "see the log; the rows are kept"
                ) from gone
            return
        now = time.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        if now - self._away_since + self._wait > gone.patience:
            raise HalaError(
                f"the engine is out of reach, for {now - self._away_since:.0f} seconds: {gone}",
                "`hala resume` once it is back (engine.patience_seconds waits longer); no row counts it",
            ) from gone

    def _sleep(self, meanwhile: Callable[[], None]) -> bool:
        """Whether the time passed without a signal. It is shortened at random, lest all workers come back at once."""
        seconds, self._wait = self._wait * random.uniform(0.5, 1.0), min(2 * self._wait, LONGEST_WAIT)
        return self._context.rest(seconds, meanwhile)

    def _tried(self, engine: Engine, sample: Request, meanwhile: Callable[[], None]) -> bool:
        """Whether the engine answered before a signal came. A refusal is an answer, too."""
        prompt = "1" if isinstance(sample.prompt, str) else (Message("user", "1"),)
        engine.add(TRIAL, replace(sample, prompt=prompt, max_tokens=TRIAL_TOKENS))
        deadline = time.monotonic() + self._context.recipe.run.stall_seconds
        while not self._context.should_stop():
            if engine.poll(REST_SECONDS):
                return True
            if time.monotonic() > deadline:
                raise EngineDied("it answers nothing")
            meanwhile()
        return False
