"""TRL's trainer with our data order, our checkpoints and our measurements.

What TRL and transformers do stays theirs: the model, its fused head, mixed precision, DeepSpeed, the optimizer step.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from trl import SFTTrainer

from hala_hpc.slurm.allocation import StopFlag
from hala_hpc.tasks.train import zero
from hala_hpc.tasks.train.checkpoints import MARKER, Checkpoints, Saved, digests_of
from hala_hpc.tasks.train.estimate.architecture import mfu
from hala_hpc.tasks.train.launch.signs import HeartbeatWriter, RankPlace
from hala_hpc.tasks.train.metrics import StepMetrics
from hala_hpc.tasks.train.options import Options, Save, Schedule
from hala_hpc.tasks.train.order.index import Index
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.tasks.train.rank.batches import Collate, Loader
from hala_hpc.tasks.train.rank.together import Together
from hala_hpc.worker.task import say

MARGIN_SECONDS = 30.0
"""Kept between the end of a save and the end of the job."""
WARM_STEPS = 20
"""Steps before a leap of the loss counts: at the start it moves much."""
MEMORY = 0.9
"""Share of the running mean that a step keeps, for telling a leap."""


class Diverged(Exception):
    """The loss is not finite, or has leapt."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason = step, reason


@dataclass(frozen=True)
class RankData:
    """What is trained on and in which order, for one rank."""

    prepared: Prepared
    index: Index
    loader: Loader
    collate: Collate
    here: RankPlace


class Saving(TrainerCallback):
    """Saves by minutes, by steps, on a signal that any rank got, and before the job's time is over."""

    def __init__(self, save: Save, last_step: int, end_time: float | None) -> None:
        self._save, self._last_step, self._end_time = save, last_step, end_time
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        self.signals = StopFlag(is_silent=True)  # the launcher says it
        self._saved_at = self._step_began = time.monotonic()
        self.save_seconds = 0.0
        self.stopped = False

    def saved(self, seconds: float) -> None:
        """Note how long a save took: the next one before the end of the job will take about as long."""
        self.save_seconds = max(self.save_seconds, seconds)
        self._saved_at = time.monotonic()

    def rest(self, seconds: float) -> bool:
        """Sleep; False where a signal came first, or the job's time is over but for what it takes to leave."""
        until = time.monotonic() + seconds
        while not (is_over := self.signals() or time.time() > (self._end_time or math.inf) - MARGIN_SECONDS):
            if (left := until - time.monotonic()) <= 0:
                break
            time.sleep(min(left, 0.2))
        return not is_over

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
        return self.signals() or (self._end_time is not None and time.time() + needed > self._end_time)

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


