"""Build a tiny chat model with random weights: every job can be tried with a real engine, no download and no GPU."""

import argparse
import hashlib
import inspect
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXT = Path(__file__).resolve().with_name("instructions.jsonl")
RECORD = "tiny_model.json"
ARCHITECTURES = ("llama", "gemma2", "cohere2", "lfm2")
PAD, BOS, EOS, START, END = SPECIAL = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
MIN_HEAD_SIZE = 32  # vLLM's CPU attention fails at the first step below this
WEIGHT_STD = 0.3  # at the usual 0.02 every prompt gets the same answer; a model that is to be trained learns from 0.02
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<start_of_turn>' + message['role'] + '\\n' -}}
{%- set text = message['content'] + '<end_of_turn>' -%}
{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- text -}}{%- endgeneration -%}{%- else -%}{{- text -}}
{%- endif -%}{{- '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>assistant\\n' -}}{%- endif -%}
"""


def _tokenizer(text: Sequence[Path], vocab: int, max_positions: int) -> Any:
    """Train byte-level BPE, which encodes any string whatever it was trained on. Only the chat template adds BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[*SPECIAL], show_progress=False)
    trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator((line for path in text for line in path.read_text("utf-8").splitlines()), trainer)
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "additional_special_tokens": [START, END]}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=TEMPLATE, model_max_length=max_positions, **names
    )


def _config(architecture: str, shape: dict[str, int], tokenizer: Any, weight_std: float) -> Any:
    """Return the architecture's configuration; every other layer slides, or in lfm2 convolves, as in the real ones."""
    from transformers import AutoConfig

    values: dict[str, Any] = dict(shape, vocab_size=len(tokenizer), initializer_range=weight_std)
    values |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad")}
    values["eos_token_id"] = tokenizer.convert_tokens_to_ids([EOS, END])
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    values |= {"head_dim": hidden // heads, "num_key_value_heads": max(1, heads // 2), "intermediate_size": 2 * hidden}
    if architecture != "llama":
        other = "conv" if architecture == "lfm2" else "sliding_attention"
        values["layer_types"] = ([other, "full_attention"] * shape["num_hidden_layers"])[: shape["num_hidden_layers"]]
    if architecture == "lfm2":
        values["block_auto_adjust_ff_dim"] = False  # else the configuration tells another size than the weights have
    elif architecture != "llama":
        values["sliding_window"] = max(1, shape["max_position_embeddings"] // 2)
    if architecture == "gemma2":
        values["query_pre_attn_scalar"] = values["head_dim"]
    return AutoConfig.for_model(architecture, **values)


def _model(config: Any, tokenizer: Any, seed: int, weight_std: float) -> Any:
    """Draw the weights here, by our own generator: transformers' initialization changes between its versions."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0.0, weight_std, generator=generator)
        elif config.model_type == "gemma2":  # its norms scale by 1 + w; near 1, it repeats its last token for ever
            weight.data.normal_(-1.0, weight_std * config.hidden_size**0.5, generator=generator)
    rows = model.get_output_embeddings().weight.data
    for token in range(len(tokenizer)):  # never chosen: control characters, parts of a character (U+FFFD)
        text = tokenizer.decode([token])
        if text in (PAD, BOS, START) or not all(c in "\n\t" or (c.isprintable() and c != "\ufffd") for c in text):
            rows[token] *= 0.02  # not zero: the rows are also the inputs where the embeddings are tied
    return model


def _save(model: Any, out: Path, files: int, dtype: str) -> None:
    """Write the weights to so many files, or a few more: a file's tensors are whole."""
    import torch

    model = model.to(getattr(torch, dtype))
    size = sum(weight.nbytes for weight in model.parameters())
    model.save_pretrained(out, max_shard_size=size if files == 1 else -(-size // files))


def _recorded(out: Path) -> Any:
    """Return what the model in `out` was built from, or None where there is no whole model."""
    return json.loads((out / RECORD).read_text("utf-8")) if (out / RECORD).is_file() else None


def build(
    out: Path,
    architecture: str = "llama",
    text: Sequence[Path] = (TEXT,),
    vocab: int = 2000,
    hidden: int = 128,
    layers: int = 2,
    heads: int = 4,
    max_positions: int = 2048,
    seed: int = 0,
    files: int = 1,
    dtype: str = "float32",
    weight_std: float = WEIGHT_STD,
) -> Path:
    """Build the model in `out` and return it; one of the same arguments, texts and script is kept.

    `files` is how many files the weights are spread over, more or less, as those of large models are; `dtype` is
    float32 or bfloat16; `weight_std` is the standard deviation of the random weights.

    Raises ValueError for an impossible shape, FileExistsError where `out` holds anything else.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    if hidden % heads or hidden // heads < MIN_HEAD_SIZE or (heads > 1 and heads % 2):
        raise ValueError(f"hidden {hidden}, heads {heads}: need 1 or an even number, each >= {MIN_HEAD_SIZE} wide")
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape["max_position_embeddings"] = max_positions
    read = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(__file__), *text)]
    arguments = {"architecture": architecture, "sha256": read, "vocab": vocab, "seed": seed, **shape}
    arguments |= {"files": files, "dtype": dtype, "weight_std": weight_std}
    if _recorded(out) == arguments:
        return out
    if out.exists():
        raise FileExistsError(f"{out} is there and is not this model: remove it or choose another folder")
    whole = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    whole.mkdir(parents=True)
    try:
        tokenizer = _tokenizer(text, vocab, max_positions)
        tokenizer.save_pretrained(whole)
        model = _model(_config(architecture, shape, tokenizer, weight_std), tokenizer, seed, weight_std)
        _save(model, whole, files, dtype)
        if architecture == "gemma2":  # the faster attentions skip its soft-capping; transformers does not save this
            config = json.loads((whole / "config.json").read_text("utf-8")) | {"attn_implementation": "eager"}
            (whole / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (whole / RECORD).write_text(json.dumps(arguments, indent=2) + "\n", "utf-8")
        whole.rename(out)
    except OSError:
        if _recorded(out) != arguments:  # else another process finished the same model first
            raise
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return out


def main() -> None:
    """Read the command line, and say whether anything was built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--text", type=Path, nargs="+", default=[TEXT], metavar="FILE", help="trains the tokenizer")
    for name, number in [*inspect.signature(build).parameters.items()][3:]:
        kind = type(number.default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=number.default, help=f"{number.default}")
    arguments = parser.parse_args()
    what = "there already, kept" if _recorded(arguments.out) else "built"  # build refuses a different one
    print(f"{build(**vars(arguments))}: {what}")


if __name__ == "__main__":
    main()
