"""Serves a file system from memory, and notes each change: ``python -m tests.faultfs.server MOUNT JOURNAL``.

Two hidden names in the root are for the tests. What is written to ``.mark`` goes into the journal, in its place among
the changes. What is written to ``.faults`` are the faults from now on, a JSON list of ``Fault``.
"""

import base64
import errno
import json
import os
import re
import stat
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mfusepy

from tests.faultfs import FAULTS, MARK

NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
"""Of utimensat(2), in the place of nanoseconds."""
WRITES = ("write", "create", "mkdir", "link", "unlink", "rmdir", "rename", "truncate", "chmod", "utimens")


@dataclass
class Fault:
    """Operations (``*``: all) on paths that match fail with an error, or wait first; ``times``: only so often."""

    ops: list[str]
    error: str = ""
    path: str = ""
    times: int = -1
    hang: float = 0.0

    def meets(self, op: str, path: str) -> bool:
        is_meant = op in self.ops or "*" in self.ops or (op in WRITES and "writes" in self.ops)
        return self.times != 0 and is_meant and re.search(self.path, path) is not None


@dataclass
class Node:
    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, "Node"] = field(default_factory=dict)
    links: int = 1
    mtime: int = field(default_factory=time.time_ns)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class FaultFS(mfusepy.Operations):
    """One thread serves all, so an operation that hangs stops the file system for everybody."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True

    def __init__(self, journal: Path) -> None:
        self._journal = journal.open("w", buffering=1)
        self._root = Node(1, stat.S_IFDIR | 0o755)
        self._last = 1
        self._open: dict[int, tuple[Node, str]] = {}
        self._handle = 0
        self._faults: list[Fault] = []

    # --- the machinery ---------------------------------------------------------------------------------------------

    def _note(self, op: str, *what: Any) -> None:
        self._journal.write(json.dumps([op, *what]) + "\n")

    def _fail(self, op: str, path: str) -> None:
        for fault in self._faults:
            if fault.meets(op, path):
                fault.times -= 1
                time.sleep(fault.hang)
                if fault.error:
                    raise mfusepy.FuseOSError(getattr(errno, fault.error))

    def _node(self, path: str) -> Node:
        node = self._root
        for part in path.strip("/").split("/") if path != "/" else ():
            if not node.is_folder:
                raise mfusepy.FuseOSError(errno.ENOTDIR)
            if part not in node.entries:
                raise mfusepy.FuseOSError(errno.ENOENT)
            node = node.entries[part]
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        parent, _, name = path.rpartition("/")
        return self._node(parent or "/"), name

    def _new(self, op: str, path: str, mode: int) -> Node:
        self._fail(op, path)
        parent, name = self._place(path)
        if name in parent.entries:
            raise mfusepy.FuseOSError(errno.EEXIST)
        self._last += 1
        node = parent.entries[name] = Node(self._last, mode)
        parent.mtime = time.time_ns()
        self._note(op, node.number, parent.number, name, mode)
        return node

    def _handle_of(self, node: Node, path: str) -> int:
        self._handle += 1
        self._open[self._handle] = node, path
        return self._handle

    # --- files -----------------------------------------------------------------------------------------------------

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        if path in (f"/{MARK}", f"/{FAULTS}"):
            return self._handle_of(Node(0, stat.S_IFREG | 0o600), path)
        return self._handle_of(self._new("create", path, stat.S_IFREG | mode), path)

    def open(self, path: str, flags: int) -> int:
        self._fail("open", path)
        return self._handle_of(self._node(path), path)

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        node, at = self._open[fh]
        self._fail("read", at)
        return bytes(node.data[offset : offset + size])

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        node, at = self._open[fh]
        if at == f"/{MARK}":
            self._note("mark", json.loads(data))
            return len(data)
        if at == f"/{FAULTS}":
            self._faults = [Fault(**fault) for fault in json.loads(data)]
            return len(data)
        self._fail("write", at)
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.mtime = time.time_ns()
        self._note("write", node.number, offset, base64.b64encode(data).decode())
        return len(data)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        node, at = self._open[fh] if fh is not None else (self._node(str(path)), str(path))
        self._fail("truncate", at)
        node.data[length:] = bytes(max(0, length - len(node.data)))
        self._note("truncate", node.number, length)
        return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        node, at = self._open[fh]
        self._fail("fsync", at)
        self._note("fsync", node.number)
        return 0

    def release(self, path: str | None, fh: int) -> int:
        del self._open[fh]
        return 0

    # --- folders ---------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> int:
        self._new("mkdir", path, stat.S_IFDIR | mode)
        return 0

    def opendir(self, path: str) -> int:
        self._fail("opendir", path)
        return self._handle_of(self._node(path), path)

    def readdir(self, path: str | None, fh: int) -> Any:
        node, at = self._open[fh]
        self._fail("readdir", at)
        for name, entry in list(node.entries.items()):
            yield name, {"st_ino": entry.number, "st_mode": entry.mode}, 0

    def releasedir(self, path: str | None, fh: int) -> int:
        return self.release(path, fh)

    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        return self.fsync(path, datasync, fh)

    def link(self, target: str, source: str) -> int:
        self._fail("link", target)
        node, (parent, name) = self._node(source), self._place(target)
        if name in parent.entries:
            raise mfusepy.FuseOSError(errno.EEXIST)
        parent.entries[name] = node
        node.links += 1
        self._note("link", node.number, parent.number, name)
        return 0

    def unlink(self, path: str) -> int:
        self._fail("unlink", path)
        parent, name = self._place(path)
        self._node(path).links -= 1
        del parent.entries[name]
        self._note("unlink", parent.number, name)
        return 0

    def rmdir(self, path: str) -> int:
        self._fail("rmdir", path)
        parent, name = self._place(path)
        if self._node(path).entries:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        del parent.entries[name]
        self._note("unlink", parent.number, name)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._fail("rename", new)
        node, (parent, name), (target, new_name) = self._node(old), self._place(old), self._place(new)
        if (there := target.entries.get(new_name)) is not None:
            if there.is_folder and there.entries:
                raise mfusepy.FuseOSError(errno.ENOTEMPTY)
            if there.is_folder != node.is_folder:
                raise mfusepy.FuseOSError(errno.EISDIR if there.is_folder else errno.ENOTDIR)
            if there is node:
                return 0
            there.links -= 1
        del parent.entries[name]
        target.entries[new_name] = node
        self._note("rename", parent.number, name, target.number, new_name, node.number)
        return 0

    # --- attributes ------------------------------------------------------------------------------------------------

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        node, at = self._open[fh] if fh else (None, str(path))
        if node is None or node.number:
            self._fail("getattr", at)
        node = node or self._node(at)
        blocks = -(-len(node.data) // 512)
        owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.mtime)
        about = {"st_mode": node.mode, "st_ino": node.number, "st_nlink": node.links}
        return about | owner | times | {"st_size": len(node.data), "st_blocks": blocks}

    def chmod(self, path: str | None, mode: int) -> int:
        self._fail("chmod", str(path))
        node = self._node(str(path))
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        self._note("chmod", node.number, node.mode)
        return 0

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> int:
        self._fail("utimens", str(path))
        if times is None or times[1] != OMIT:
            is_now = times is None or times[1] == NOW
            self._node(str(path)).mtime = time.time_ns() if is_now or times is None else times[1]
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bfree": 1 << 20, "f_bavail": 1 << 20}


def main(mount: str, journal: str) -> None:
    mfusepy.FUSE(
        FaultFS(Path(journal)),
        mount,
        foreground=True,
        nothreads=True,
        use_ino=True,
        hard_remove=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
