"""submitit's pickles, of which only our own are loaded: reading one runs what is in it.

In a run that a group shares, others can put files into its folder of logs. So a pickle is loaded only where this user
owns it and nobody else may write to it. It is looked at and read through one descriptor: what was looked at is read.
"""

import os
import pickle
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError

OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def load(filename: str | Path) -> Any:
    """The object in a pickle of ours. Raises HalaError for anybody else's."""
    descriptor = os.open(filename, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        owner, mode = _ours(Path(filename).parent)
        if not stat.S_ISREG(about.st_mode):
            raise HalaError(f"{filename}: not a file")
        if about.st_uid != owner:
            raise HalaError(f"{filename}: belongs to user {about.st_uid}, and loading it would run what is in it")
        if about.st_mode & OTHERS_WRITE & ~mode:
            raise HalaError(f"{filename}: others may write to it, and loading it would run what is in it")
        return pickle.load(file)


def dump(obj: Any, filename: str | Path) -> None:
    """Write a pickle that ``load`` takes."""
    import cloudpickle  # type: ignore[import-untyped]

    descriptor = os.open(filename, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        cloudpickle.dump(obj, file, pickle.HIGHEST_PROTOCOL)


def _ours(folder: Path) -> tuple[int, int]:
    """Owner and mode of a file that we make and close to others: some file systems map users, or know no modes."""
    probe = folder / f".owner.{secrets.token_hex(6)}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.geteuid(), 0
    try:
        about = os.fstat(descriptor)
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
    return about.st_uid, about.st_mode


def guard() -> None:
    """Let submitit, in this process, load and write pickles by these two."""
    from submitit.core import utils

    utils.pickle_load = load
    utils.cloudpickle_dump = dump
