"""Imports of heavy libraries, which bring a million objects that live as long as the process."""

import atexit
import contextlib
import gc
import sys
from collections.abc import Iterator
from functools import cache


@contextlib.contextmanager
def heavy_imports(*hidden: str) -> Iterator[None]:
    """Import torch, transformers or vLLM inside: the garbage collector rests, and never sees their objects again.

    Else it goes over all of them while they come, whenever a library collects by itself (vLLM does at its start and at
    its end, half a second each time), and once more when Python ends. ``hidden`` are packages that must seem not to be
    there meanwhile: what a library imports where it finds it, and we do not use.

    Seconds of a core, before and after: vLLM on the CPU with a tiny model from start to end 23.5 and 17, the imports
    of a training's rank 10.2 and 7.5, of LightEval 14.6 and 10.5, of transformers' models 7.8 and 5.4.
    """
    _freeze_at_end()
    was_enabled, before = gc.isenabled(), len(sys.modules)
    absent = [name for name in hidden if name not in sys.modules]
    gc.disable()
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: Python's sign for "not to be imported"
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
        if len(sys.modules) > before:  # else what is garbage by now would stay for ever, at each call
            gc.freeze()
        if was_enabled:
            gc.enable()


@cache
def _freeze_at_end() -> None:
    """What is registered first is called last, so libraries' own ends come before: vLLM's thaws the objects."""
    atexit.register(gc.freeze)
