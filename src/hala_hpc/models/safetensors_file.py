"""Safetensors files, read by their headers and as plain bytes with numpy alone; and as torch's tensors."""

import contextlib
import ctypes
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import plural

CHUNK: Final = 1 << 24
"""Bytes looked at in one go: whole elements of every type."""
EXPONENTS: Final = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F8_E4M3": ("<u1", 0x7F),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E8M0": ("<u1", 0xFF),
}
"""By safetensors' name of a type: how to read it as integers, and the bits that are all set in NaN and infinity."""
BYTES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1} | {
    name: 1 for name in EXPONENTS if name.startswith("F8")
}

M_MMAP_THRESHOLD: Final = -3
"""The option of mallopt(3) for the size from which pieces of memory are mapped by themselves."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the safetensors file ``path``; ``begin`` and ``end`` are offsets in the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    path: Path = Path()

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.begin


class Unreadable(ValueError):
    """A weights file that is not a whole safetensors file."""


@contextmanager
def open_tensors(*paths: Path) -> Iterator[Mapping[str, Any]]:
    """Some safetensors files, open, by the names of their tensors: ``[name].get_tensor(name)`` maps one as torch's."""
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118 (it is no mapping)


def tensors_of(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file, by its header. Raises Unreadable where header and file do not agree.

    The format (huggingface/safetensors, README): 8 bytes of header length, little-endian; the header, JSON; the data,
    which the tensors' offsets must cover without gap or overlap.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise Unreadable("no safetensors header")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise Unreadable(f"header is not JSON: {error}") from error
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = []
    for name, facts in header.items():
        begin, end = facts["data_offsets"]
        tensors.append(Tensor(name, facts["dtype"], tuple(facts["shape"]), start + begin, start + end, path))
    tensors.sort(key=lambda tensor: tensor.begin)
    following = start
    for tensor in tensors:
        elements = math.prod(tensor.shape)
        if tensor.begin != following or tensor.size != elements * BYTES.get(tensor.dtype, 0):
            raise Unreadable(f"{tensor.name}: bytes {tensor.begin} to {tensor.end} do not hold its shape")
        following = tensor.end
    if following != size:
        raise Unreadable(f"{size} bytes, its header describes {following}")
    return tensors


def not_finite(tensors: Iterable[Tensor]) -> Iterator[str]:
    """Names of the tensors with a NaN or an infinity."""
    for tensor in tensors:
        if not all(_is_finite(piece, tensor.dtype) for piece in pieces(tensor)):
            yield tensor.name


def digest_of_finite(path: Path) -> str:
    """``digest_of`` a safetensors file whose weights are all finite, in one read.

    Raises Unreadable for what is not a whole safetensors file, and where a weight is a NaN or an infinity.
    """
    tensors, hashed = tensors_of(path), hashlib.blake2b(digest_size=16)
    faulty = set()
    with path.open("rb") as file:
        hashed.update(file.read(tensors[0].begin if tensors else -1))
    for tensor in tensors:  # in the order of their bytes, which leave no gap
        for piece in pieces(tensor):
            hashed.update(piece)
            if not _is_finite(piece, tensor.dtype):
                faulty.add(tensor.name)
    if faulty:
        raise Unreadable(f"NaN or infinity in {plural(len(faulty), 'tensor')}, e.g. {min(faulty)}")
    return hashed.hexdigest()


def pieces(tensor: Tensor) -> Iterator[bytes]:
    """The bytes of a tensor, CHUNK at a time. Raises Unreadable where its file ends before."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.begin)
        for at in range(0, tensor.size, CHUNK):
            piece = file.read(size := min(CHUNK, tensor.size - at))
            if len(piece) < size:
                raise Unreadable(f"{tensor.name}: the file ends in it")
            yield piece


def _is_finite(piece: bytes, dtype: str) -> bool:
    import numpy as np

    if dtype not in EXPONENTS:
        return True
    kind, mask = EXPONENTS[dtype]
    bits = np.frombuffer(piece, kind)
    return not bool(((bits & np.asarray(mask, kind)) == mask).any())


def free_at_once(pieces: int) -> None:
    """Have glibc return pieces of so many bytes and more when they are freed, in this process and from now on.

    Otherwise it keeps what it may need again: the pieces of tensors added up to 0.6 GB by chance, merging and
    quantizing a model with files of 0.63 GB. Each returned piece costs two system calls and fresh pages, so ``pieces``
    should be as large as memory allows: with those of slerp a merge took 38 s, without 22 s (measured).
    """
    with contextlib.suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, pieces)
