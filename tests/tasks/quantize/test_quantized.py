"""The oracle of quantized files: what numpy quantized by the book passes, and nothing else does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hala_hpc.models.safetensors_file import Tensor
from hala_hpc.tasks.quantize import schemes
from tests.tasks.quantize.oracle import numbers, quantized
from tests.tasks.quantize.oracle.numbers import FP4, float8, unpacked

Tensors = dict[str, tuple[str, Any]]
NAME = "model.layers.0.mlp.up_proj.weight"
MODULE = NAME.removesuffix("weight")
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def store(path: Path, tensors: Tensors) -> Path:
    """A safetensors file; larger types first."""
    header, data = {}, b""
    for name, (dtype, values) in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize):
        raw = np.ascontiguousarray(values).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data)
    return path


def bfloat16(values: Any) -> Any:
    """Bits of the nearest bfloat16."""
    bits = values.astype("f4").view("u4").astype("u8")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def back(bits: Any) -> Any:
    return (bits.astype("u4") << 16).view("f4").astype("f8")


def nearest(values: Any, table: Any) -> Any:
    """Places in a table of numbers."""
    order = np.argsort(table, kind="stable")
    ranked = table[order]
    above = np.clip(np.searchsorted(ranked, values), 1, len(ranked) - 1)
    closer = np.where(values - ranked[above - 1] <= ranked[above] - values, above - 1, above)
    return order[closer]


def source(rows: int = 130, columns: int = 256) -> Tensors:
    draw = np.random.default_rng(0)
    weight = draw.normal(0, 0.05, (rows, columns)) * np.exp(draw.normal(0, 1, (rows, 1)))
    found = {NAME: weight, NORM: draw.normal(1, 0.1, 64), HEAD: draw.normal(0, 1, (8, 64))}
    return {name: ("BF16", bfloat16(values)) for name, values in found.items()}


def kept(tensors: Tensors) -> Tensors:
    return {name: tensors[name] for name in (NORM, HEAD)}


def fp8(tensors: Tensors) -> Tensors:
    weight = back(tensors[NAME][1])
    scales = bfloat16(np.abs(weight).max(1, keepdims=True) / 448)
    table = float8()[:255]  # the last positive and the last of all are no numbers
    table[127] = np.inf
    places = nearest(np.clip(weight / back(scales), -448, 448), np.where(np.isfinite(table), table, 1e9))
    return kept(tensors) | {NAME: ("F8_E4M3", places.astype("u1")), f"{NAME}_scale": ("BF16", scales)}


def int8(tensors: Tensors) -> Tensors:
    weight = back(tensors[NAME][1])
    scales = bfloat16(np.abs(weight).max(1, keepdims=True) / 127.5)
    steps = np.clip(np.rint(weight / back(scales)), -128, 127).astype("i1")
    return kept(tensors) | {NAME: ("I8", steps), f"{NAME}_scale": ("BF16", scales)}


def int4(tensors: Tensors) -> Tensors:
    weight = back(tensors[NAME][1])
    rows, columns = weight.shape
    grouped = weight.reshape(rows, -1, 128)
    scales = bfloat16(np.abs(grouped).max(-1) / 7.5)
    steps = np.clip(np.rint(grouped / back(scales)[:, :, None]), -8, 7).reshape(rows, columns) + 8
    halves = steps.astype("u8").reshape(rows, -1, 8)
    words = (halves << (4 * np.arange(8, dtype="u8"))).sum(-1).astype("<u4").view("<i4")
    return kept(tensors) | {
        f"{MODULE}weight_packed": ("I32", words),
        f"{MODULE}weight_scale": ("BF16", scales),
        f"{MODULE}weight_shape": ("I64", np.array([rows, columns])),
    }


MADE = {"FP8_DYNAMIC": fp8, "W8A8": int8, "W4A16": int4}


def problems(
    folder: Path, before: Tensors, after: Tensors, scheme: str = "FP8_DYNAMIC", is_rounded: bool = True
) -> str:
    one, other = store(folder / "before.safetensors", before), store(folder / "after.safetensors", after)
    names, ignore = list(before), schemes.ignored({})
    found = quantized.compare([one], [other], names, schemes.find(scheme), ignore, is_rounded)
    return "; ".join(quantized.faults(found))


@pytest.mark.parametrize("scheme", MADE)
def test_what_is_quantized_by_the_book_passes(tmp_path: Path, scheme: str) -> None:
    assert problems(tmp_path, source(), MADE[scheme](source()), scheme) == ""
    report = quantized.compare(
        [tmp_path / "before.safetensors"], [tmp_path / "after.safetensors"], [NAME], schemes.find(scheme), [HEAD]
    )[0]
    assert report.worst is not None and 0.5 < report.worst <= 1
    assert report.error is not None and 0 < report.error < {"FP8_DYNAMIC": 0.03, "W8A8": 0.02, "W4A16": 0.15}[scheme]


def changed(name: str, change: Callable[[Any], Any], dtype: str | None = None) -> Callable[[Tensors], Tensors]:
    """Another content of one tensor."""

    def apply(tensors: Tensors) -> Tensors:
        kind, values = tensors[name]
        return tensors | {name: (dtype or kind, change(values.copy()))}

    return apply


def put(place: tuple[int, ...], value: Any) -> Callable[[Any], Any]:
    def apply(values: Any) -> Any:
        values[place] = value
        return values

    return apply


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


SCALE = f"{NAME}_scale"
HARMS = {
    "a number that is another": (changed(NAME, lambda found: put((3, 4), found[3, 4] ^ 0x80)(found)), "as far off"),
    "no number": (changed(NAME, put((129, 255), 0x7F)), "1 of its numbers are none"),
    "another scale": (changed(SCALE, put((5, 0), bfloat16(np.array([1.0]))[0])), "1 scales do not fit"),
    "a scale below zero": (
        changed(SCALE, lambda found: put((5, 0), found[5, 0] | 0x8000)(found)),
        "no positive number",
    ),
    "a scale of none": (changed(SCALE, put((5, 0), 0x7FC0)), "no positive number"),
    "scales of a row": (changed(SCALE, lambda found: found.T), "weight_scale is BF16 [1, 130], not"),
    "weights on their side": (changed(NAME, lambda found: found.T), "weight is F8_E4M3 [256, 130], not"),
    "not quantized": (lambda tensors: tensors | {NAME: source()[NAME]}, "weight is BF16 [130, 256], not F8_E4M3"),
    "no scale": (without(SCALE), "weight_scale is missing"),
    "no weight": (without(NAME), "weight is missing"),
    "no norm": (without(NORM), "model.norm.weight: is missing"),
    "another norm": (changed(NORM, put((63,), 0)), "left out of quantizing, yet not the source's"),
    "a head of another type": (changed(HEAD, lambda found: found, "F16"), "yet not the source's"),
    "one too many": (lambda tensors: tensors | {"model.extra.weight": tensors[NORM]}, "the source has no such tensor"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_wrong_is_told(tmp_path: Path, harm: str) -> None:
    apply, told = HARMS[harm]
    assert told in problems(tmp_path, source(), apply(fp8(source())))


def test_all_rows_of_a_large_weight_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "BLOCK_ELEMENTS", 1000)
    for scheme, make in MADE.items():
        assert problems(tmp_path, source(), make(source()), scheme) == ""
    assert "as far off" in problems(tmp_path, source(), changed(NAME, put((129, 0), 0x7E))(fp8(source())))


def test_other_rounding_is_let_pass_where_it_is_meant(tmp_path: Path) -> None:
    """GPTQ moves numbers by a step to make up for others."""
    moved = changed(NAME, lambda found: put((3, 4), found[3, 4] - np.sign(found[3, 4]) * 2)(found))(int8(source()))
    assert "as far off" in problems(tmp_path, source(), moved, "W8A8")
    assert problems(tmp_path, source(), moved, "W8A8", is_rounded=False) == ""


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = store(tmp_path / "a", source())
    scheme = schemes.find("W8A8")

    def told(other: Path) -> list[str]:
        return quantized.problems_of(lambda: quantized.compare([whole], [other], [NAME], scheme, []))

    assert "cannot be compared" in told(tmp_path / "b")[0]
    (tmp_path / "b").write_bytes(whole.read_bytes()[:-1])
    assert "cannot be compared" in told(tmp_path / "b")[0]


def test_the_numbers_of_small_types() -> None:
    table = float8()
    assert (table[0x01], table[0x08], table[0x38], table[0x7E], table[0xFE]) == (2.0**-9, 2.0**-6, 1.0, 448.0, -448.0)
    assert np.isnan(table[[0x7F, 0xFF]]).all() and np.isfinite(np.delete(table, [0x7F, 0xFF])).all()
    assert FP4[7] == 6.0
    bits = np.array([[0b1011_0000_0111_1000]], "<i4")  # from the lowest: 8, 7, 0, 11
    assert unpacked(bits, 4, 4).tolist() == [[0.0, -1.0, -8.0, 3.0]]
    three = np.array([sum(value << 3 * place for place, value in enumerate([0, 7, 3, 4, 1]))], "<i4")[None]
    assert unpacked(three, 3, 5).tolist() == [[-4.0, 3.0, -1.0, 0.0, -3.0]]


def test_which_tensors_are_quantized() -> None:
    lfm2 = schemes.ignored({"model_type": "lfm2"})
    stay = [
        "lm_head.weight", "language_model.lm_head.weight", "model.embed_tokens.weight", "model.norm.weight",
        "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_layernorm.weight",
        "model.layers.0.conv.conv.weight", "model.layers.0.mlp.gate.weight", "model.layers.0.self_attn.q_proj.bias",
    ]  # fmt: skip
    become = ["model.layers.0.conv.in_proj.weight", "model.layers.0.mlp.gate_proj.weight", NAME]
    assert not [name for name in stay if schemes.is_quantized(name, lfm2)]
    assert all(schemes.is_quantized(name, lfm2) for name in become)
    assert schemes.is_quantized("model.layers.0.conv.conv.weight", schemes.ignored({"model_type": "llama"}))
    experts = Tensor("model.layers.0.mlp.experts.gate_up_proj", "BF16", (4, 8, 16), 0, 1024)
    assert "taken apart" in schemes.misfits([experts], schemes.find("W8A8"), lfm2)[0]
