"""One rank of a training, from its start to its exit code."""

import contextlib
import copy
import json
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset

from hala_hpc.config.compose import thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe
from hala_hpc.config.words import plural
from hala_hpc.data.chat import templates
from hala_hpc.run.files import remove_tree, write_durably
from hala_hpc.tasks.train import card, metrics, paths
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.checkpoint import export
from hala_hpc.tasks.train.checkpoint.checkpoints import Checkpoints, Saved
from hala_hpc.tasks.train.estimate.architecture import flops_per_token
from hala_hpc.tasks.train.options import Options, layout
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.prepared import Prepared
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.tasks.train.rank import model as models
from hala_hpc.tasks.train.rank.batches import Batches, Collate, Loader
from hala_hpc.tasks.train.rank.place import Beacon, Place
from hala_hpc.tasks.train.rank.stopping import SIGNALS, Keeper
from hala_hpc.tasks.train.rank.trainer import Data, Diverged, HalaTrainer
from hala_hpc.worker import registry

TRAINED, REFUSED, STOPPED, DIVERGED = 0, 2, 85, 86
"""Exit codes: trained and exported; cannot be done as asked; stopped on request, with a checkpoint; stopped for good.

``failure.json`` tells of the second and the last. Anything else is a crash, after which the training goes on from its
last complete checkpoint.
"""


def main(run: str, here: Place) -> int:
    """Train the run until its end, a stop or a failure. See the exit codes above."""
    path = Path(run).resolve()
    beacon = Beacon(path / paths.RANKS / here.launch, here.rank)
    try:
        return _train(path, here, beacon)
    except HalaError as error:
        sys.stderr.write(f"hala: error: {error}\n")
        write_durably(path / paths.FAILURE, json.dumps({"reason": str(error), "time": time.time()}).encode())
        return REFUSED
    finally:
        beacon.close()


def _train(path: Path, here: Place, beacon: Beacon) -> int:
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # of DeepSpeed's calls
    recipe = thaw(path / "recipe.yaml", registry.options_of)
    options: Options = recipe.task
    models.start_distributed(options.deepspeed.stage)
    order = index.load(path / paths.INDEX)
    spread = layout(options, here.world)
    # As it was when the data was prepared, with the template of then.
    kept_tokenizer = train.prepare_runs(path, recipe)[0] / prepare.TOKENIZER
    tokenizer = templates.load_tokenizer(Model(name=str(kept_tokenizer)))
    # Before the model: this is how transformers learns that its weights are to be spread (ZeRO-3).
    arguments = models.settings(options, path / paths.CHECKPOINTS, spread, order.steps)
    model = models.load(recipe, on_deepspeed=options.deepspeed.stage > 0)
    kept = copy.deepcopy((model.config, model.generation_config))
    keeper = Keeper(options.save, order.steps, here.end_time)
    checkpoints = Checkpoints(path / paths.CHECKPOINTS, options.save.keep)
    writer = metrics.Writer(path, here.launch, options.report_to, recipe.name) if here.is_first else None
    saved = _resume_point(checkpoints, here)
    data = _data(path, recipe, order, spread, here, model, tokenizer, saved.step if saved else 0)
    trainer = HalaTrainer(
        options,
        data,
        checkpoints,
        keeper,
        beacon,
        writer.write if writer else None,
        _flops(model, options.sequence_length),
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # TRL wants to see one
        data_collator=list,
        processing_class=tokenizer,
    )
    try:
        trainer.train_from(saved)
    except Diverged as failure:
        if here.is_first:
            _tell_failure(path, failure, data)
        return _end(writer, DIVERGED)
    if keeper.stopped:
        return _end(writer, STOPPED)
    beacon.at(order.steps, "exporting")
    # The trainer makes them agree with the tokenizer, which knows one end of text: the end of a turn would be lost.
    model.config, model.generation_config = kept
    _export(path, trainer, tokenizer, here)
    return _end(writer, TRAINED)


def _data(
    path: Path, recipe: Recipe, order: index.Index, spread: Any, here: Place, model: Any, tokenizer: Any, done: int
) -> Data:
    prepared = Prepared(train.prepare_runs(path, recipe))
    form, conv = models.form_of(model, order.report["packed"])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batches = Batches(prepared, order, spread, here.rank, pad, form, conv)
    loader = Loader(batches, done * spread.accumulation, recipe.task.loader_workers, torch.cuda.is_available())
    return Data(prepared, order, loader, Collate(prepared, pad, form, conv), here.rank, here.world)


def _resume_point(checkpoints: Checkpoints, here: Place) -> Saved | None:
    """The newest checkpoint that is whole; the same on all ranks, for the first one looks.

    Raises HalaError where there are some and none of them is whole.
    """
    found: list[Saved | HalaError | None] = [None]
    if here.is_first:
        for aside in checkpoints.set_aside():
            _say(f"incomplete checkpoint set aside: {aside}")
        try:
            found = [checkpoints.newest_whole(_say)]
        except HalaError as error:
            found = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    saved = found[0]
    if isinstance(saved, HalaError):
        raise saved
    if saved is not None and here.is_first:
        _say(f"resuming after step {saved.step}, saved by {plural(saved.world, 'rank')}")
    return saved


def _flops(model: Any, sequence_length: int) -> float:
    """Per token, for the MFU: of any model, also one that ZeRO-3 has cut into pieces."""
    config = model.config.get_text_config()
    sizes = {name: getattr(weight, "ds_numel", weight.numel()) for name, weight in model.named_parameters()}
    inputs = model.get_input_embeddings().weight
    is_tied = model.get_output_embeddings().weight is inputs
    looked_up = 0 if is_tied else getattr(inputs, "ds_numel", inputs.numel())
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    layers = sum(kind != "conv" for kind in getattr(config, "layer_types", None) or [""] * config.num_hidden_layers)
    return flops_per_token(sum(sizes.values()) - looked_up, layers, width, sequence_length)


def _tell_failure(path: Path, failure: Diverged, data: Data) -> None:
    """Which step, and which rows were in its batch."""
    sequences = data.index.step(failure.step - 1)
    pieces = [piece for sequence in sequences for piece in sequence]
    rows = [data.prepared.describe(piece) for piece in pieces]
    told = {"step": failure.step, "reason": failure.reason, "sequences": sequences, "rows": rows, "time": time.time()}
    write_durably(path / paths.FAILURE, json.dumps(told, default=int).encode())
    _say(f"stopped for good at step {failure.step}: {failure.reason}; see {path / paths.FAILURE}")


def _export(path: Path, trainer: HalaTrainer, tokenizer: Any, here: Place) -> None:
    """The finished model as a folder that anybody can load; checked before it gets its name."""
    final = path / paths.EXPORTED
    trainer.model_wrapped.eval()
    expected = export.fingerprint(trainer.model_wrapped, tokenizer)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if here.is_first and not final.exists():
        building = final.with_suffix(".building")
        remove_tree(building)
        export.save(trainer.accelerator.unwrap_model(trainer.model), state, tokenizer, building, card.provenance(path))
        export.check(building, expected)
        building.rename(final)
    if dist.is_initialized():
        dist.barrier()


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} hala: {text}\n")
    sys.stdout.flush()


def _end(writer: Any, code: int) -> int:
    """Leave together: a rank that is gone first would make the others fail.

    A further signal must not end the process before its exit code tells how it ended.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if writer is not None:
        writer.close()
    sys.stdout.flush()
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.barrier()
            dist.destroy_process_group()
    return code
