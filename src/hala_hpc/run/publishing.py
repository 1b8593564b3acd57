"""Publishing: a shard's output appears under its final name whole, once, and by one worker."""

from pathlib import Path

from hala_hpc.run import digests
from hala_hpc.run.files import fsync, fsync_tree, link, make_again, remove_tree, rename
from hala_hpc.run.layout import RunDirectory


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
    won = link(temporary, output)
    temporary.unlink(missing_ok=True)
    return won


def _publish_folder(temporary: Path, output: Path) -> bool:
    digests.write(temporary)
    fsync_tree(temporary)
    try:
        rename(temporary, output)
    except OSError:
        if not output.exists():
            raise
        remove_tree(temporary)
        return False
    return True
