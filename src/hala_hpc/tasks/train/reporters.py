"""Where metrics go besides the run's own files: TensorBoard, and offline Weights & Biases and Trackio."""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from hala_hpc.config.errors import HalaError, did_you_mean

PROJECT = "hala_hpc"
"""The project that a run is filed under."""


class Reporter(Protocol):
    """Takes the scalars of a step."""

    def log(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def check(names: Sequence[str]) -> None:
    """Refuse names that are no reporter's. Whether a package is installed only the work environment knows."""
    for name in names:
        if name not in REPORTERS:
            raise HalaError(f"task.report_to: '{name}' is unknown", did_you_mean(name, REPORTERS))


def start_reporters(run: Path, names: Sequence[str], recipe_name: str) -> list[Reporter]:
    """The reporters of a launch. Raises HalaError for one that is unknown or not installed."""
    check(names)
    return [REPORTERS[name](run, recipe_name) for name in names]


class TensorBoard:
    """Event files in ``RUN/tensorboard``, one per launch."""

    def __init__(self, run: Path, recipe_name: str) -> None:
        del recipe_name
        self._folder = run / "tensorboard"
        self._new = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer: Any = None

    def log(self, step: int, scalars: dict[str, float]) -> None:
        if self._writer is None:  # what an earlier launch wrote of this step and later ones is hidden from the charts
            self._writer = self._new(str(self._folder), purge_step=step, flush_secs=10)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Offline: files in ``RUN/wandb``, for ``wandb sync`` where there is internet."""

    def __init__(self, run: Path, recipe_name: str) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        self._package = _package("wandb", "wandb")
        self._run = self._package.init(project=PROJECT, group=recipe_name, name=recipe_name, dir=str(run))

    def log(self, step: int, scalars: dict[str, float]) -> None:
        # As a chart's axis, not wandb's own step, which may not go back after a resume.
        self._run.log({**scalars, "step": step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A database in ``RUN/trackio``, for ``trackio show``."""

    def __init__(self, run: Path, recipe_name: str) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run / "trackio"))
        self._package = _package("trackio", "trackio")
        self._package.init(project=PROJECT, name=recipe_name, resume="allow", embed=False)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._package.log(scalars, step=step)

    def close(self) -> None:
        self._package.finish()


REPORTERS: dict[str, Callable[[Path, str], Reporter]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""By the name that ``task.report_to`` has."""


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"install {name} in the work environment, or leave it out"
        raise HalaError(f"task.report_to: the package {name} is missing ({error})", hint) from error
