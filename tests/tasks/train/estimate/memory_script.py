"""Measures what a tiny model really holds while it trains; prints JSON. Run in the work environment, once per rank.

Every tensor that comes to be is followed from its first to its last use, so the peak is exact, buffers included.
"""

import gc
import json
import os
import sys
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Followed(TorchDispatchMode):
    """Bytes of the storages made herein that are still alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._seen: set[int] = set()
        for storage in [each.untyped_storage() for each in gc.get_objects() if isinstance(each, torch.Tensor)]:
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                weakref.finalize(storage, self._seen.discard, storage._cdata)  # its address may be another's later

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.follow(leaf)
        return result

    def follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen.add(key)
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def size_of(*tensors: Any) -> int:
    """Bytes of all storages of nested tensors, each once."""
    found = {
        leaf.untyped_storage()._cdata: leaf.untyped_storage().nbytes()
        for leaf in tree_leaves(tensors)
        if isinstance(leaf, torch.Tensor)
    }
    return sum(found.values())


def prepare(asked: dict[str, Any]) -> tuple[Any, Any]:
    """The model as the trainer has it, and a batch."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    values = dict(asked["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if asked["stage"] and asked["precision"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, attn_implementation=asked["attention"], dtype=dtype)
    add_fused_lm_head(model)
    if asked["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, config.vocab_size, (asked["sequences"], asked["length"]))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # a batch is padded, or packed: either way attention gets a mask
    model.train()
    return model, {"input_ids": ids, "labels": ids.clone(), "attention_mask": mask}


def with_deepspeed(model: Any, asked: dict[str, Any]) -> Any:
    import deepspeed

    hidden = model.config.hidden_size
    settings = json.loads(open(asked["file"]).read().replace('"auto"', "null"))  # noqa: PTH123, SIM115
    zero = {key: value for key, value in settings["zero_optimization"].items() if value is not None}
    automatic = (
        {
            "reduce_bucket_size": hidden**2,
            "stage3_prefetch_bucket_size": int(0.9 * hidden**2),
            "stage3_param_persistence_threshold": 10 * hidden,
        }
        if asked["stage"] == 3
        else {}
    )
    zero |= automatic | asked.get("zero", {})
    config = {
        "bf16": {"enabled": asked["precision"] == "bfloat16"},
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": asked["sequences"],
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=False)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def zero_state(engine: Any, stage: int) -> dict[str, int]:
    """What the engine holds between two steps."""
    optimizer = engine.optimizer
    masters = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    weights = [p.ds_tensor for p in engine.module.parameters()] if stage == 3 else list(engine.module.parameters())
    persistent = [p.data for p in engine.module.parameters()] if stage == 3 else []
    return {
        "parameters": size_of(weights, persistent),
        "optimizer": size_of([m.data for m in masters], [list(s.values()) for s in optimizer.optimizer.state.values()]),
    }


def gradients_of(engine: Any, stage: int) -> int:
    optimizer = engine.optimizer
    if stage == 3:
        return size_of(optimizer.grad_partitions_flat_buffer)
    return size_of(list(optimizer.averaged_gradients.values()))


def plain(model: Any, asked: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Forward, backward and step without DeepSpeed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=False)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)

    def forward(**batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=asked["precision"] == "bfloat16"):
            return wrapped(**batch)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return forward, step, optimizer


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    model, batch = prepare(asked)
    stage = asked["stage"]
    if stage:
        engine = with_deepspeed(model, asked)
        forward, backward, step = engine, engine.backward, engine.step
    else:
        backward = torch.Tensor.backward
        forward, step, optimizer = plain(model, asked)
    for _ in range(2 if stage else 3):  # the last time nothing is made for the first time; DDP makes its buckets twice
        gc.collect()
        with Followed() as followed:
            before = size_of([weight.data for weight in model.parameters()])
            loss = forward(**batch, use_cache=False, fused_lm_head=True).loss
            gathered = size_of([weight.data for weight in model.parameters()]) - before  # ZeRO-3 keeps some for a while
            result = {"activations": followed.live - gathered}
            backward(loss)
            del loss
            result["peak"] = followed.most
            held = [p.grad for p in model.parameters()]
            result["gradients"] = gradients_of(engine, stage) if stage else size_of(held)
            del held
            step()
    if stage:
        return result | zero_state(engine, stage)
    states = [list(each.values()) for each in optimizer.state.values()]
    return result | {"parameters": size_of(list(model.parameters())), "optimizer": size_of(states)}


def main() -> None:
    """One line of JSON for each of the cases asked for."""
    import deepspeed
    import trl.trainer.utils

    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = 64  # on the CPU a tile is folded in many copies: make them small
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as ranks do
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for asked in json.loads(sys.argv[1]):
        result = measure(asked)
        if os.environ["RANK"] == "0":
            print("RESULT " + json.dumps(result), flush=True)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
