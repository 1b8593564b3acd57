"""Three kinds of tokenizers, as models have them, trained on real text in a moment; each with a chat template.

``turns`` says what the template should make of a conversation, piece by piece, and which pieces the assistant writes:
written down here once more, without the template, its marks or the tokenizer's offsets.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import ROOT

Message = dict[str, Any]
CHATML = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start|>' + message['role'] + '\\n\\n' -}}
{%- if message['role'] == 'assistant' -%}{% generation %}{{- message['content'] + '<|end|>' -}}{% endgeneration %}
{%- else -%}{{- message['content'] + '<|end|>' -}}{%- endif -%}
{%- endfor -%}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] | trim + '<end_of_turn>\\n' }}{% endgeneration %}
{%- else %}{{ message['content'] | trim + '<end_of_turn>\\n' }}{% endif %}
{%- endfor -%}"""


@dataclass(frozen=True)
class Kind:
    """``turns``: pieces of the rendered text, with whether they are the assistant's. ``raw``: the bytes of a token."""

    tokenizer: Any
    turns: Callable[[Sequence[Message]], list[tuple[str, bool]]]
    raw: Callable[[str], bytes]


def byte_level(texts: Sequence[str]) -> Kind:
    """The tiny chat models': byte-level BPE, nothing added."""
    path = ROOT / "jobs" / "demo" / "tiny_model.py"
    spec = importlib.util.spec_from_file_location("tiny_model", path)
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    del texts

    def turns(messages: Sequence[Message]) -> list[tuple[str, bool]]:
        found = [("<bos>", False)]
        for message in messages:
            found += [(f"<start_of_turn>{message['role']}\n", False)]
            found += [(f"{message['content']}<end_of_turn>", message["role"] == "assistant"), ("\n", False)]
        return found

    return Kind(tiny._tokenizer([tiny.TEXT], 2000, 2048), turns, _byte_level_raw)


def trimming(texts: Sequence[str]) -> Kind:
    """Llama 3's: byte-level BPE whose offsets leave spaces out, and which adds BOS by itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=special, show_progress=False, initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts, trainer)
    template: Any = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|bos|>", eos_token="<|eos|>", chat_template=CHATML
    )

    def turns(messages: Sequence[Message]) -> list[tuple[str, bool]]:
        found = [("<|bos|>", False)]
        for message in messages:
            found += [(f"<|start|>{message['role']}\n\n", False)]
            found += [(f"{message['content']}<|end|>", message["role"] == "assistant")]
        return found

    return Kind(tokenizer, turns, _byte_level_raw)


def falling_back(texts: Sequence[str]) -> Kind:
    """Gemma's: spaces become ▁ and what is not in the vocabulary bytes; the template trims, and refuses a system."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    letters = list("abcdefghijklmnopqrstuvwxyz▁\n.,")
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=letters,
        limit_alphabet=60,
        show_progress=False,
        max_token_length=12,
    )
    bpe.train_from_iterator((word for text in texts for word in re.findall(r"\S+\s?", text.replace(" ", "▁"))), trainer)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=GEMMA
    )

    def turns(messages: Sequence[Message]) -> list[tuple[str, bool]]:
        found = [("<bos>", False)]
        for message in messages:
            is_model = message["role"] == "assistant"
            found += [(f"<start_of_turn>{'model' if is_model else message['role']}\n", False)]
            found += [(f"{message['content'].strip()}<end_of_turn>\n", is_model)]
        return found

    def raw(token: str) -> bytes:
        if byte := re.fullmatch("<0x(..)>", token):
            return bytes.fromhex(byte[1])
        return token.replace("▁", " ").encode()

    return Kind(tokenizer, turns, raw)


KINDS = {"byte level": byte_level, "trimming": trimming, "falling back": falling_back}


def save(kind: Kind, folder: Path) -> Path:
    kind.tokenizer.save_pretrained(folder)
    return folder


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's table of bytes and the characters that stand for them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _byte_level_raw(token: str) -> bytes:
    return bytes(_byte_of()[character] for character in token)
