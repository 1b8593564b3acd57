"""Publishing: a shard's output appears under its final name whole, once, and by one worker."""

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hala_hpc.run import digests
from hala_hpc.run.files import fsync, fsync_tree, link, make_again, remove_tree, rename
from hala_hpc.run.layout import RunDirectory

TAKEN: Final = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What a file system says of a folder that is to have a name that is taken."""
Write = Callable[[Path], None]
Again = Callable[[Callable[[], bool]], bool]


def once(do: Callable[[], bool]) -> bool:
    """For storage that is waited for by nobody."""
    return do()


def publish(run: RunDirectory, shard: int, temporary: Path, write: Write | None = None, again: Again = once) -> bool:
    """Give ``temporary`` the shard's final name, durably. False where another worker was first; ours is then removed.

    A file is linked and a folder renamed to its final name: both fail when the name is taken (a plain rename of a
    file would overwrite), so even two workers that both believe in their lease publish once. Whoever was first swept
    away what others had begun, so a temporary that is gone means the same as a name that is taken.

    ``write`` makes the file first, and anew each time that ``again`` tries: after an fsync that failed, what it should
    have written is not on the disk, whatever a second one says.
    """
    output = run.shard_output(shard)

    def name() -> bool:
        if write is not None and not (temporary.exists() and output.exists() and temporary.samefile(output)):
            temporary.unlink(missing_ok=True)
            write(temporary)
        try:
            return _named(run, shard, temporary)
        except FileNotFoundError:
            if write is None:
                raise
            write(temporary)  # swept away by whoever published, which NFS's cache may hide: a link tells
            return _named(run, shard, temporary)

    def make_durable() -> bool:
        fsync(output.parent)  # also another's: what was kept of the shard is dropped next
        return True

    won = again(name)
    again(make_durable)
    return won


def _named(run: RunDirectory, shard: int, temporary: Path) -> bool:
    output = run.shard_output(shard)
    try:
        return _publish_folder(temporary, output) if temporary.is_dir() else _publish_file(temporary, output)
    except FileNotFoundError:
        if not output.parent.exists() and temporary.exists():
            make_again(output.parent)
            return _named(run, shard, temporary)
        if not output.exists():
            raise
        return False


def _publish_file(temporary: Path, output: Path) -> bool:
    fsync(temporary)
    won = link(temporary, output)
    with contextlib.suppress(OSError):  # it stands under its final name; the rest is swept away with what was kept
        temporary.unlink()
    return won


def _publish_folder(temporary: Path, output: Path) -> bool:
    digests.write(temporary)
    fsync_tree(temporary)
    try:
        rename(temporary, output)
    except OSError as error:
        if error.errno not in TAKEN or not output.exists():
            raise
        remove_tree(temporary)
        return False
    return True
