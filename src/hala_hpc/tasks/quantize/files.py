"""How weights are quantized: file by file, or a whole model by calibration."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.config.imports import heavy_imports
from hala_hpc.config.schema import Data, Model
from hala_hpc.data import templates
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.cut import PlanWatch
from hala_hpc.data.documents import CONTROL_WORDS, Chat, Document, Kind, holds_control_words, reader_of
from hala_hpc.data.files import sources
from hala_hpc.data.spoken import Dropped
from hala_hpc.models import location
from hala_hpc.models.safetensors_file import open_tensors
from hala_hpc.tasks.quantize import schemes
from hala_hpc.tasks.quantize.schemes import Scheme
from hala_hpc.text.prompts import ControlWords

ELEMENTS: Final = 1 << 22
"""Numbers compared at a time: memory does not grow with the weights."""
WORST: Final = 1.0
"""The relative error of zeros in place of the weight."""


class TensorError(TypedDict):
    """A tensor of the source in a report.

    ``error`` is the root mean square of the difference over that of the source; absent for a tensor that stayed.
    """

    name: str
    shape: list[int]
    dtype: str
    error: NotRequired[float]


@dataclass(frozen=True)
class Weights:
    """The tensors ``names`` in some files of the source, and how they are quantized."""

    files: Sequence[Path]
    names: Sequence[str]
    scheme: Scheme
    ignore: Sequence[str]


def quantize_file(
    weights: Weights, target: Path, device: str | None, check_stop: Callable[[], None]
) -> Mapping[str, Any]:
    """Write ``target``: the weights, quantized where they are to be. ``device`` None: a GPU where there is one.

    Returns the configuration that belongs into the model's ``config.json`` as ``quantization_config``. ``check_stop``
    is called before each weight. What is half written when it raises is the caller's to remove.
    """
    with heavy_imports():
        import torch
        from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
        from safetensors.torch import save_file

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    converter = ModelFreePtqConverter(configuration(weights.scheme, weights.ignore))
    results: dict[str, Any] = {}
    with open_tensors(*weights.files) as source:
        for group in _groups(weights.names, weights.scheme):
            check_stop()
            if schemes.is_quantized(group[0], weights.ignore):
                quantized = converter.process({name: source[name].get_tensor(name).to(device) for name in group})
                results |= {name: tensor.cpu() for name, tensor in quantized.items()}
            else:
                results |= {name: source[name].get_tensor(name) for name in group}
        save_file(results, target, {"format": "pt"})
    return _described(converter)


def configuration(scheme: Scheme, ignore: Sequence[str]) -> Any:
    """LLM Compressor's own configuration of a scheme (``QuantizationConfig``)."""
    with heavy_imports():
        import torch
        from compressed_tensors.compressors.format import infer_module_format
        from llmcompressor.entrypoints.model_free.validate import validate_config

    config = validate_config(None, scheme.name, ignore)
    for group in config.config_groups.values():  # known only when a first weight is quantized, and a file may have none
        group.format = infer_module_format(torch.nn.Linear, group)
    return config


