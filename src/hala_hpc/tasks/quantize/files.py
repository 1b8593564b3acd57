"""Quantize one weights file at a time, by LLM Compressor's path that needs no model, tensor after tensor.

However large the model, memory holds a few copies of a part of one weight: what stays as it is, is copied by its bytes,
and the place of every result in the file is known before the first is made, from a pass without data.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models.safetensors_file import Tensor
from hala_hpc.tasks.quantize import schemes
from hala_hpc.tasks.quantize.numbers import Weights
from hala_hpc.tasks.quantize.schemes import Scheme

PIECE: Final = 1 << 26
"""Bytes copied or hashed in one go."""
PART: Final = 1 << 25
"""Bytes of a weight that are quantized in one go, about: the library needs ten times as much for it."""
ROWS: Final = 128
"""Parts of a weight are a multiple of it: the side of the largest block that shares a scale, and whole packed words."""
DTYPES: Final = {
    "float64": "F64",
    "int64": "I64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Torch's name of a type to that of safetensors, larger ones first."""

Layout = dict[str, tuple[str, tuple[int, ...], int, int]]
"""By tensor: safetensors' type, shape, first and last byte after the header."""


def quantize_file(
    files: Sequence[Path],
    names: Sequence[str],
    target: Path,
    scheme: Scheme,
    ignore: Sequence[str],
    device: str,
    check_stop: Callable[[], None],
) -> dict[str, Any]:
    """Write ``target``: the tensors ``names`` of the source's ``files``, quantized where they are to be.

    Returns the configuration that belongs into the model's ``config.json`` as ``quantization_config``. ``check_stop``
    is called before each weight. What is half written when it raises is the caller's to remove.
    """
    source = Weights(*files)
    config = configuration(scheme, ignore)
    converter = _converter(config)
    layout = _layout(_as_packed(converter.process(_without_data(source, names)), scheme))
    left = set(layout)
    with target.open("wb") as out:
        start = _write_header(out, layout)
        for group in _groups(names, scheme):
            check_stop()
            if schemes.is_quantized(group[0], ignore):
                left -= _quantize(converter, [source.found[name] for name in group], layout, out, start, device)
            else:
                _copy(source.found[group[0]], out, start + layout[group[0]][2], check_stop)
                left.remove(group[0])
    if left:
        raise RuntimeError(f"{plural(len(left), 'tensor')} not made, e.g. {min(left)}")
    return described(config)


def configuration(scheme: Scheme, ignore: Sequence[str]) -> Any:
    """LLM Compressor's own configuration of a scheme (``QuantizationConfig``)."""
    import torch
    from llmcompressor.entrypoints.model_free.validate import validate_config

    config = validate_config(None, scheme.name, [])
    # The format comes to be known when a first weight is quantized, and a file may have none.
    _converter(config).process({"probe.weight": torch.empty((256, 256), dtype=torch.bfloat16, device="meta")})
    config.ignore = list(ignore)
    return config


