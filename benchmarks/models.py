"""Quantizing, merging and evaluating: time and peak memory against a plain copy of the same bytes; then questions/s.

The model is made here: a llama of random weights, and one tuned from it. Nothing is asked of the internet, and no GPU.
For one merge mergekit's own command is measured too. What evaluation costs is models_evaluation.py's.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models_evaluation
import numpy as np
from common import HALA, ROOT, environment, quiet, report, title

WORK = ROOT / ".envs" / "work-cpu" / "bin" / "python"
VOCABULARY = 32_000
HEAD = 64
PIECE = 1 << 22
"""Numbers drawn at a time."""
LOOK_SECONDS = 0.02
MEMORY_BAR = 2.0
"""Of the largest file: the peak memory that quantizing and merging may have."""


@dataclass(frozen=True)
class Shape:
    """Of the model that is made."""

    hidden: int
    layers: int
    files: int

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order of the files."""
        wide, keys = 11 * self.hidden // 4, self.hidden // 4
        found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (VOCABULARY, self.hidden))]
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            found += [(f"{at}.{norm}_layernorm.weight", (self.hidden,)) for norm in ("input", "post_attention")]
            found += [(f"{at}.self_attn.{name}_proj.weight", (self.hidden, self.hidden)) for name in "qo"]
            found += [(f"{at}.self_attn.{name}_proj.weight", (keys, self.hidden)) for name in "kv"]
            found += [(f"{at}.mlp.{name}_proj.weight", (wide, self.hidden)) for name in ("gate", "up")]
            found += [(f"{at}.mlp.down_proj.weight", (self.hidden, wide))]
        return [*found, ("model.norm.weight", (self.hidden,)), ("lm_head.weight", (VOCABULARY, self.hidden))]


@dataclass(frozen=True)
class Took:
    """Of a process and its children: wall time, the most memory of their own, and the time of the work itself."""

    seconds: float
    bytes: int
    working: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--dir", type=Path, help="a folder with room for seven times the model")
    parser.add_argument("--questions", type=int, default=25, help="of each task; 0: no evaluation")
    parser.add_argument("--times", type=int, default=3, help="pairs of evaluations")
    arguments = parser.parse_args()
    title("models")
    if not WORK.is_file():
        sys.exit("no work environment: make work")
    shape = Shape(arguments.hidden, arguments.layers, arguments.files)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        measure(Path(folder), shape)
    if arguments.questions:
        models_evaluation.measure(arguments.questions, arguments.times)


def measure(folder: Path, shape: Shape) -> None:
    """Make the models; copy, quantize and merge them."""
    base, tuned = folder / "base", folder / "tuned"
    quiet(WORK, ROOT / "jobs" / "demo" / "tiny_model.py", folder / "tiny")
    for number, model in enumerate((base, tuned)):
        make(folder / "tiny", model, shape, noise=0.1 * number)
    sizes = [path.stat().st_size for path in base.glob("*.safetensors")]
    report("model", sum(sizes) / 1e9, "GB", "at least 2 GB", sum(sizes) >= 2e9)
    report("… its largest file", max(sizes) / 1e9, "GB", "", True)
    copied = copy(base, folder / "copy")
    report("plain copy of the model, to the disk", copied, "s", "", True)
    start = process([WORK, "-c", "import torch, transformers, mergekit.merge, mergekit.plan"], folder)
    report("a process that only imports mergekit: peak memory", start.bytes / 1e9, "GB", "", True)
    tell("quantize to FP8", work(folder, "quantize", base, {"kind": "quantize"}), copied, max(sizes))
    merge = {"kind": "merge", "models": {"tuned": {"name": str(tuned)}}, "t": [0.5]}
    ours = work(folder, "merge", base, merge)
    tell("merge by slerp", ours, copied, max(sizes))
    theirs = mergekit(folder, base, tuned)
    report("mergekit's own command: time", theirs.seconds, "s", "", True)
    report("mergekit's own command: peak memory", theirs.bytes / 1e9, "GB", "", True)
    report("merge, whole process, hala / mergekit: time", ours.seconds / theirs.seconds, "", "", True)


def tell(what: str, took: Took, copied: float, largest: int) -> None:
    times = took.bytes / largest
    report(f"{what}: whole process", took.seconds, "s", "", True)
    report(f"{what}: the work, with its checks", took.working, "s", "", True)
    report(f"{what}: the work / a plain copy", took.working / copied, "", "", True)
    report(f"{what}: peak memory", took.bytes / 1e9, "GB", "", True)
    report(f"{what}: peak memory / largest file", times, "", f"at most {MEMORY_BAR}", times <= MEMORY_BAR)


