"""Which models can be merged, known before anything is merged: from headers and configurations, without torch.

Models whose vocabularies begin alike, one padded or with tokens of its own at the end, are merged in the rows that they
share. The merged model has as many rows as the model whose tokenizer it gets, and the rows beyond are that model's,
unchanged. mergekit gets the models cut to the shared rows, so that its methods see tensors of one shape.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.config.errors import HalaError, plural, within
from hala_hpc.models import location
from hala_hpc.models.folder import require_files
from hala_hpc.models.location import INDEX
from hala_hpc.models.safetensors_file import Tensor, pieces
from hala_hpc.run.files import remove

BASE: Final = "base"
"""Label of the recipe's model."""
FLOATS: Final = ("BF16", "F16", "F32", "F64")
WHOLE: Final = ("I64", "I32", "I16", "BOOL")
"""Types of buffers, which no merge changes. Eight bits are left out: those are quantized weights."""
QUANTIZED: Final = ("quantization_config", "compression_config")
QUANTIZED_FILES: Final = ("quantize_config.json", "hf_quant_config.json", "quant_config.json")
HEAD: Final = "lm_head.weight"
EMBEDDINGS: Final = "embed_tokens.weight"
SAME: Final = (
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "tie_word_embeddings", "layer_types", "sliding_window", "hidden_act",
    "hidden_activation", "rms_norm_eps", "layer_norm_eps", "norm_eps", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "conv_L_cache", "num_local_experts",
    "num_experts_per_tok",
)  # fmt: skip
"""Keys of the configuration that say what the weights are for. A key that only one of two models has is not compared:
transformers' versions write more or fewer."""
SHARED: Final = "if one vocabulary is only padded or added to at its end: task.vocabulary=shared"
SAMPLE: Final = " 1. A sample:\n\n\tnaïve «نصٌّ عربيّ» 12,345 Euskaraz ñ ▁ \u00a0 🙂 def f(x): return x**2\n"
"""Spaces, scripts, digits, code: where tokenizers of one vocabulary still differ."""


class ModelEntry(TypedDict):
    """A model in the plan of a merge. ``of``: its key in the recipe; ``digest``: of its files (``location.digest``)."""

    folder: str
    name: str
    revision: str | None
    of: str
    digest: str


class MergeItem(TypedDict):
    """A shard's entry in the plan: one merge. ``cell``: what varies; ``config``: mergekit's, with labels for models."""

    name: str
    method: str
    cell: Mapping[str, Any]
    models: dict[str, ModelEntry]
    config: Mapping[str, Any]
    files_from: str
    device: str
    seed: int
    vocabulary: NotRequired[dict[str, int]]


@dataclass(frozen=True)
class Input:
    """A model as the plan sees it: its configuration and, by name, its tensors."""

    label: str
    folder: Path
    config: Mapping[str, Any]
    tensors: dict[str, Tensor]

    def files(self) -> list[Path]:
        """The files that hold its weights."""
        return sorted({tensor.path for tensor in self.tensors.values()})

    def bytes(self) -> int:
        """The size of all weights."""
        return sum(tensor.size for tensor in self.tensors.values())


def read(label: str, folder: Path) -> Input:
    """A model that can be merged. Raises HalaError for a quantized one, one with files missing or cut short."""
    config = location.config(folder)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    signs = [key for key in QUANTIZED if any(part.get(key) for part in parts)]
    signs += [name for name in QUANTIZED_FILES if (folder / name).is_file()]
    if signs:
        raise _quantized(label, folder, signs[0])
    require_files(label, folder)
    with within(label):
        files = location.weights(folder)
    tensors = {tensor.name: tensor for of_file in files.values() for tensor in of_file}
    if strange := next((tensor for tensor in tensors.values() if tensor.dtype not in (*FLOATS, *WHOLE)), None):
        raise _quantized(label, folder, f"{strange.name} of type {strange.dtype}")
    return Input(label, folder, config, tensors)