def described(config: Any) -> dict[str, Any]:
    """What a model's ``config.json`` says of it."""
    from llmcompressor.entrypoints.model_free.save_utils import (
        COMPRESSION_VERSION_NAME,
        QUANTIZATION_METHOD_NAME,
        TRANSFORM_CONFIG_NAME,
        ct_version,
    )

    told = {
        COMPRESSION_VERSION_NAME: ct_version,
        QUANTIZATION_METHOD_NAME: "compressed-tensors",
        TRANSFORM_CONFIG_NAME: {},
        **_converter(config).update_config(None).model_dump(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(told))
    return plain


def digest(file: Path, check_stop: Callable[[], None]) -> str:
    """As ``tensors.digest_of``, but that it may be stopped: a file of a large model takes half a minute."""
    hashed = hashlib.blake2b(digest_size=16)
    with file.open("rb") as read:
        while piece := read.read(PIECE):
            check_stop()
            hashed.update(piece)
    return hashed.hexdigest()


def _converter(config: Any) -> Any:
    from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter

    return ModelFreePtqConverter(config)


def _groups(names: Sequence[str], scheme: Scheme) -> list[list[str]]:
    """Tensors that have to be quantized together."""
    taken: set[str] = set()
    groups = []
    for name in sorted(names, key=lambda each: not schemes.partners(each, scheme)):
        if name not in taken:
            group = [name, *(other for other in schemes.partners(name, scheme) if other in names)]
            taken.update(group)
            groups.append(group)
    return groups


def _without_data(source: Weights, names: Sequence[str]) -> dict[str, Any]:
    """Tensors that have shape and type, and no memory."""
    import torch

    stored = {name: source.tensor(name) for name in names}
    return {
        name: torch.empty(tensor.shape, dtype=_torch_type(tensor), device="meta") for name, tensor in stored.items()
    }


def _quantize(
    converter: Any, group: Sequence[tuple[Path, Tensor]], layout: Layout, out: BinaryIO, start: int, device: str
) -> set[str]:
    """Write what becomes of some weights to its place; returns the names. Large weights go through in parts."""
    written: dict[str, int] = {}
    for rows in _parts(group, converter):
        loaded = {tensor.name: _load(path, tensor, rows).to(device) for path, tensor in group}
        for name, made in converter.process(loaded).items():
            dtype, shape, begin, _ = layout[name]
            if name.endswith(".weight_shape"):
                made = made.new_tensor(group[0][1].shape)  # it tells that of the part
            if (_type_of(made), tuple(made.shape[1:])) != (dtype, shape[1:]):
                raise RuntimeError(f"{name}: {made.dtype} {tuple(made.shape)}, planned as {dtype} {list(shape)}")
            place = 0 if name.endswith(".weight_shape") else written.get(name, 0)
            out.seek(start + begin + place)
            written[name] = place + out.write(_bytes(made))
    for name, size in written.items():
        if size != layout[name][3] - layout[name][2]:
            raise RuntimeError(f"{name}: {size} bytes were made, planned as {list(layout[name][1])}")
    return set(written)


def _parts(group: Sequence[tuple[Path, Tensor]], converter: Any) -> list[slice]:
    """Rows to quantize at a time: all, where rows share a scale."""
    tensor = group[0][1]
    strategies = {str(scheme.weights.strategy) for scheme in converter.config.config_groups.values()}
    if len(group) > 1 or not strategies <= {"channel", "group", "block"}:
        return [slice(0, None)]
    count = tensor.shape[0]
    step = max(1, PART * count // max(1, tensor.end - tensor.begin) // ROWS) * ROWS
    return [slice(at, min(at + step, count)) for at in range(0, count, step)]


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data


def _type_of(tensor: Any) -> str:
    return DTYPES[str(tensor.dtype).removeprefix("torch.")]


def _as_packed(tensors: dict[str, Any], scheme: Scheme) -> dict[str, Any]:
    """compressed-tensors 0.19 packs zero points, but not where there is no data: one for each scale it says then."""
    import torch

    if scheme.symmetric:
        return tensors
    for name in [name for name in tensors if name.endswith(".weight_zero_point")]:
        rows, groups = tensors[name].shape
        packed = (-(-rows * scheme.bits // 32), groups)
        tensors[name] = torch.empty(packed, dtype=torch.int32, device="meta")
    return tensors


def _layout(tensors: dict[str, Any]) -> Layout:
    """Where each tensor goes: larger types first, so that all are aligned, then by name (as safetensors does)."""
    order = list(DTYPES.values())
    described = {name: (_type_of(tensor), tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()}
    layout: Layout = {}
    end = 0
    for name in sorted(described, key=lambda each: (order.index(described[each][0]), each)):
        dtype, shape, size = described[name]
        layout[name] = (dtype, shape, end, end + size)
        end += size
    return layout


def _write_header(out: BinaryIO, layout: Layout) -> int:
    """Returns where the data begins (huggingface/safetensors, README: the header is padded with spaces)."""
    told: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape, begin, end) in layout.items():
        told[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(told, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    out.write(len(header).to_bytes(8, "little") + header)
    return 8 + len(header)


def _torch_type(tensor: Tensor) -> Any:
    import torch

    by_name = {safe: name for name, safe in DTYPES.items()}
    if tensor.dtype not in by_name:
        raise HalaError(f"{tensor.name}: its type {tensor.dtype} is not known")
    return getattr(torch, by_name[tensor.dtype])


def _load(path: Path, tensor: Tensor, rows: slice) -> Any:
    """Rows of a tensor, in memory of their own: a map of the file would stay there as long as anything of it."""
    import torch

    first, last, _ = rows.indices(tensor.shape[0])
    each = (tensor.end - tensor.begin) // max(1, tensor.shape[0])
    data = bytearray((last - first) * each)
    with path.open("rb", buffering=0) as file:
        file.seek(tensor.begin + first * each)
        view, done = memoryview(data), 0
        while done < len(data):
            if not (count := file.readinto(view[done : done + PIECE])):
                raise OSError(f"{path}: ends before {tensor.name} does")
            done += count
    return torch.frombuffer(data, dtype=_torch_type(tensor)).reshape(last - first, *tensor.shape[1:])


def _copy(found: tuple[Path, Tensor], out: BinaryIO, place: int, check_stop: Callable[[], None]) -> None:
    path, tensor = found
    out.seek(place)
    left = tensor.end - tensor.begin
    with path.open("rb") as file:
        file.seek(tensor.begin)
        while left:
            check_stop()
            piece = file.read(min(PIECE, left))
            if not piece:
                raise OSError(f"{path}: ends before {tensor.name} does")
            out.write(piece)
            left -= len(piece)