class HalaTrainer(SFTTrainer):
    """``write`` takes one line of metrics per step; None on all ranks but the first."""

    def __init__(
        self,
        options: Options,
        data: RankData,
        checkpoints: Checkpoints,
        saving: Saving,
        together: Together,
        heartbeat: HeartbeatWriter,
        write: Callable[..., None] | None,
        flops_per_token: float,
        **arguments: Any,
    ) -> None:
        self.options, self.data, self.checkpoints = options, data, checkpoints
        self.saving, self.together, self.heartbeat, self._write = saving, together, heartbeat, write
        self._flops_per_token = flops_per_token
        self._mean_loss: float | None = None
        self._resumed: Saved | None = None
        self._phases: dict[str, float] = {}
        self._save_seconds = 0.0
        self._step_began = time.monotonic()
        super().__init__(**arguments)
        self.add_callback(saving)

    # --- data -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Loader:
        return self.data.loader

    def num_examples(self, dataloader: Any) -> int:
        return len(dataloader)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        began = time.monotonic()
        self.heartbeat.at(self.state.global_step, "data")
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._phases["data"] = time.monotonic() - began
        return samples

    # --- one step -------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As TRL's, less the entropy and accuracy that it measures and gathers in every forward pass."""
        assert not return_outputs
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        items = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = -outputs.log_probs.sum() / torch.as_tensor(items).clamp(min=1)
        # DDP and DeepSpeed average gradients over ranks, and the items are those of all ranks.
        return loss * self.data.here.world if num_items_in_batch is not None else loss

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        self.heartbeat.at(self.state.global_step, "forward and backward")
        loss = super().training_step(*arguments, **named)
        self._phases["forward_backward"] = self._phases.get("forward_backward", 0.0) + time.monotonic() - began
        self.heartbeat.at(self.state.global_step, "optimizer")
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if getattr(self, "lr_scheduler", None) is None:
            share = factor(self.options.schedule, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer if optimizer is not None else self.optimizer, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # --- metrics --------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Every step; on every rank the same loss. Raises Diverged."""
        del start_time
        if "loss" not in logs:
            return
        step, now = self.state.global_step, time.monotonic()
        seconds, self._step_began = now - self._step_began, now
        if self._write is not None:
            self._write(**self._line(step, seconds, logs))
        self._phases.clear()
        self._refuse_leap(step, logs["loss"])
        if self.options.evaluation.rows and (step % self.options.evaluation.steps == 0 or step == self.state.max_steps):
            self._evaluate_held_out(step)
        self._step_began += time.monotonic() - now  # the evaluation is not part of a step

    def _line(self, step: int, seconds: float, logs: dict[str, float]) -> StepMetrics:
        pieces = [piece for sequence in self.data.index.step(step - 1) for piece in sequence]
        tokens = int(self.data.prepared.lengths[pieces].sum())
        useful = int(self.data.prepared.loss_tokens[pieces].sum())
        self._phases["optimizer"] = max(0.0, seconds - sum(self._phases.values()))
        rate = tokens / seconds
        return {
            "step": step,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs["learning_rate"],
            "tokens": tokens,
            "useful_tokens": useful,
            "tokens_per_second": rate,
            "tokens_per_second_per_gpu": rate / self.data.here.world,
            "mfu": mfu(rate, self._flops_per_token, device_name(), self.data.here.world),
            "memory_gb": memory_gb(),
            "seconds": seconds,
            "phases": dict(self._phases),
            "time": time.time(),
            "epoch": self.state.epoch,
        }

    def _refuse_leap(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise Diverged(step, f"the loss is {loss}")
        leap, mean = self.options.watch.loss_leap, self._mean_loss
        if leap is not None and mean is not None and step > WARM_STEPS and loss > leap * mean:
            raise Diverged(step, f"the loss leapt to {loss:.4g}, from {mean:.4g}")
        self._mean_loss = loss if mean is None else MEMORY * mean + (1 - MEMORY) * loss

    def _evaluate_held_out(self, step: int) -> None:
        """Mean loss per token over the rows held out; each rank does its share, all the same number of passes."""
        held, data = self.data.index.held_out, self.data
        self.heartbeat.at(step, "evaluating")
        many = self.options.batch.per_device
        total = torch.zeros(2, dtype=torch.float64)
        self.model_wrapped.eval()
        with torch.no_grad():
            for first in range(0, len(held), many * data.here.world):
                mine = held[first + data.here.rank * many : first + (data.here.rank + 1) * many]
                inputs = self._prepare_inputs(data.collate(mine, many))
                outputs = self.model_wrapped(**inputs, use_cache=False, fused_lm_head=True)
                total += torch.stack([-outputs.log_probs.sum(), outputs.label_mask.sum()]).cpu()
        self.model_wrapped.train()
        if data.here.world > 1:
            total = total.to(self.args.device)
            dist.all_reduce(total)
        if self._write is not None:
            self._write(step=step, eval_loss=float(total[0] / total[1].clamp(min=1)), time=time.time())

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """All ranks: write, wait for each other, then the first one declares it complete.

        A storage that does not take it is waited for, with all ranks. Where a stop comes first, there is no checkpoint.
        """
        del model, trial
        began = time.monotonic()
        step = self.state.global_step
        self.heartbeat.at(step, "saving")
        folder = self.checkpoints.path(step)
        if not self.together.store(lambda: self._write_all(folder), lambda: self.checkpoints.drop_unmarked(step)):
            say(f"no checkpoint after step {step}: a stop was asked for while the storage was away")
            self.saving.stopped = self.control.should_training_stop = True
            return
        self.saving.saved(self._save_seconds)
        self._step_began += time.monotonic() - began
        self.heartbeat.at(step, "saved")

    def _write_all(self, folder: Path) -> None:
        """A whole checkpoint. Raises Unstored on all ranks."""
        here, agreed, began = self.data.here, self.together.agreed, time.monotonic()
        if agreed(lambda: here.is_first and (folder / MARKER).is_file())[0]:
            agreed(self.checkpoints.settle if here.is_first else lambda: None)
            return
        is_joint = self.is_deepspeed_enabled and here.world > 1
        if is_joint:  # its ranks wait for each other in there: one that fails could not tell the others
            self._write_own(folder)
        agreed(lambda: None if is_joint else self._write_own(folder))
        parts = agreed(lambda: digests_of(folder, here.rank, here.world))
        known = {name: digest for part in parts for name, digest in part.items()}
        stage, seconds = self.options.deepspeed.stage, time.monotonic() - began
        step, mark = self.state.global_step, self.checkpoints.mark
        agreed(lambda: here.is_first and bool(mark(step, here.world, stage, seconds, known)))
        self._save_seconds = time.monotonic() - began  # without the waits for a storage

    def _write_own(self, folder: Path) -> None:
        """What this rank writes of it."""
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled and self.is_world_process_zero():
            self._save(str(folder))
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if self.is_world_process_zero():
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """DeepSpeed loads only what as many ranks wrote; for others the checkpoint is read parameter by parameter."""
        saved = self._resumed
        if saved is None or not saved.stage or saved.world == self.data.here.world:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        zero.restore(self.model_wrapped, zero.read(saved.path / f"global_step{saved.step}"))
        self._load_optimizer_and_scheduler(resume_from_checkpoint)  # with DeepSpeed: the scheduler alone
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        return prepared

    def train_from(self, saved: Saved | None) -> None:
        """Train from a checkpoint, or from the start, to the end or until a stop."""
        self._resumed = saved
        self._step_began = time.monotonic()
        self.train(resume_from_checkpoint=str(saved.path) if saved else None)


def factor(schedule: Schedule, steps: int) -> Callable[[int], float]:
    """Learning rate as a share of its peak after so many steps: linear warm-up, then the schedule's curve."""
    warmup = math.ceil(schedule.warmup * steps)

    def share(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        if schedule.kind == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        left = 0.5 * (1 + math.cos(math.pi * done)) if schedule.kind == "cosine" else 1 - done
        return schedule.minimum + (1 - schedule.minimum) * left

    return share


def device_name() -> str:
    """The GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def memory_gb() -> float:
    """Peak memory of this rank so far in GB: of its GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 1e9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
