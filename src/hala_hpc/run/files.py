"""Writes that a kill, a full disk or a second writer cannot spoil, the file server's clock, and publishing.

A shard's output appears under its final name whole, once, and by one worker.
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

from hala_hpc.run import digests
from hala_hpc.run.layout import RunDirectory, make_again


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
        temporary.rename(path)


def write_new(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: whole or not at all. Raises FileExistsError where the name is taken."""
    with _durable(path, data) as temporary:
        path.hardlink_to(temporary)


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
def whole_directory(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``target`` at the end, or nothing at all.

    Raises FileExistsError where ``target`` stands already, also when it came to be meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(f"{target} exists")
    temporary = beside(target)
    temporary.mkdir()
    try:
        yield temporary
        fsync_tree(temporary)
        try:
            temporary.rename(target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(f"{target} exists") from error
            raise
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


def publish(run: RunDirectory, shard: int, temporary: Path) -> bool:
    """Give ``temporary`` the shard's final name, durably. False where another worker was first; ours is then removed.

    A file is linked and a folder renamed to its final name: both fail when the name is taken (a plain rename of a
    file would overwrite), so even two workers that both believe in their lease publish once. Whoever was first swept
    away what others had begun, so a temporary that is gone means the same as a name that is taken.
    """
    output = run.shard_output(shard)
    try:
        won = _publish_folder(temporary, output) if temporary.is_dir() else _publish_file(temporary, output)
    except FileNotFoundError:
        if not output.parent.exists() and temporary.exists():
            make_again(output.parent)
            return publish(run, shard, temporary)
        if not output.exists():
            raise
        won = False
    if won:
        fsync(output.parent)
    return won


def _publish_file(temporary: Path, output: Path) -> bool:
    fsync(temporary)
    try:
        output.hardlink_to(temporary)
        won = True
    except FileExistsError:
        won = output.samefile(temporary)  # a link whose answer was lost on the way (NFS) did succeed
    temporary.unlink(missing_ok=True)
    return won


def _publish_folder(temporary: Path, output: Path) -> bool:
    digests.write(temporary)
    fsync_tree(temporary)
    try:
        temporary.rename(output)
    except OSError:
        if not output.exists():
            raise
        remove_tree(temporary)
        return False
    return True
