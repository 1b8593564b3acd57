"""Pairs of tiny models to merge, and slerp once more, by numpy alone: nothing here is shared with what is tested."""

import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
NOISE = (0.005, 0.3, 1.0)
"""Of the tuned model's tensors, by turns: nearly the base's (slerp becomes lerp), changed, hardly alike."""


def weights_of(folder: Path) -> dict[str, Numbers]:
    """All tensors of a model's safetensors files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, facts in header.items():
            begin, end = facts["data_offsets"]
            raw: Any = np.frombuffer(data[start + begin : start + end], KINDS[facts["dtype"]])
            if facts["dtype"] == "BF16":
                raw = (raw.astype("<u4") << 16).view("<f4")
            assert name not in found, f"{name} is stored twice"
            found[name] = raw.astype(np.float64).reshape(facts["shape"])
    return found


def bfloat16(numbers: Numbers) -> Numbers:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = numbers.astype("<f4").view("<u4")
    rounded: Any = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    result: Numbers = (rounded.astype("<u4") << 16).view("<f4").astype(np.float64)
    return result


def store(folder: Path, weights: dict[str, Numbers], files: int = 2, dtype: str = "BF16") -> None:
    """Write tensors as a model's weights, in so many files of about the same number of tensors, with an index."""
    for path in folder.glob("model*"):
        path.unlink()
    names = sorted(weights)
    parts = [list(part) for part in np.array_split(np.array(names), files)]
    mapped = {}
    for number, part in enumerate(parts, 1):
        name = "model.safetensors" if files == 1 else f"model-{number:05d}-of-{files:05d}.safetensors"
        _store(folder / name, {tensor: weights[tensor] for tensor in part}, dtype)
        mapped |= dict.fromkeys(part, name)
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))


def _store(path: Path, weights: dict[str, Numbers], dtype: str) -> None:
    header, data = {}, b""
    for name, numbers in weights.items():
        raw: Any = numbers.astype("<f4" if dtype == "BF16" else KINDS[dtype])
        if dtype == "BF16":
            raw = (bfloat16(numbers).astype("<f4").view("<u4") >> 16).astype("<u2")
        begin, data = len(data), data + raw.tobytes()
        header[name] = {"dtype": dtype, "shape": list(numbers.shape), "data_offsets": [begin, len(data)]}
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data)


def configure(folder: Path, **changes: Any) -> None:
    """Change a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pair(model: Path, folder: Path, files: int = 2, dtype: str = "BF16") -> tuple[Path, Path]:
    """A base (the model, rounded) and a model tuned from it, as two folders of ``folder``."""
    weights = weights_of(model)
    tuned = {name: noisy(name, numbers) for name, numbers in weights.items()}
    made = []
    for label, numbers, count in (("base", weights, files), ("tuned", tuned, files + 1)):
        target = folder / label
        shutil.copytree(model, target, ignore=shutil.ignore_patterns("*.safetensors*", "tiny_model.json"))
        configure(target, dtype={"BF16": "bfloat16", "F32": "float32", "F16": "float16"}[dtype])
        store(target, numbers, count, dtype)
        made.append(target)
    return made[0], made[1]


def noisy(name: str, numbers: Numbers) -> Numbers:
    """Numbers as a training might have left them, the same each time."""
    seed = zlib.crc32(name.encode())
    noise = np.random.default_rng(seed).normal(size=numbers.shape) * max(float(numbers.std()), 0.01)
    return numbers + NOISE[seed % len(NOISE)] * noise


def cosine(one: Numbers, other: Numbers) -> float:
    """Of two tensors, as long vectors."""
    return float(np.vdot(one, other) / math.sqrt(np.vdot(one, one)) / math.sqrt(np.vdot(other, other)))


def slerp(t: float, one: Numbers, other: Numbers) -> Numbers:
    """Spherical interpolation of two tensors taken as vectors; linear where they point the same way (0.9995)."""
    alike = cosine(one, other)
    if abs(alike) > 0.9995:
        return (1 - t) * one + t * other
    angle = math.acos(alike)
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)


def off(merged: Numbers, t: float, one: Numbers, other: Numbers) -> float:
    """How far a merged tensor is from slerp, where 1 is all that rounding to bfloat16 and float32 sums may cost."""
    expected = slerp(t, one, other)
    allowed = np.abs(expected) * 2.0**-8 + (np.abs(one) + np.abs(other)) * 1e-5
    return float((np.abs(merged - expected) / np.maximum(allowed, 1e-30)).max())
