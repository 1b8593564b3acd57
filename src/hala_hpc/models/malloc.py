"""Memory that is freed is given back: glibc keeps what it thinks will be wanted again."""

import contextlib
import ctypes
from typing import Final

M_MMAP_THRESHOLD: Final = -3
"""Of mallopt(3): from how many bytes on a piece of memory is one of its own."""


def free_at_once(pieces: int) -> None:
    """Have glibc return pieces of so many bytes and more when they are freed, in this process and from now on.

    Kept, those of tensors added up to 0.6 GB by chance, merging and quantizing a model with files of 0.63 GB. Each
    costs two system calls and fresh pages then, so ``pieces`` should be as large as memory allows: with those of slerp
    a merge took 38 s, without 22 s (measured).
    """
    with contextlib.suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, pieces)
