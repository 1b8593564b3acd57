"""Writes that a kill, a power cut, a full disk or a second writer cannot spoil, and the file server's clock.

A power cut leaves for sure only what was fsynced: a file's bytes by an fsync of it; its name, and that of each folder
above it, by an fsync of the folder that it stands in.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def share(is_shared: bool) -> None:
    """Let what this process and those that it starts make be written by its group, too; where not, leave it as it is.

    What others may do stays as the user's own umask says.
    """
    if is_shared:
        os.umask(os.umask(0o077) & ~0o070)


def keep_group(folder: Path) -> None:
    """Let all that is made in a folder, by whomever, belong to the group that the folder belongs to."""
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_ISGID)


def fsync(path: Path) -> None:
    """Make the bytes of a file durable, whoever wrote them, or the names (links, renames, unlinks) in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably. Raises FileExistsError where a file is in the way."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing or [folder]):
        _make(place)


def make_again(folder: Path) -> None:
    """Make a folder that lies two below a run's and may have been purged, durably.

    Raises FileNotFoundError where the whole run was removed: nobody wants it back.
    """
    _make(folder.parent)
    _make(folder)


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        with contextlib.suppress(PermissionError):  # where others' names are not ours to read, ours cannot be synced
            fsync(folder.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing or cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: whole or not at all."""
    with _durable(path, data) as temporary:
        rename(temporary, path)


def write_new(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: whole or not at all. Raises FileExistsError where the name is taken."""
    with _durable(path, data) as temporary:
        if not link(temporary, path):
            raise FileExistsError(f"{path} exists")


@contextmanager
def _durable(path: Path, data: bytes) -> Iterator[Path]:
    """A durable file beside ``path``, to be given that name; afterwards the name is durable too."""
    temporary = beside(path)
    try:
        temporary.write_bytes(data)
        fsync(temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def beside(path: Path) -> Path:
    """A hidden name next to ``path`` that nobody else has: process ids repeat on other hosts and in containers."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def meant_by(name: str) -> str:
    """The name that a name of ``beside`` stands next to; any other name as it is."""
    return re.sub(r"\A\.(.+)\.[0-9a-f]{12}\.tmp\Z", r"\1", name, flags=re.DOTALL)


def link(source: Path, target: Path) -> bool:
    """Give a file a second name. False where the name is taken by another.

    What counts is what is there, not the answer: NFS sends a call again whose answer was lost, and the second then
    finds the name that the first had made.
    """
    number = source.stat().st_ino
    try:
        target.hardlink_to(source)
    except OSError as error:
        if _number(target) == number:
            return True
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def rename(source: Path, target: Path) -> None:
    """Rename; as with ``link``, an answer that says otherwise does not count where it was done."""
    number = source.stat().st_ino
    try:
        source.rename(target)
    except OSError:
        if _number(target) != number:
            raise


def _number(path: Path) -> int | None:
    """The file's own number, whatever its name; None where there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # perhaps since this moment
        return None


def now_in(folder: Path) -> float:
    """The file server's time, by a file that is made and removed; this host's where the folder may only be read."""
    probe = beside(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def link_read_only(source: Path, target: Path) -> bool:
    """Give a file a second name, and close it to writing: who edits one in place would change the other.

    False where the file system has no links, or will not make one.
    """
    try:
        os.link(source, target)
    except OSError:
        return False
    with contextlib.suppress(OSError):  # another user's file is closed to us as it is
        source.chmod(source.stat().st_mode & ~0o222)
    return True


def link_or_copy(source: Path, target: Path, least: int = 0) -> bool:
    """Give a file of ``least`` bytes or more a second name, closed to writing, or copy it. True where it was linked."""
    if source.stat().st_size >= least and link_read_only(source, target):
        return True
    shutil.copyfile(source, target)
    return False


def fsync_tree(path: Path) -> None:
    """Make every file and folder below ``path`` durable."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))


@contextmanager
def whole_directory(target: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` at the end, or nothing at all.

    Raises FileExistsError where ``target`` stands already, also when it came to be meanwhile. ``replace``: what stands
    there gives way once the new one is whole; a kill between the two leaves it under a hidden name.
    """
    make_folders(target.parent)
    if target.exists() and not replace:
        raise FileExistsError(f"{target} exists")
    temporary = beside(target)
    temporary.mkdir()
    try:
        yield temporary
        fsync_tree(temporary)
        old = beside(target)
        if replace and target.exists():
            rename(target, old)
        try:
            rename(temporary, target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(f"{target} exists") from error
            if old.exists():
                rename(old, target)
            raise
        remove_tree(old)
    except BaseException:
        remove_tree(temporary)
        raise
    fsync(target.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; what is gone already does not matter."""
    shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder; what is gone already does not matter."""
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def touched_now(path: Path) -> float:
    """Touch ``path`` and return the file server's idea of now (seconds since 1970).

    Ages are differences of such times, so a worker whose own clock is wrong neither loses nor steals a lease.
    """
    os.utime(path)
    return path.stat().st_mtime
