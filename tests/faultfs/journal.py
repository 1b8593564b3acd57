"""What a disk may hold after a power cut, by the journal of the file system.

POSIX promises that bytes are there after an fsync of their file, and names after an fsync of their folder; nothing
else, and no order of what is in between. So of everything that was not synced a cut keeps nothing, all, or what a seed
draws: any subset of the names that were made, moved or removed, and of each file's writes a beginning, the last one
torn or read back as zeros.
"""

import base64
import json
import os
import random
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = 1
FORGET, KEEP = 0, 1
"""Seeds of the cuts that keep nothing and all of what was not synced; any other draws."""
DOWN_SECONDS = 3600.0
"""So old is everything when the power is back."""
Operation = list[Any]
Name = tuple[int, str]


def read(path: Path) -> list[Operation]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass
class _File:
    mode: int
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)


@dataclass
class Disk:
    """A disk and what it has not yet on its platters, after some operations. ``marks``: what was said until then."""

    files: dict[int, _File] = field(default_factory=dict)
    folders: dict[int, int] = field(default_factory=lambda: {ROOT: stat.S_IFDIR | 0o755})
    durable: dict[Name, int | None] = field(default_factory=dict)
    pending: list[dict[Name, int | None]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)

    def do(self, operation: Operation) -> None:
        """The next operation of the journal."""
        match operation:
            case ["create", number, parent, name, mode]:
                self.files[number] = _File(mode)
                self.pending.append({(parent, name): number})
            case ["mkdir", number, parent, name, mode]:
                self.folders[number] = mode
                self.pending.append({(parent, name): number})
            case ["link", number, parent, name]:
                self.pending.append({(parent, name): number})
            case ["unlink", parent, name]:
                self.pending.append({(parent, name): None})
            case ["rename", parent, name, target, new, number]:
                self.pending.append({(parent, name): None, (target, new): number})
            case ["write" | "truncate", number, *_]:
                self.files[number].pending.append(operation)
            case ["chmod", number, mode]:
                if number in self.files:
                    self.files[number].mode = mode
                else:
                    self.folders[number] = mode
            case ["fsync", number] if number in self.files:
                file = self.files[number]
                file.durable, file.pending = _written(file, len(file.pending)), []
            case ["fsync", folder]:
                self._sync_names(folder)
            case ["mark", mark]:
                self.marks.append(mark)
            case _:
                raise ValueError(f"unknown operation {operation}")

    def _sync_names(self, folder: int) -> None:
        synced = [change for change in self.pending if any(parent == folder for parent, _ in change)]
        for change in synced:
            self.durable |= change
        names = {name for change in synced for name in change}
        self.pending = [change for change in self.pending if not names & change.keys()]

    def after_cut(self, seed: int) -> "Image":
        """One of the states that the disk may be in when the power is back."""
        chance = random.Random(seed)
        likely = {FORGET: 0.0, KEEP: 1.0}.get(seed, chance.choice((0.2, 0.5, 0.8)))
        names = dict(self.durable)
        for change in self.pending:
            if chance.random() < likely:
                names |= change
        contents = {}
        for number, file in self.files.items():
            count = sum(chance.random() < likely for _ in file.pending)
            torn = chance.random() if seed not in (FORGET, KEEP) else None
            contents[number] = bytes(_written(file, count, torn, zeros=chance.random() < 0.3))
        tree: dict[int, dict[str, int]] = {}
        for (parent, name), number in names.items():
            if number is not None:
                tree.setdefault(parent, {})[name] = number
        modes = self.folders | {number: file.mode for number, file in self.files.items()}
        return Image(tree, contents, modes)


@dataclass(frozen=True)
class Image:
    """A disk as it is read after a cut: the names of each folder, bytes, modes."""

    tree: dict[int, dict[str, int]]
    contents: dict[int, bytes]
    modes: dict[int, int]

    def write(self, target: Path) -> None:
        """Write it to a real folder, which must not be there, as the machine finds it later."""
        places: dict[int, Path] = {}
        folders = [(ROOT, target)]
        target.mkdir()
        for number, place in folders:
            for name, entry in self.tree.get(number, {}).items():
                path = place / name
                if entry not in self.contents:
                    path.mkdir()
                    folders.append((entry, path))
                elif entry in places:
                    path.hardlink_to(places[entry])
                else:
                    places[entry] = path
                    path.write_bytes(self.contents[entry])
                    path.chmod(stat.S_IMODE(self.modes[entry]))
        for number, place in reversed(folders):
            place.chmod(stat.S_IMODE(self.modes[number]))
        then = places[min(places)].stat().st_mtime - DOWN_SECONDS if places else 0.0
        for path in [*places.values(), *(place for _, place in folders)]:
            os.utime(path, (then, then))

    def key(self) -> int:
        """Equal images have the same."""
        used = {entry for names in self.tree.values() for entry in names.values()}
        names = frozenset((parent, *item) for parent, entries in self.tree.items() for item in entries.items())
        return hash((names, frozenset((number, self.contents[number]) for number in used & self.contents.keys())))


def _written(file: _File, count: int, torn: float | None = None, zeros: bool = False) -> bytearray:
    """A file's bytes after so many of the writes that are not synced; of the one after that a torn part."""
    data = bytearray(file.durable)
    for at, operation in enumerate(file.pending[: count + (torn is not None)]):
        if operation[0] == "truncate":
            length = operation[2]
            data[length:] = bytes(max(0, length - len(data)))
            continue
        _, _, offset, encoded = operation
        new = base64.b64decode(encoded)
        if at == count and torn is not None:
            new = bytes(len(new)) if zeros else new[: int(torn * len(new))]
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(new)] = new
    return data


def boundaries(operations: Sequence[Operation]) -> list[int]:
    """After how many operations the power may be cut. A mark is no change."""
    return [at + 1 for at, operation in enumerate(operations) if operation[0] != "mark"]


def disks(operations: Sequence[Operation], where: Collection[int]) -> Iterator[tuple[int, Disk]]:
    """The disk after so many operations, for each of ``where``, in order; it changes as one goes on."""
    disk = Disk()
    for at, operation in enumerate(operations, 1):
        disk.do(operation)
        if at in where:
            yield at, disk
