"""The one model that a worker has loaded: it is the plan's, byte for byte, or there is none."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.engines import vllm
from hala_hpc.models import location
from hala_hpc.tasks.evaluate.scorer import Scorer

KINDS: Final = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""Files that decide what a model says; a card may change at any time."""


class Loaded:
    """Keeps an engine as long as the same model is asked for."""

    def __init__(self, options: vllm.Options, scratch: str | None, stall_seconds: float) -> None:
        self._how = (options, scratch, stall_seconds)
        self._scorer: Scorer | None = None
        self._weights = ""

    def scorer(self, path: Path, weights: str, check_stop: Callable[[], None], tell: Callable[[str], None]) -> Scorer:
        """An engine with the model in ``path`` whose digest is ``weights``.

        Raises HalaError where the files are others, or were written over while they were loaded.
        """
        if self._scorer is not None and self._weights == weights:
            return self._scorer
        self.close()
        tell("reading the weights")
        before = _stamps(path)
        changed = HalaError(
            f"{path} has changed since the run was planned", "plan another run: no score fits two models"
        )
        if location.digest(path, lambda _: check_stop()) != weights:
            raise changed
        tell("starting the engine")
        began = time.monotonic()
        self._scorer = Scorer(path, *self._how)
        tell(f"the engine took {time.monotonic() - began:.0f} s to start")
        if not before.items() <= _stamps(path).items():
            raise changed
        self._weights = weights
        check_stop()
        return self._scorer

    def close(self) -> None:
        """Free the device."""
        scorer, self._scorer, self._weights = self._scorer, None, ""
        if scorer is not None:
            scorer.close()


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times by name; links of the hub's cache are followed."""
    found = {file.name: file.stat() for file in folder.iterdir() if file.suffix in KINDS}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}
