"""When to save and when to stop, agreed by all ranks at the end of each step."""

import signal
import time
import types
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from hala_hpc.tasks.train.options import Save

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
MARGIN_SECONDS = 30.0
"""Kept between the end of a save and the end of the job."""


class Keeper(TrainerCallback):
    """Saves by minutes, by steps, on a signal that any rank got, and before the job's time is over."""

    def __init__(self, save: Save, last_step: int, end_time: float | None) -> None:
        self._save, self._last_step, self._end_time = save, last_step, end_time
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        self._asked = False
        self._saved_at = self._step_began = time.monotonic()
        self.save_seconds = 0.0
        self.stopped = False
        for number in SIGNALS:
            signal.signal(number, self._received)

    def saved(self, seconds: float) -> None:
        """Tell how long a save took: the next one before the end of the job will take about as long."""
        self.save_seconds = max(self.save_seconds, seconds)
        self._saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        now = time.monotonic()
        step_seconds, self._step_began = now - self._step_began, now
        is_last = state.global_step >= self._last_step
        stop, save = self._agree(self._must_stop(step_seconds), self._is_due(state.global_step))
        control.should_save = save or stop or is_last
        if stop and not is_last:
            self.stopped = control.should_training_stop = True

    def _must_stop(self, step_seconds: float) -> bool:
        """A signal came, or there is no time for another step and a save after it."""
        needed = 2 * step_seconds + 1.5 * self.save_seconds + MARGIN_SECONDS
        return self._asked or (self._end_time is not None and time.time() + needed > self._end_time)

    def _is_due(self, step: int) -> bool:
        by_steps = self._save.steps is not None and step % self._save.steps == 0
        return by_steps or time.monotonic() - self._saved_at > 60 * self._save.minutes

    def _agree(self, *flags: bool) -> list[bool]:
        """What any rank wants, all do: else one would save and the others would wait for it for ever."""
        if self._group is None:
            return list(flags)
        wanted = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in wanted.tolist()]

    def _received(self, number: int, _: types.FrameType | None) -> None:
        del number
        self._asked = True