def make(tiny: Path, target: Path, shape: Shape, noise: float) -> None:
    """A model of random bfloat16 weights with the tokenizer of ``tiny``; with ``noise``, as if tuned from the other."""
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("*.safetensors", "tiny_model.json"))
    heads = shape.hidden // HEAD
    config = json.loads((target / "config.json").read_text())
    config |= {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "vocab_size": VOCABULARY}
    config |= {"intermediate_size": 11 * shape.hidden // 4, "num_attention_heads": heads, "head_dim": HEAD}
    config |= {"num_key_value_heads": heads // 4, "tie_word_embeddings": False, "dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config))
    mapped: dict[str, str] = {}
    for number, part in enumerate(split(shape), 1):
        name = f"model-{number:05d}-of-{shape.files:05d}.safetensors"
        write(target / name, part, noise)
        mapped |= {tensor: name for tensor, _ in part}
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapped}))


def split(shape: Shape) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors by file, files of about the same size."""
    tensors = shape.tensors()
    whole = sum(int(np.prod(extent)) for _, extent in tensors)
    parts: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(shape.files)]
    before = 0
    for name, extent in tensors:
        parts[min(shape.files - 1, before * shape.files // whole)].append((name, extent))
        before += int(np.prod(extent))
    return parts


def write(path: Path, tensors: list[tuple[str, tuple[int, ...]]], noise: float) -> None:
    """A safetensors file. The same names have the same numbers, but for the noise."""
    header, end = {}, 0
    for name, extent in tensors:
        size = 2 * int(np.prod(extent))
        header[name] = {"dtype": "BF16", "shape": list(extent), "data_offsets": [end, end + size]}
        end += size
    told = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for name, extent in tensors:
            seed = list(name.encode())
            own, other = np.random.default_rng(seed), np.random.default_rng([1, *seed])
            count = int(np.prod(extent))
            for at in range(0, count, PIECE):
                size = min(PIECE, count - at)
                numbers = own.standard_normal(size, "f4") * 0.02
                if noise:
                    numbers += other.standard_normal(size, "f4") * np.float32(0.02 * noise)
                file.write((numbers.view("<u4") >> 16).astype("<u2").tobytes())


def copy(source: Path, target: Path) -> float:
    """Copy every file, to the disk; seconds."""
    began = time.perf_counter()
    target.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    took = time.perf_counter() - began
    shutil.rmtree(target)
    return took


def work(folder: Path, name: str, model: Path, task: dict[str, Any]) -> Took:
    """Plan a run and let one worker do it."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(json.dumps({"name": name, "task": task, "model": {"name": str(model)}}))
    quiet(*HALA, "plan", recipe, "--create", cwd=folder)
    run = folder / "runs" / name
    took = process([WORK, "-m", "hala_hpc.worker", run], folder)
    lines = [json.loads(line) for path in (run / "ledger").glob("*.jsonl") for line in path.read_text().splitlines()]
    times = {event: [line["time"] for line in lines if line["event"] == event] for event in ("claimed", "ended")}
    shutil.rmtree(run)
    return Took(took.seconds, took.bytes, max(times["ended"]) - min(times["claimed"]))


def mergekit(folder: Path, base: Path, tuned: Path) -> Took:
    """The same merge by mergekit-yaml, with its defaults."""
    config, out = folder / "mergekit.yaml", folder / "by-mergekit"
    models = [{"model": {"model": {"path": str(model)}}} for model in (base, tuned)]
    asked = {"merge_method": "slerp", "base_model": models[0]["model"], "models": models, "parameters": {"t": 0.5}}
    config.write_text(json.dumps(asked | {"dtype": "bfloat16"}))
    took = process([WORK.with_name("mergekit-yaml"), config, out, "--quiet"], folder)
    shutil.rmtree(out)
    return took


def process(words: list[Any], folder: Path) -> Took:
    """Run a command to its end. Ends the benchmark with what it said where it failed."""
    log = folder / "process.log"
    began = time.perf_counter()
    with log.open("wb") as said:
        started = subprocess.Popen(list(map(str, words)), stdout=said, stderr=said, env=environment())
        most = 0
        while (status := started.poll()) is None:
            most = max(most, anonymous(started.pid))
            time.sleep(LOOK_SECONDS)
    if status:
        sys.exit(f"{' '.join(map(str, words))}: status {status}\n{log.read_text(errors='replace')[-3000:]}")
    return Took(time.perf_counter() - began, most)


def anonymous(process: int) -> int:
    """Bytes that a process and its children hold, without pages of files, which the kernel takes back as it likes."""
    folder = Path(f"/proc/{process}")
    try:
        lines = (folder / "status").read_text().splitlines()
        own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
        children = (folder / "task" / str(process) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    return own + sum(anonymous(int(child)) for child in children)


if __name__ == "__main__":
    main()