def refuse_unlike(base: Input, other: Input, same_vocabulary: bool = True) -> None:
    """Raises HalaError, with the reason, for two models whose tensors cannot be merged one by one.

    ``same_vocabulary`` False: the number of rows of embeddings and head may differ (see ``shared_vocabulary``).
    """
    where = f"{other.label} and {base.label} cannot be merged"
    free = () if same_vocabulary else ("vocab_size",)
    if difference := next(_unlike_configs(base.config, other.config, free), None):
        raise HalaError(f"{where}: {difference}", "the models must be of one architecture and one size")
    for model, partner in ((base, other), (other, base)):
        alone = [name for name in model.tensors if name not in partner.tensors and not _is_copied_head(model, name)]
        if alone:
            raise HalaError(f"{where}: {plural(len(alone), 'tensor')} in {model.label} only, e.g. {alone[0]}")
    for name, tensor in base.tensors.items():
        shape = other.tensors.get(name, tensor).shape
        free_rows = not same_vocabulary and has_rows(name)
        if shape[free_rows:] != tensor.shape[free_rows:]:
            raise HalaError(
                f"{where}: {name} is {_by(tensor.shape)} in {base.label}, {_by(shape)} in {other.label}", SHARED
            )
    if difference := _unlike_tokenizers(base, other, same_vocabulary):
        raise HalaError(f"{where}: {difference}", SHARED)


def tensors_to_merge(base: Input, others: Mapping[str, Input]) -> dict[str, Tensor]:
    """The merged model's tensors in the base's order, without a head that only some models store, as a copy."""
    return {
        name: base.tensors[name] for name in base.tensors if all(name in other.tensors for other in others.values())
    }


def _unlike_configs(base: Mapping[str, Any], other: Mapping[str, Any], free: Sequence[str]) -> Iterator[str]:
    pairs = [(key, base.get(key), other.get(key)) for key in SAME if key not in free]
    rotations = _rotation(base), _rotation(other)
    pairs += [(f"rope {key}", *(rotation[key] for rotation in rotations)) for key in ("theta", "type", "factor")]
    for key, mine, theirs in pairs:
        if mine is not None and theirs is not None and mine != theirs:
            yield f"{key} is {mine} and {theirs}"


def _rotation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary embeddings, as transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters) write them."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {
        "theta": scaling.get("rope_theta", config.get("rope_theta")),
        "type": scaling.get("rope_type", scaling.get("type", "default")),
        "factor": scaling.get("factor"),
    }


def _is_copied_head(model: Input, name: str) -> bool:
    """Whether this is a tied head that was stored once more, as some trainers do: byte for byte the embeddings."""
    embeddings = next((other for other in model.tensors if other.endswith(EMBEDDINGS)), None)
    if not name.endswith(HEAD) or embeddings is None:
        return False
    head, table = model.tensors[name], model.tensors[embeddings]
    if (head.dtype, head.shape) != (table.dtype, table.shape):
        return False
    return all(of_head == of_table for of_head, of_table in zip(pieces(head), pieces(table), strict=True))


def _unlike_tokenizers(base: Input, other: Input, same_vocabulary: bool) -> str:
    tokenizers = [_tokenizer(base), _tokenizer(other)]
    words, others = (tokenizer.get_vocab() for tokenizer in tokenizers)
    if same_vocabulary and words != others:
        apart = sorted(words.items() ^ others.items(), key=lambda word: (word[1], word[0]))
        return (
            f"different vocabularies: {len({word for word, _ in apart})} of {len(words)} and {len(others)} tokens "
            f"differ, e.g. {apart[0][0]!r} (id {apart[0][1]})"
        )
    ids = [tokenizer.encode(SAMPLE, add_special_tokens=False).ids for tokenizer in tokenizers]
    return "" if ids[0] == ids[1] else "their tokenizers cut the same text into different tokens"


def _tokenizer(model: Input) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(model.folder / "tokenizer.json"))


def _quantized(label: str, folder: Path, what: str) -> HalaError:
    return HalaError(
        f"{label}: {folder} is quantized ({what}): its scales would be lost", "merge first, then quantize the result"
    )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


CUT: Final = "vocabulary.safetensors"
"""Beside links to a model's own files: its embeddings and head, cut."""


