"""What a training measures: one JSON line per optimizer step, and the same for TensorBoard and others."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Required, TypedDict, Unpack

from hala_hpc.config.errors import HalaError, did_you_mean, known
from hala_hpc.run.files import fsync
from hala_hpc.worker import tracking
from hala_hpc.worker.tracking import PROJECT, Reporter, Reporters, is_number, package_of


class StepMetrics(TypedDict, total=False):
    """What is written of a step, or of an evaluation after it (``eval_loss`` alone). Seconds, and unix time."""

    step: Required[int]
    time: float
    launch: int
    loss: float | None
    eval_loss: float | None
    grad_norm: float | None
    learning_rate: float
    epoch: float | None
    tokens: int
    useful_tokens: int
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    mfu: float | None
    memory_gb: float
    seconds: float
    phases: dict[str, float]


def check(names: Sequence[str]) -> None:
    """Refuse names of unknown reporters. Whether a package is installed only the work environment knows."""
    for name in names:
        if name not in REPORTERS:
            raise HalaError(f"task.report_to: '{name}' is unknown", did_you_mean(name, REPORTERS))


def _tensorboard(run: Path, _: str) -> Reporter:
    """Event files in ``RUN/tensorboard``, one per launch."""
    new = package_of("torch.utils.tensorboard", "tensorboard", "task.report_to").SummaryWriter
    writers: list[Any] = []

    def log(step: int, scalars: dict[str, float]) -> None:
        if not writers:  # what an earlier launch wrote of this step and later ones is hidden from the charts
            writers.append(new(str(run / "tensorboard"), purge_step=step, flush_secs=10))
        for name, value in scalars.items():
            writers[0].add_scalar(name, value, step)

    def close() -> None:
        for writer in writers:
            writer.close()

    return Reporter(log, close)


def _wandb(run: Path, recipe_name: str) -> Reporter:
    """Offline: files in ``RUN/wandb``, for ``wandb sync`` where there is internet."""
    os.environ.setdefault("WANDB_MODE", "offline")
    opened = package_of("wandb", "wandb", "task.report_to").init(
        project=PROJECT, group=recipe_name, name=recipe_name, dir=str(run)
    )
    # The step as a chart's axis, not wandb's own step, which may not go back after a resume.
    return Reporter(lambda step, scalars: opened.log({**scalars, "step": step}), opened.finish)


def _trackio(run: Path, recipe_name: str) -> Reporter:
    return tracking.trackio(run, recipe_name, recipe_name, PROJECT, "task.report_to")


REPORTERS: Final[Mapping[str, Callable[[Path, str], Reporter]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""By the name that ``task.report_to`` has. Ours, not those of transformers.integrations: an error in one of theirs ends
the training, and they do not purge steps that are done again."""


FOLDER: Final = "training/metrics"
"""In the run directory."""
LAUNCH: Final = "launch"
"""Key of every line: the number of the launch that wrote it, counted from 0. File times are lost by copying."""


def file_of(run: Path, launch: str) -> Path:
    """The lines of one launch."""
    return run / FOLDER / f"{launch}.jsonl"


class Writer:
    """Rank 0's metrics of one launch. Nothing that fails here ends a training: a full disk leaves a gap."""

    def __init__(
        self,
        run: Path,
        launch: str,
        report_to: Sequence[str],
        recipe_name: str,
        tracked: Mapping[str, Reporter] = MappingProxyType({}),
    ) -> None:
        """``launch``: unique, safe as a file name; ``tracked``: reporters that `run.track` asks for.

        Raises HalaError for a reporter that is not installed.
        """
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._number = sum(1 for _ in folder.glob("*.jsonl"))
        named = {name: REPORTERS[name](run, recipe_name) for name in report_to if name not in tracked}
        self._reporters = Reporters(named | dict(tracked))
        self._descriptor = os.open(file_of(run, launch), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._is_torn = False
        fsync(folder)

    def write(self, **line: Unpack[StepMetrics]) -> None:
        """Append one line; ``time`` is added where it is missing. Numbers that are not finite become null."""
        plain = _plain({"time": round(time.time(), 3), **line, LAUNCH: self._number})
        data = b"\n" * self._is_torn + json.dumps(plain, ensure_ascii=False).encode() + b"\n"
        self._is_torn = True  # a line that broke off (full disk) must not swallow the one after it
        with contextlib.suppress(OSError):
            self._is_torn = os.write(self._descriptor, data) < len(data)
        self._reporters.log(line["step"], scalars(line))

    def close(self) -> None:
        os.close(self._descriptor)
        self._reporters.close()


def read(run: Path) -> list[StepMetrics]:
    """Every step's line, by step, an evaluation merged into the line of its step."""
    merged: dict[int, StepMetrics] = {}
    for path in files(run):
        by_step: dict[int, StepMetrics] = {}
        for line in lines(path.read_bytes()):
            # An evaluation's own time must not replace that of its step.
            by_step[line["step"]] = line | by_step.get(line["step"], line)
        if trained := [step for step, line in by_step.items() if "loss" in line]:
            merged = {step: line for step, line in merged.items() if step < min(trained)}
        for step, line in by_step.items():
            merged[step] = merged.get(step, line) | line
    return [merged[step] for step in sorted(merged)]


def files(run: Path) -> list[Path]:
    """The files of all launches, in the order of the launches."""
    return sorted((run / FOLDER).glob("*.jsonl"), key=lambda path: (_launch_of(path), path.stat().st_mtime))


def lines(data: bytes) -> list[StepMetrics]:
    """The whole lines in ``data``; torn ones are passed over."""
    whole: list[StepMetrics] = []
    for raw in data.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                whole.append(line)  # type: ignore[arg-type]
    return whole


def tail(path: Path, most: int) -> list[StepMetrics]:
    """The whole lines in the last so many bytes of a file."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return lines(file.read())


def mean_by_time(steps: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """The mean of a number over steps, each step weighed by its seconds; null and missing numbers are left out."""
    pairs = [(line[key], line["seconds"]) for line in steps if is_finite(line.get(key)) and line.get("seconds")]
    seconds = sum(weight for _, weight in pairs)
    return float(sum(value * weight for value, weight in pairs) / seconds) if seconds else None


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by the names that charts have: ``train/loss``, ``eval/loss``, ``phases/data``."""
    numbers: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            numbers |= {f"{key}/{name}": float(inner) for name, inner in value.items() if is_number(inner)}
        elif is_number(value) and key not in ("step", "time", LAUNCH):
            group, name = ("eval", key.removeprefix("eval_")) if key.startswith("eval_") else ("train", key)
            numbers[f"{group}/{name}"] = float(value)
    return numbers


def _launch_of(path: Path) -> int:
    with path.open("rb") as file:
        opening = lines(file.read(4096))
    return opening[0].get(LAUNCH, 0) if opening else 0


def is_finite(value: Any) -> bool:
    """Whether a value of a line is a number that can be drawn and averaged."""
    return is_number(value) and math.isfinite(value)


def _plain(value: Any) -> Any:
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else known(value)
