"""Ranks whose storage does not take a checkpoint: all of them learn of it, wait, and try again at the same time."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch.distributed as dist

from hala_hpc.run.files import beside, fsync
from hala_hpc.tasks.train.launch.signs import RankPlace
from hala_hpc.worker.storage import CURES, FIRST_WAIT, LONGEST_WAIT, Storage, StorageAway, fault_of

Result = TypeVar("Result")
UNWRITTEN: Final = ("PytorchStreamWriter", "file write failed", "unexpected pos")
"""What torch says where a write failed, without saying why."""
PROBE_BYTES: Final = 1 << 20
"""Written to find out (ours)."""


class Unstored(Exception):
    """The storage did not take what one of the ranks wrote; raised on all."""

    def __init__(self, fault: OSError) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Together:
    """All ranks of a training, where they write. ``rest`` as ``Context.rest``: False where a stop was asked for."""

    def __init__(self, run: Path, here: RankPlace, rest: Callable[[float], bool]) -> None:
        self._run, self._here, self._rest = run, here, rest
        self._is_stopped = False
        self._storage = Storage(run, run, self._wait, lambda _: None)  # it is said in the log

    def agreed(self, do: Callable[[], Result]) -> list[Result]:
        """What every rank got from ``do``, in their order. Raises Unstored on all where any was not stored."""
        result, fault = None, None
        try:
            result = do()
        except Exception as error:
            if (fault := write_fault(error, self._run)) is None:
                raise
        mine = (result, None if fault is None else (fault.errno, fault.filename))
        parts: list[Any] = [mine]
        if self._here.world > 1:
            parts = [None] * self._here.world
            dist.all_gather_object(parts, mine)
        for _, problem in parts:
            if problem is not None:
                number, name = problem
                raise Unstored(OSError(number, os.strerror(number), name))
        return [part for part, _ in parts]

    def store(self, write: Callable[[], object], undo: Callable[[], object]) -> bool:
        """Do ``write``, which calls ``agreed``, until it is stored; False where a stop came before.

        ``undo``, on the first rank, removes what was written in vain. Raises StorageAway where it takes too long.
        """
        wait = FIRST_WAIT
        while True:
            try:
                write()
            except Unstored as error:
                refused = self._after(error.fault, wait, undo)
                if self._is_stopped:
                    return False
                if refused is not None:
                    raise refused from error.fault
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                self._storage.back()
                return True

    def _after(self, fault: OSError, seconds: float, undo: Callable[[], object]) -> StorageAway | None:
        """Wait as the first rank does; what it says where there is no waiting any more, the same on all."""
        told: list[Any] = [None]
        if self._here.is_first:
            with contextlib.suppress(OSError):
                undo()
            try:
                self._storage.after(fault, seconds)
            except StorageAway as refused:
                told = [(refused.message, refused.hint, self._is_stopped)]
        if self._here.world > 1:
            dist.broadcast_object_list(told, src=0)
        if told[0] is None:
            return None
        message, hint, self._is_stopped = told[0]
        return StorageAway(message, hint)

    def _wait(self, seconds: float) -> bool:
        self._is_stopped = not self._rest(seconds)
        return not self._is_stopped


def write_fault(error: BaseException, run: Path) -> OSError | None:
    """What the storage said where it did not take a write; None for any other fault.

    torch and safetensors raise errors of their own, with the system's words in them, or without.
    """
    if (fault := fault_of(error, run)) is not None:
        return fault
    words = str(error)
    for number in CURES:
        if os.strerror(number) in words:
            return OSError(number, os.strerror(number))
    if isinstance(error, RuntimeError) and any(hint in words for hint in UNWRITTEN):
        return _asked(run)
    return None


def _asked(run: Path) -> OSError:
    """What the storage says to a write."""
    probe = beside(run / "probe")
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
        fsync(probe)
    except OSError as error:
        return OSError(error.errno, os.strerror(error.errno or errno.EIO))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return OSError(errno.EIO, os.strerror(errno.EIO))
