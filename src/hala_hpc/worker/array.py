"""A worker as submitit's job: what an array task unpickles and calls."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ArrayWorker:
    """Call it to work on the run; at the time limit it puts its job back in the queue.

    Note
    ----
    submitit interrupts whatever its USR2 finds, and asks Slurm once. Ours only sets a flag, the loop stops between two
    steps, and then Slurm is asked until it answers. What submitit pickled stays as it is for the next time. Local
    processes are started again by submitit's own handler.
    """

    run: str

    def __call__(self) -> str:
        from hala_hpc.config.errors import HalaError
        from hala_hpc.slurm.allocation import StopFlag
        from hala_hpc.worker.job import (
            executor,
            is_too_slow,
            linger,
            note_too_slow,
            release_held,
            requeue,
            work_until,
        )
        from hala_hpc.worker.task import Outcome

        again = signal.getsignal(signal.SIGUSR2)
        stop = StopFlag()
        try:
            outcome = work_until(Path(self.run), stop)
            stop.ignore()
        except HalaError as error:
            sys.stderr.write(f"hala: error: {error}\n")
            sys.exit(2)
        release_held(Path(self.run))
        # None: it stopped by itself, before its time is over.
        if outcome is Outcome.STOPPED and stop.signal in (None, signal.SIGUSR2):
            if executor() == "slurm":
                if is_too_slow(Path(self.run)):
                    note_too_slow(Path(self.run))
                else:
                    outcome = requeue(Path(self.run))
            elif callable(again):
                again(signal.SIGUSR2, None)  # does not return
        linger(stop, outcome)
        if outcome is Outcome.GAVE_UP:
            sys.exit(outcome.code)
        return str(outcome.value)

    def checkpoint(self) -> object:
        """Submitit's question what to run after the requeue: the same, for the run directory knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
