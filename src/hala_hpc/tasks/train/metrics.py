"""What a training measures of itself: one JSON line per optimizer step, and the same for TensorBoard and others."""

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.run.files import fsync

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


FOLDER: Final = "training/metrics"
"""In the run directory."""
LAUNCH: Final = "launch"
"""Key of every line: the number of the launch that wrote it, counted from 0. File times are lost by copying."""


class Writer:
    """Rank 0's metrics of one launch. Nothing that fails here ends a training: a full disk leaves a gap."""

    def __init__(self, run: Path, launch: str, report_to: Sequence[str], recipe_name: str) -> None:
        """``launch``: unique, safe as a file name. Raises HalaError for a reporter that is unknown or not installed."""
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._number = sum(1 for _ in folder.glob("*.jsonl"))
        self._reporters: list[Reporter] = start_reporters(run, report_to, recipe_name)
        self._descriptor = os.open(folder / f"{launch}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._is_torn = False
        fsync(folder)

    def write(self, **line: Any) -> None:
        """Append one line; ``step`` is needed, ``time`` is added. Numbers that are none (NaN) become null."""
        plain = _plain({"time": round(time.time(), 3), **line, LAUNCH: self._number})
        data = b"\n" * self._is_torn + json.dumps(plain, ensure_ascii=False).encode() + b"\n"
        self._is_torn = True  # a line that broke off (full disk) must not swallow the one after it
        with contextlib.suppress(OSError):
            self._is_torn = os.write(self._descriptor, data) < len(data)
        self._report(lambda reporter: reporter.log(int(line["step"]), scalars(line)))

    def close(self) -> None:
        os.close(self._descriptor)
        self._report(lambda reporter: reporter.close())

    def _report(self, act: Callable[[Reporter], None]) -> None:
        for reporter in list(self._reporters):
            try:
                act(reporter)
            except Exception as error:  # noqa: BLE001  charts are others' code, and never worth a training
                sys.stderr.write(f"hala: no more {type(reporter).__name__}: {type(error).__name__}: {error}\n")
                self._reporters.remove(reporter)


def read(run: Path) -> list[dict[str, Any]]:
    """Every step's line, by step, an evaluation merged into the line of its step."""
    merged: dict[int, dict[str, Any]] = {}
    for path in files(run):
        mine: dict[int, dict[str, Any]] = {}
        for line in lines(path.read_bytes()):
            # An evaluation's own time must not replace that of its step.
            mine[line["step"]] = line | mine.get(line["step"], {})
        if trained := [step for step, line in mine.items() if "loss" in line]:
            merged = {step: line for step, line in merged.items() if step < min(trained)}
        for step, line in mine.items():
            merged[step] = merged.get(step, {}) | line
    return [merged[step] for step in sorted(merged)]


def files(run: Path) -> list[Path]:
    """The files of all launches, in the order of the launches."""
    return sorted((run / FOLDER).glob("*.jsonl"), key=lambda path: (_launch_of(path), path.stat().st_mtime))


def lines(data: bytes) -> list[dict[str, Any]]:
    """The whole lines in ``data``; torn ones are passed over."""
    found = []
    for raw in data.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
    return found


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by the names that charts have: ``train/loss``, ``eval/loss``, ``phases/data``."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= {f"{key}/{name}": float(inner) for name, inner in value.items() if _is_number(inner)}
        elif _is_number(value) and key not in ("step", "time", LAUNCH):
            group, name = ("eval", key.removeprefix("eval_")) if key.startswith("eval_") else ("train", key)
            found[f"{group}/{name}"] = float(value)
    return found


def _launch_of(path: Path) -> int:
    with path.open("rb") as file:
        opening = lines(file.read(4096))
    return int(opening[0].get(LAUNCH, 0)) if opening else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
