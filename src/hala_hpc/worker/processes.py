"""One worker as several processes, one a core, each a plain worker with leases of its own.

For tasks that keep one core busy and no device. This process claims nothing: it passes a stop on, and gives back at
once what a process held that died, with an attempt counted, so that nobody waits for its lease to go stale.
"""

import os
import signal
import subprocess
import sys
import threading
import time

from hala_hpc.config.errors import HalaError
from hala_hpc.run import ledger, status
from hala_hpc.run.lease import Heartbeat, Leases
from hala_hpc.worker.task import Context, Outcome

LOOK_SECONDS = 0.1
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
"""Else the libraries of each process would start a thread for every core."""
OUTCOMES = {outcome.code: outcome for outcome in (Outcome.FINISHED, Outcome.GAVE_UP, Outcome.STOPPED)}
"""How a process ended, by its exit code; the worst is the last."""


class Processes:
    """State of one worker. ``work`` runs until all processes ended."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._codes: set[int] = set()
        self._failure = ""
        self._started = self._deaths = 0
        self._missing = len(status.missing(context.run.path))

    def work(self) -> Outcome:
        """Raises HalaError where a process failed as a whole, or too many died in a row."""
        cores = usable_cores(self._context.recipe.site.slurm.cpus_per_worker)
        with Heartbeat(self._context.leases, lambda: None):
            try:
                for _ in range(max(1, min(cores, self._missing))):
                    self._start()
                while self._running:
                    time.sleep(LOOK_SECONDS)
                    if self._context.should_stop():
                        self._stop()
                    for name in [name for name, process in self._running.items() if process.poll() is not None]:
                        self._settle(name, self._running.pop(name).returncode)
            finally:
                self._stop()
                for process in self._running.values():
                    process.wait()
        if self._failure:
            raise HalaError(self._failure)
        return next(outcome for code, outcome in reversed(OUTCOMES.items()) if code in self._codes)

    def _start(self) -> None:
        self._started += 1
        name = f"{self._context.leases.beacon.name}+{self._started}"
        command = [sys.executable, "-u", "-m", "hala_hpc.worker", str(self._context.run.path), name]
        # Only this process has our end of the pipe: when it is closed, or we are killed, they stop.
        self._running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | ONE_THREAD)

    def _stop(self) -> None:
        """Have all processes stop between two steps."""
        for process in self._running.values():
            if process.stdin is not None:
                process.stdin.close()

    def _settle(self, name: str, code: int) -> None:
        context = self._context
        if (context.run.workers / name).exists() or code < 0:  # it did not give its shards back
            self._bury(name, code)
            return
        self._codes.add(code)
        last = list(ledger.read(context.run.ledger / f"{name}.jsonl"))[-1:]
        if code not in OUTCOMES or (last and last[0]["event"] == "failed"):
            reason = str(last[0].get("error", "")) if last else ""
            self._failure = reason.removeprefix("HalaError: ") or f"a process ended with {code}: see the log"

    def _bury(self, name: str, code: int) -> None:
        """Give back what a dead process held. It may have killed it: that shard counts an attempt, no other does."""
        context, ours = self._context, self._context.leases
        is_stopping = context.should_stop()  # it died of the same signal that stops us, which is no fault of the shard
        leases = Leases(ours.run, name, ours.ttl, ours.attempts, of_dead=True)
        held = leases.held()
        for lease in held:
            (leases.release if is_stopping else leases.fail)(lease)
        leases.close()
        ours.given_up |= leases.given_up
        self._codes.add((Outcome.STOPPED if is_stopping else Outcome.FINISHED).code)
        if is_stopping:
            return
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        context.ledger.write("crashed", error=f"a process {how}", shards=[lease.shard for lease in held])
        missing = len(status.missing(context.run.path))
        self._deaths = self._deaths + 1 if missing == self._missing else 1
        self._missing = missing
        if self._deaths > context.recipe.run.attempts:  # more than one poisoned shard can cost
            raise HalaError(f"{self._deaths} processes in a row died; the last {how}", "see the log")
        self._start()


def work(context: Context) -> Outcome:
    """The entry that ``worker.job`` calls for a task with ``one_per_core``."""
    return Processes(context).work()


def stop_with_parent() -> None:
    """In one of the processes: take it for a stop signal when the worker that started this one lets go, or is gone."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, which a thread that waits for it would lock at the end of Python
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def usable_cores(most: int | None) -> int:
    """How many processes this worker may keep busy: in a Slurm job, all its cores. None: all there are."""
    cores = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(cores, int(given) if given.isdigit() else most or cores))
