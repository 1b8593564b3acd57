"""Write the weights of a model tensor by tensor, in any order, straight to their places: memory holds one of them."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models.location import INDEX
from hala_hpc.models.safetensors_file import BYTES

ALIGNMENT: Final = 8
"""Of the data behind a safetensors header (the format's own; its writer pads with spaces)."""


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: its file's name, and from which byte on how many."""

    file: str
    begin: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]


class Writer:
    """Makes the files of a model with room for each tensor, then takes the tensors one by one.

    Parameters
    ----------
    folder : which exists; the files' names must be free.
    files : by file name, what it holds: name, type (safetensors' name of it) and shape of each tensor.
    """

    def __init__(self, folder: Path, files: Mapping[str, Sequence[tuple[str, str, tuple[int, ...]]]]) -> None:
        self._folder = folder
        self._open: dict[str, int] = {}
        self._places: dict[str, Place] = {}
        self._waiting: set[str] = set()
        for name, tensors in files.items():
            self._make(name, tensors)
        self._waiting |= self._places.keys()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def place(self, name: str) -> Place:
        """Where a tensor goes. Raises KeyError for one that was not announced."""
        return self._places[name]

    def write(self, name: str, data: Any) -> None:
        """Put one tensor in its place. ``data``: a C-contiguous buffer of its bytes.

        Raises HalaError where it has another length than announced.
        """
        place = self._places[name]
        rest = memoryview(data).cast("B")
        if len(rest) != place.bytes:
            raise HalaError(f"{name}: {len(rest)} bytes were made, where {place.bytes} were announced")
        at = place.begin
        while rest:
            written = os.pwrite(self._open[place.file], rest, at)
            rest, at = rest[written:], at + written
        self._waiting.discard(name)

    def finish(self) -> None:
        """Write the index, where there are several files. Raises HalaError where a tensor was not written."""
        if self._waiting:
            raise HalaError(f"{plural(len(self._waiting), 'tensor')} not made, e.g. {min(self._waiting)}")
        if len(self._open) > 1:
            size = sum(place.bytes for place in self._places.values())
            index = {
                "metadata": {"total_size": size},
                "weight_map": {name: place.file for name, place in sorted(self._places.items())},
            }
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def _make(self, name: str, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, dtype, shape in tensors:
            begin, end = end, end + math.prod(shape) * BYTES[dtype]
            header[tensor] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        told = json.dumps(header, separators=(",", ":")).encode()
        told += b" " * (-len(told) % ALIGNMENT)
        data = 8 + len(told)
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._open[name] = descriptor
        os.write(descriptor, len(told).to_bytes(8, "little") + told)
        os.truncate(descriptor, data + end)
        for tensor, dtype, shape in tensors:
            begin, end = header[tensor]["data_offsets"]
            self._places[tensor] = Place(name, data + begin, end - begin, dtype, shape)