@dataclass(frozen=True)
class Vocabulary:
    """``shared`` rows are merged, those from there to ``rows`` are the donor's."""

    shared: int
    rows: int


def has_rows(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return name.endswith((EMBEDDINGS, HEAD))


def shared_vocabulary(inputs: Mapping[str, Input], donor: str) -> Vocabulary | None:
    """The rows that the models share; None where all have the same rows for the same tokens.

    Raises HalaError where a token has different numbers in two models: rows would have to change places.
    """
    words = {label: _tokenizer(model).get_vocab() for label, model in inputs.items()}
    first, *others = words
    for label in others:
        moved = sorted(
            (token, number) for token, number in words[label].items() if words[first].get(token, number) != number
        )
        if moved:
            raise HalaError(
                f"{label} and {first} cannot be merged: {len(moved)} tokens have other numbers, e.g. {moved[0][0]!r} "
                f"({words[first][moved[0][0]]} and {moved[0][1]})",
                "the models must share a vocabulary, but for what is added at its end",
            )
    rows = {label: _rows(model) for label, model in inputs.items()}
    tokens = [{number: token for token, number in vocabulary.items()} for vocabulary in words.values()]
    shared = 0
    while shared < min(rows.values()) and len({vocabulary.get(shared) for vocabulary in tokens}) == 1:
        shared += 1
    if shared == 0:
        raise HalaError("these models share no token", "the models must share a vocabulary")
    return None if {shared} == set(rows.values()) else Vocabulary(shared, rows[donor])


def cut(model: Input, vocabulary: Vocabulary, folder: Path) -> Input:
    """The model with the shared rows only: a folder of links to its files, and one file with what is cut."""
    from safetensors.torch import save_file

    size = vocabulary.shared
    cuts = {
        name: replace(tensor, shape=(size, *tensor.shape[1:]), end=tensor.begin + tensor.size // tensor.shape[0] * size)
        for name, tensor in model.tensors.items()
        if has_rows(name)
    }
    remove(folder)  # of an attempt that was killed
    folder.mkdir(parents=True)
    for path in model.folder.iterdir():
        if path.is_file() and path.name not in ("config.json", INDEX):
            (folder / path.name).symlink_to(path.resolve())
    config = with_rows(model.config, size)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    rows = {name: _rows_of(tensor, slice(size)) for name, tensor in cuts.items()}
    save_file(rows, folder / CUT, {"format": "pt"})
    places = {name: tensor.path.name for name, tensor in model.tensors.items()} | dict.fromkeys(cuts, CUT)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    return Input(model.label, folder, config, model.tensors | cuts)


def rows_beyond(donor: Input | None, name: str, vocabulary: Vocabulary | None) -> Any:
    """The donor's own rows of a tensor, after the shared ones; None where there are none.

    A tensor of torch's, of the type it is stored in.
    """
    if donor is None or vocabulary is None or not has_rows(name) or vocabulary.rows <= vocabulary.shared:
        return None
    return _rows_of(donor.tensors[name], slice(vocabulary.shared, vocabulary.rows))


def merged_shape(tensor: Tensor, vocabulary: Vocabulary | None) -> Tensor:
    """The tensor as the merged model has it."""
    if vocabulary is None or not has_rows(tensor.name):
        return tensor
    return replace(tensor, shape=(vocabulary.rows, *tensor.shape[1:]))


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A model's configuration for so many rows."""
    changed = {key: with_rows(part, rows) if isinstance(part, dict) else part for key, part in config.items()}
    return changed | ({"vocab_size": rows} if "vocab_size" in config else {})


def _rows(model: Input) -> int:
    for name, tensor in model.tensors.items():
        if name.endswith(EMBEDDINGS):
            return tensor.shape[0]
    raise HalaError(f"{model.label}: {model.folder} has no {EMBEDDINGS}", "task.vocabulary=same")


def _rows_of(tensor: Tensor, rows: slice) -> Any:
    from safetensors import safe_open

    with safe_open(tensor.path, "pt") as opened:
        return opened.get_slice(tensor.name)[rows]