def measure_errors(
    weights: Weights, written: Sequence[Path], config: Mapping[str, Any], check_stop: Callable[[], None]
) -> list[TensorError]:
    """Compare the files ``written`` with the weights of the source, which they must hold and nothing else.

    Ignored tensors must be the source's byte for byte. compressed-tensors restores the others by the model's
    ``quantization_config``. ``check_stop`` is called before each tensor.

    Raises RuntimeError that names tensors which are not what they should be.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    (group,) = QuantizationConfig.model_validate(config).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(group.format)
    scheme, ignore = weights.scheme, weights.ignore
    lines: list[TensorError] = []
    problems = []
    with open_tensors(*weights.files) as source, open_tensors(*written) as result:
        for name in weights.names:
            check_stop()
            weight = source[name].get_tensor(name)
            line = TensorError(name=name, shape=list(weight.shape), dtype=str(weight.dtype).removeprefix("torch."))
            lines.append(line)
            parts = schemes.parts(name, scheme)
            if not schemes.is_quantized(name, ignore):
                if name not in result or not _is_same(weight, result[name].get_tensor(name)):
                    problems.append(f"{name}: is not the source's")
            elif missing := sorted(parts - result.keys()):
                problems.append(f"{name}: {missing[0]} is missing")
            else:
                prefix = name.removesuffix("weight")
                stored = {part.removeprefix(prefix): result[part].get_tensor(part) for part in parts}
                error = _relative_error(weight, compressor.decompress(stored, group)["weight"])
                line |= {"dtype": f"{scheme.number}{scheme.bits}", "error": round(error, 8)}
                if not error < WORST:
                    problems.append(f"{name}: is {error:.3g} off, relative to its size")
        surplus = result.keys() - schemes.expected(weights.names, scheme, ignore)
    problems += [f"{name}: the source has no such tensor" for name in sorted(surplus)]
    if problems:
        raise RuntimeError(f"{len(problems)} tensors are not what they should be: {'; '.join(problems[:3])}")
    return lines


def _described(converter: Any) -> Mapping[str, Any]:
    """The converter's configuration for a model's ``config.json``."""
    from llmcompressor.entrypoints.model_free.save_utils import (
        COMPRESSION_VERSION_NAME,
        QUANTIZATION_METHOD_NAME,
        TRANSFORM_CONFIG_NAME,
        ct_version,
    )

    return {
        COMPRESSION_VERSION_NAME: ct_version,
        QUANTIZATION_METHOD_NAME: "compressed-tensors",
        TRANSFORM_CONFIG_NAME: {},
        **converter.update_config(None).model_dump(mode="json"),
    }


def _groups(names: Sequence[str], scheme: Scheme) -> list[list[str]]:
    """Tensors that have to be quantized together."""
    taken: set[str] = set()
    groups = []
    for name in sorted(names, key=lambda name: not schemes.partners(name, scheme)):
        if name not in taken:
            group = [name, *(other for other in schemes.partners(name, scheme) if other in names)]
            taken.update(group)
            groups.append(group)
    return groups


def _is_same(source: Any, written: Any) -> bool:
    """Byte for byte: NaN is itself, and 0 is not -0."""
    import torch

    if (source.dtype, source.shape) != (written.dtype, written.shape):
        return False
    return bool(torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (source, written))))


def _relative_error(weight: Any, restored: Any) -> float:
    """The error over all numbers; NaN where a restored one is."""
    if weight.shape != restored.shape:
        return float("inf")
    squares = reference = 0.0
    for part, other in zip(weight.reshape(-1).split(ELEMENTS), restored.reshape(-1).split(ELEMENTS), strict=True):
        exact = part.double()
        squares += float((other.double() - exact).square().sum())
        reference += float(exact.square().sum())
    if not reference:
        return 0.0 if not squares else float("inf")
    return float((squares / reference) ** 0.5)


LOG: Final = "log.txt"
POLL_SECONDS: Final = 0.5
LOG_LINES: Final = 4
"""The log's last lines, which an error shows."""


@dataclass(frozen=True)
class Oneshot:
    """What the process gets: ``source`` is a model's folder, ``dtype`` torch's name of a type.

    ``calibration`` is a file with lists of token ids in JSON; None where nothing has to be calibrated.
    """

    source: str
    dtype: str
    scheme: str
    ignore: list[str]
    rounding: str
    calibration: str | None


