"""How far a run is, looked at from within the tests.

A program that is started three times a second to tell takes more of a core than the worker that is waited for.
"""

from collections.abc import Callable

from hala_hpc.pipeline import lookup
from hala_hpc.run.status import Status, WorkerStatus
from tests.conftest import Hala


def state(hala: Hala, run: str) -> Status:
    return lookup.state_of(hala.folder / "runs" / run)


def finished(hala: Hala, run: str) -> Callable[[], bool]:
    return lambda: state(hala, run).finished


def rows_done(hala: Hala, run: str, at_least: int) -> Callable[[], bool]:
    return lambda: state(hala, run).rows_done >= at_least


def alive(hala: Hala, run: str) -> list[WorkerStatus]:
    return [worker for worker in state(hala, run).workers if worker.alive]
