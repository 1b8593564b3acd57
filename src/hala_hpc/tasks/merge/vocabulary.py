"""Models whose vocabularies begin alike: one is padded, or has tokens of its own at the end.

Rows of the embeddings (and of the head) that stand for the same token in every model are merged. The merged model has
as many rows as the model whose tokenizer it gets, and the rows beyond are that model's, unchanged. mergekit is given
the models cut to the rows that they share, so that its methods see tensors of one shape.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.models.location import INDEX
from hala_hpc.models.safetensors_file import Tensor
from hala_hpc.tasks.merge.inputs import EMBEDDINGS, HEAD, Input

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


def find(inputs: Mapping[str, Input], donor: str) -> Vocabulary | None:
    """What the models share; None where all have the same rows for the same tokens.

    Raises HalaError where a token has different numbers in two models: rows would have to change places.
    """
    from tokenizers import Tokenizer

    words = {
        label: Tokenizer.from_file(str(one.folder / "tokenizer.json")).get_vocab() for label, one in inputs.items()
    }
    first, *others = words
    for label in others:
        moved = sorted(
            (token, number) for token, number in words[label].items() if words[first].get(token, number) != number
        )
        if moved:
            raise HalaError(
                f"{label} and {first} cannot be merged: {len(moved)} tokens have other numbers, e.g. {moved[0][0]!r} "
                f"({words[first][moved[0][0]]} and {moved[0][1]})",
                "models of one vocabulary are wanted, but for what is added at its end",
            )
    rows = {label: _rows(one) for label, one in inputs.items()}
    tokens = [{number: token for token, number in vocabulary.items()} for vocabulary in words.values()]
    shared = 0
    while shared < min(rows.values()) and len({vocabulary.get(shared) for vocabulary in tokens}) == 1:
        shared += 1
    if shared == 0:
        raise HalaError("these models share no token", "models of one vocabulary are wanted")
    return None if {shared} == set(rows.values()) else Vocabulary(shared, rows[donor])


def cut(model: Input, vocabulary: Vocabulary, folder: Path) -> Input:
    """The model with the shared rows only: a folder of links to its files, and one file with what is cut."""
    from safetensors.torch import save_file

    size = vocabulary.shared
    cuts = {
        name: (file, replace(tensor, shape=(size, *tensor.shape[1:]), end=tensor.begin + size * _row_bytes(tensor)))
        for name, (file, tensor) in model.tensors.items()
        if has_rows(name)
    }
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():  # of an attempt that was killed
        old.unlink()
    for path in model.folder.iterdir():
        if path.is_file() and path.name not in ("config.json", INDEX):
            (folder / path.name).symlink_to(path.resolve())
    config = with_rows(model.config, size)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    rows = {name: _rows_of(file, name, slice(size)) for name, (file, _) in cuts.items()}
    save_file(rows, folder / CUT, {"format": "pt"})
    places = {name: file.name for name, (file, _) in model.tensors.items()} | dict.fromkeys(cuts, CUT)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    return Input(model.label, folder, config, model.tensors | cuts)


def beyond(donor: Input, name: str, vocabulary: Vocabulary) -> Any:
    """The donor's own rows of a tensor, after the shared ones: a tensor of torch's, of the type it is stored in."""
    return _rows_of(donor.tensors[name][0], name, slice(vocabulary.shared, vocabulary.rows))


def merged_shape(tensor: Tensor, name: str, vocabulary: Vocabulary | None) -> Tensor:
    """The tensor as the merged model has it."""
    if vocabulary is None or not has_rows(name):
        return tensor
    return replace(tensor, shape=(vocabulary.rows, *tensor.shape[1:]))


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A model's configuration for so many rows."""
    changed = {key: with_rows(part, rows) if isinstance(part, dict) else part for key, part in config.items()}
    return changed | ({"vocab_size": rows} if "vocab_size" in config else {})


def _rows(model: Input) -> int:
    for name, (_, tensor) in model.tensors.items():
        if name.endswith(EMBEDDINGS):
            return tensor.shape[0]
    raise HalaError(f"{model.label}: {model.folder} has no {EMBEDDINGS}", "task.vocabulary=same")


def _row_bytes(tensor: Tensor) -> int:
    return (tensor.end - tensor.begin) // tensor.shape[0]


def _rows_of(file: Path, name: str, rows: slice) -> Any:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.get_slice(name)[rows]
