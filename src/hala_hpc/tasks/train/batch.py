"""How the global batch is spread over GPUs: sequences = ranks x per_device x accumulation, whatever the hardware."""

from dataclasses import dataclass

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.options import Options


@dataclass(frozen=True)
class Layout:
    """``per_device`` sequences go through one GPU at once, ``accumulation`` times a step, on ``world`` GPUs."""

    world: int
    per_device: int
    accumulation: int

    @property
    def sequences(self) -> int:
        """Of one optimizer step, over all GPUs."""
        return self.world * self.per_device * self.accumulation


def global_batch(options: Options) -> int:
    """Sequences that one optimizer step sees. Raises HalaError unless exactly one of the two measures is given."""
    batch = options.batch
    if (batch.sequences is None) == (batch.tokens is None):
        raise HalaError("task.batch: give either sequences or tokens", "for example task.batch.sequences=256")
    if batch.sequences is not None:
        if batch.sequences < 1:
            raise HalaError(f"task.batch.sequences: {batch.sequences} is no batch", "at least 1")
        return batch.sequences
    assert batch.tokens is not None
    sequences, rest = divmod(batch.tokens, options.sequence_length)
    if rest or not sequences:
        raise HalaError(
            f"task.batch.tokens: {batch.tokens} is no multiple of task.sequence_length, {options.sequence_length}",
            f"for example {max(1, round(batch.tokens / options.sequence_length)) * options.sequence_length}",
        )
    return sequences


def steps_of(sequences: int, batch: int) -> int:
    """Optimizer steps of so many sequences: the last may be shorter than the others."""
    return -(-sequences // batch)


def layout(options: Options, world: int) -> Layout:
    """Spread the global batch over ``world`` GPUs, with as many sequences at once as ``per_device`` allows.

    Raises HalaError where the batch does not divide by the number of GPUs.
    """
    sequences, most = global_batch(options), options.batch.per_device
    if most < 1:
        raise HalaError(f"task.batch.per_device: {most} is no batch", "at least 1")
    if sequences % world:
        below, above = sequences // world * world, (sequences // world + 1) * world
        raise HalaError(
            f"task.batch: {sequences} sequences do not divide by {world} GPUs",
            f"task.batch.sequences={above}" + (f" or {below}" if below else "") + ", or other nodes or GPUs",
        )
    share = sequences // world
    per_device = max(count for count in range(1, min(most, share) + 1) if share % count == 0)
    return Layout(world, per_device, share // per_device)