def quantize_model(job: Oneshot, target: Path, kept: Path, check_stop: Callable[[], None]) -> Mapping[str, Any]:
    """Make the folder ``target`` with the quantized weights; returns what belongs into the model's ``config.json``.

    The log goes to the folder ``kept``. Raises RuntimeError with the log's last lines where the process fails, and
    whatever ``check_stop`` raises.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(job)), str(target)]
    with (kept / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                check_stop()
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
    if process.returncode != 0:
        last = (kept / LOG).read_text("utf-8", "replace").strip().splitlines()[-LOG_LINES:]
        raise RuntimeError(f"LLM Compressor ended with {process.returncode}: {' / '.join(last)}")
    config: Mapping[str, Any] = location.config(target)["quantization_config"]
    return config


def _end_with(parent: int) -> None:
    """End this process once the worker is gone, also when it was killed: nobody else would."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def run(job: Oneshot, target: Path) -> None:
    """Quantize the model, in the process for it."""
    with heavy_imports():
        import torch
        from llmcompressor import oneshot
        from llmcompressor.modeling.fuse import update_offload_parameter
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job.source, dtype=getattr(torch, job.dtype))
    # LLM Compressor 0.14 turns Gemma's norms (1 + w) into plain ones and back, which rounds w away near 0.
    vectors = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.ndim < 2}
    modifier = GPTQModifier if job.rounding == "gptq" else QuantizationModifier
    texts: Mapping[str, Any] = {}
    if job.calibration is not None:
        texts = _calibration(json.loads(Path(job.calibration).read_text("utf-8")))
        texts = {**texts, "tokenizer": AutoTokenizer.from_pretrained(job.source)}
    oneshot(model=model, recipe=modifier(targets="Linear", scheme=job.scheme, ignore=job.ignore), **texts)
    for name, weight in vectors.items():
        module, _, last = name.rpartition(".")
        update_offload_parameter(model.get_submodule(module), last, weight)
    model.save_pretrained(target, save_compressed=True)


def _calibration(samples: list[list[int]]) -> Mapping[str, Any]:
    from datasets import Dataset

    rows = {"input_ids": samples, "attention_mask": [[1] * len(ids) for ids in samples]}
    return {
        "dataset": Dataset.from_dict(rows),
        "num_calibration_samples": len(samples),
        "max_seq_length": max(map(len, samples)),
        "shuffle_calibration_samples": False,
    }


@dataclass
class Calibration(Data):
    """Texts that the model is run on, for schemes and methods that need it: the first ``samples`` rows of a dataset."""

    kind: Kind = "chat"
    samples: int = 512  # as LLM Compressor's examples have it
    length: int = 2048  # tokens of each at most, as there


def samples(model: Model, texts: Calibration, copies: Path, watch: PlanWatch, bad: BadRows) -> list[list[int]]:
    """Token ids of the first rows that hold anything, so many and each cut to as many tokens as ``texts`` says.

    Conversations go through the model's chat template; other texts begin with BOS, where the tokenizer has one. Words
    of the data that look like control tokens stay text (``text.prompts``) and are counted in ``bad.notes``. ``copies``
    is a folder for files that cannot be read as they are; ``bad`` collects bad rows.

    Raises HalaError for data that cannot be read, rows of another form, and where no row holds anything.
    """
    tokenizer = templates.load_tokenizer(model)
    words = ControlWords(tokenizer.backend_tokenizer)
    ids: list[list[int]] = []
    for document in _documents(texts, copies, watch, bad):
        if holds_control_words(document, words):
            bad.notes[CONTROL_WORDS] += 1
        ids.append(_tokens(tokenizer, words, document)[: texts.length])
        if len(ids) == texts.samples:
            break
    if not ids:
        raise HalaError("no row holds a text")
    return ids


def _documents(texts: Calibration, copies: Path, watch: PlanWatch, bad: BadRows) -> Iterator[Document]:
    for source, chunk in sources.read(texts, copies, watch.say, bad):
        reader = reader_of(texts.kind, texts, chunk.schema())
        for number, row in zip(chunk.numbers, chunk.rows, strict=True):
            try:
                yield reader.read(row)
            except Dropped:
                continue
            except HalaError as error:
                bad.add(sources.where(source, number), error)


def _tokens(tokenizer: Any, words: ControlWords, document: Document) -> list[int]:
    if isinstance(document, Chat):
        text, before = templates.render(tokenizer, document.hiding(words)).text, []
    else:
        text = words.hide("".join(document.texts))
        before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*before, *words.encode(text).ids]


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    run(Oneshot(**json.loads(sys.argv[1])), Path(sys.argv[2]))
