"""Processes that help a worker, each with one thing at a time, and that are gone when it is gone.

Not concurrent.futures: its pool does not tell which process died over what, and waits for ever for those that do not
heed SIGTERM, as ours must not, for Slurm sends it to every process of a job.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from hala_hpc.worker.job import STOP_SIGNALS

Do = Callable[[Any, Callable[[], bool]], Any]
"""Does one thing, given what, and whether it should stop."""


class Died(Exception):
    """The process is gone, perhaps for want of memory, and with it what it was at."""


class Helper:
    """One process. ``connection`` is ready when an answer is there, or the process is dead."""

    def __init__(self, start: Callable[..., Do], arguments: Sequence[Any], preload: Sequence[str]) -> None:
        """``start(*arguments)`` is called in the process, and gives what does the things that are asked of it.

        It is forked from a server that has imported ``preload`` and has no threads: what those of a worker hold at the
        moment of a fork would be held for ever.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        self.connection, theirs = context.Pipe()
        # Only this process has our end: if it is killed, theirs is at its end, and they stop.
        self._process = context.Process(target=_serve, args=(theirs, start, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: Any) -> None:
        """Raises Died."""
        try:
            self.connection.send(what)
        except OSError as error:
            raise Died(self._told()) from error

    def answer(self) -> Any:
        """What came of the last thing asked. Raises Died, or what was raised in the process."""
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError) as gone:
            raise Died(self._told()) from gone
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Ask it to stop between two steps, and to answer what came of it. Raises nothing."""
        try:
            self.connection.send(None)
        except OSError:
            return

    def close(self) -> None:
        """Have it end, at once if need be."""
        self.connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()

    def _told(self) -> str:
        self._process.join(timeout=10)
        code = self._process.exitcode or 0
        return f"a process died of {signal.Signals(-code).name}" if code < 0 else f"a process ended with {code}"


def usable_cores(most: int | None) -> int:
    """How many processes this worker may keep busy: in a Slurm job, all its cores. None: all there are."""
    cores = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(cores, int(given) if given.isdigit() else most or cores))


def _serve(connection: Connection, start: Callable[..., Do], arguments: Sequence[Any]) -> None:
    for number in STOP_SIGNALS:  # they come to all processes: the worker decides
        signal.signal(number, signal.SIG_IGN)
    do: Do | None = None
    raised: Exception | None
    with contextlib.suppress(EOFError, OSError):  # the worker is gone
        while (what := connection.recv()) is not None:
            try:
                do = do or start(*arguments)
                result, raised = do(what, connection.poll), None
            except Exception as error:  # noqa: BLE001 (whatever it is, the worker raises it)
                error.add_note(traceback.format_exc())  # of the process, which pickling would lose
                result, raised = None, error
            connection.send((result, raised))
