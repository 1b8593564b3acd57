"""Quantize a model in one go, for schemes and methods that have to see it run: LLM Compressor's ``oneshot``.

It runs in a process of its own, which can be stopped at any time and takes its memory with it. The texts that it runs
the model on are the first rows of a dataset, as the model would be given them; the plan holds them as tokens.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Model
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.chat import templates
from hala_hpc.data.chat.documents import CONTROL_WORDS, Chat, Document, Dropped, Kind, holds_control_words, reader_of
from hala_hpc.data.cut import Watch
from hala_hpc.data.files import sources
from hala_hpc.models import location
from hala_hpc.text.control import ControlWords

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


def samples(
    model: Model, data: Data, kind: Kind, count: int, length: int, copies: Path, watch: Watch, bad: BadRows
) -> list[list[int]]:
    """Token ids of the first ``count`` rows that hold anything, each cut to ``length``.

    Conversations go through the model's chat template; other texts begin with BOS, where the tokenizer has one. Words
    of the data that look like control tokens stay text (``text.control``) and are counted in ``bad.notes``. ``copies``
    is a folder for files that cannot be read as they are; ``bad`` collects bad rows.

    Raises HalaError for data that cannot be read, rows of another form, and where no row holds anything.
    """
    tokenizer = templates.load_tokenizer(model)
    words = ControlWords(tokenizer.backend_tokenizer)
    ids: list[list[int]] = []
    for document in _documents(data, kind, copies, watch, bad):
        if holds_control_words(document, words):
            bad.notes[CONTROL_WORDS] += 1
        ids.append(_tokens(tokenizer, words, document)[:length])
        if len(ids) == count:
            break
    if not ids:
        raise HalaError("no row holds a text")
    return ids


def _documents(data: Data, kind: Kind, copies: Path, watch: Watch, bad: BadRows) -> Iterator[Document]:
    for source, chunk in sources.read(data, copies, watch.say, bad):
        reader = reader_of(kind, data, chunk.schema())
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
