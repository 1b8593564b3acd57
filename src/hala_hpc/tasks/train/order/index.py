"""What is in which step: decided once, before a training starts, kept in a folder, and mapped by every rank."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hala_hpc.config.errors import HalaError
from hala_hpc.run import files
from hala_hpc.tasks.train.batch import global_batch
from hala_hpc.tasks.train.options import Options
from hala_hpc.tasks.train.order import packing, report
from hala_hpc.tasks.train.order.drawn import Order
from hala_hpc.tasks.train.order.packing import Sequences
from hala_hpc.tasks.train.order.prepared import Prepared

VERSION: Final = 1
"""Of the order: raised when the same recipe and data would give another."""


@dataclass(frozen=True)
class Index:
    """The order of a training. ``steps`` are optimizer steps, ``batch`` the sequences of each but perhaps the last.

    ``held_out`` are the sequences of the evaluation, ``report`` is as ``tasks.train.order.report`` says.
    """

    steps: int
    batch: int
    sequences: Sequences
    held_out: list[list[int]]
    report: dict[str, Any]

    def step(self, step: int) -> list[list[int]]:
        """The global batch of a step (from 0): its sequences, each a list of pieces of ``Prepared``."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        last = min((step + 1) * self.batch, len(self.sequences))
        return [self.sequences[sequence] for sequence in range(step * self.batch, last)]


def build(prepared: Prepared, options: Options, can_pack: bool, target: Path) -> Index:
    """Decide the order and keep it in the folder ``target``, whole or not at all; what stands there already is used.

    Parameters
    ----------
    prepared : of the datasets of ``options``, in their order.
    can_pack : whether the model keeps the documents of one sequence apart.

    Raises
    ------
    HalaError : nothing to train on, packing that the model cannot do, or an index of another recipe or other data.
    """
    if options.packing and not can_pack:
        raise HalaError(
            "task.packing: this model, as it is loaded here, does not keep the documents of a sequence apart",
            "task.packing=null packs where it can be done",
        )
    packed = can_pack if options.packing is None else options.packing
    batch = global_batch(options)
    key = _key(prepared, options, packed, batch)
    if not target.exists():
        order = Order(prepared, options, packed, batch)
        held_out, training = order.held_out(), order.training()
        if not len(training):
            raise HalaError(
                "task.epochs is too small: no sequence is left to train on", "see also task.datasets.NAME.weight"
            )
        told = report.of(prepared, options, packed, batch, training, held_out) | {"key": key}
        try:
            with files.whole_directory(target) as folder:
                training.save(folder, "training")
                held_out.save(folder, "held_out")
                (folder / "report.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        except FileExistsError:
            pass  # another was first, with the same
    index = load(target)
    if index.report["key"] != key:
        raise HalaError(f"{target} is of another recipe or of other data", "give the run another name")
    return index


def load(path: Path) -> Index:
    """Map an index that ``build`` made. Raises HalaError where there is none."""
    try:
        told = json.loads((path / "report.json").read_text())
        training, held_out = packing.load(path, "training"), packing.load(path, "held_out")
        lists = [held_out[sequence] for sequence in range(len(held_out))]
        return Index(told["steps"], told["batch"], training, lists, told)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise HalaError(f"{path}: no index of a training: {error}") from error


def _key(prepared: Prepared, options: Options, packed: bool, batch: int) -> str:
    """Digest of all that the order depends on."""
    weights = [dataset.weight for dataset in options.datasets.values()]
    lengths = (options.sequence_length, options.epochs, options.tokens)
    asked = [VERSION, weights, lengths, options.evaluation.rows, options.seed, packed, batch]
    hashed = hashlib.blake2b(json.dumps(asked).encode(), digest_size=16)
    for array in (prepared.dataset, prepared.rows, prepared.lengths, prepared.loss_tokens):
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()
