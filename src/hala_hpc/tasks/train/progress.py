"""How far a training is, read from its run directory: the ends of a few small files, so that status stays quick."""

import contextlib
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NotRequired, TypedDict, cast

from hala_hpc.run.files import read_json
from hala_hpc.tasks.train import checkpoints, metrics, paths
from hala_hpc.tasks.train.checkpoints import Fallback
from hala_hpc.tasks.train.metrics import StepMetrics

TAIL: Final = 32 * 1024
"""Bytes of the newest metrics that give the rates: some dozens of steps."""
WHOLE: Final = 128 * 1024
"""Metrics of a launch up to this size are read whole for the curve; of longer ones lines are picked, evenly spread."""
PICKED: Final = 200
EVALUATIONS: Final = 8 * 1024 * 1024
"""How far back the last evaluation is searched for."""
WIDTH: Final = 60
"""The width of the curve, in characters."""
BARS: Final = "▁▂▃▄▅▆▇█"
GAP: Final = " "


class Failure(TypedDict):
    """Why a training stopped for good; where its loss did, after which step, and what was in that batch."""

    reason: str
    time: float
    step: NotRequired[int]
    sequences: NotRequired[list[list[int]]]
    rows: NotRequired[list[str]]


@dataclass(frozen=True)
class Progress:
    """The state of a training. Rates are over the last dozens of steps; None is what is not known yet.

    ``phase`` is what the first rank said last: starting, data, forward and backward, optimizer, saving, exporting.
    ``seconds_left`` is to the last step, if it goes on as it does. ``curve`` is the loss from the first step on, in
    block characters. ``checkpoint`` is the step of the newest complete one.
    """

    step: int
    steps: int | None
    phase: str | None
    epoch: float | None
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    eval_loss: float | None
    eval_step: int | None
    tokens_per_second: float | None
    tokens_per_second_per_gpu: float | None
    mfu: float | None
    memory_gb: float | None
    seconds_per_step: float | None
    seconds_left: float | None
    curve: str
    checkpoint: int | None
    checkpoint_age: float | None
    launches: int
    failure: Failure | None
    fallback: Fallback | None


def read(run: Path, now: float | None = None) -> Progress | None:
    """The progress of the training at ``run``; None before it has an order of steps (its data are being prepared).

    ``now``: the file server's time, for ages.
    """
    report = read_json(run / paths.INDEX / "report.json")
    files = metrics.files(run)
    if not report and not files:
        return None
    # Of a launch that has ended no step yet: what the one before did.
    ended = ([line for line in metrics.tail(path, TAIL) if "loss" in line] for path in files[:-3:-1])
    trained = next(filter(None, ended), [])
    last: StepMetrics = trained[-1] if trained else {"step": 0}
    # The first step of a launch compiles and warms up: it counts only if alone.
    timed = trained[1:] or trained
    steps = report["steps"] if report else None
    pace = _pace(trained)
    evaluation = next((line for path in reversed(files) if (line := _last_evaluation(path))), None)
    checkpoint, saved_at = _checkpoint(run)
    return Progress(
        step=last["step"],
        steps=steps,
        phase=_phase(run),
        epoch=last.get("epoch"),
        loss=last.get("loss"),
        grad_norm=last.get("grad_norm"),
        learning_rate=last.get("learning_rate"),
        mfu=last.get("mfu"),
        memory_gb=last.get("memory_gb"),
        eval_loss=evaluation.get("eval_loss") if evaluation else None,
        eval_step=evaluation["step"] if evaluation else None,
        tokens_per_second=metrics.mean_by_time(timed, "tokens_per_second"),
        tokens_per_second_per_gpu=metrics.mean_by_time(timed, "tokens_per_second_per_gpu"),
        seconds_per_step=pace,
        seconds_left=(steps - last["step"]) * pace if steps is not None and pace is not None else None,
        curve=curve(_losses(files), WIDTH),
        checkpoint=checkpoint,
        checkpoint_age=max(0.0, (time.time() if now is None else now) - saved_at) if saved_at is not None else None,
        launches=len(files),
        failure=cast(Failure | None, read_json(run / paths.FAILURE) or None),
        fallback=cast(Fallback | None, read_json(run / paths.CHECKPOINTS / checkpoints.FALLBACK) or None),
    )


def curve(points: Sequence[tuple[int, float]], width: int) -> str:
    """Means of ``(step, value)`` over ``width`` equal parts of the steps, as block characters from least to most."""
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    parts: list[list[float]] = [[] for _ in range(min(width, last - first + 1))]
    for step, value in points:
        parts[(step - first) * len(parts) // (last - first + 1)].append(value)
    means = [sum(part) / len(part) if part else None for part in parts]
    known = [mean for mean in means if mean is not None]
    least, span = min(known), max(known) - min(known)
    top = len(BARS) - 1
    return "".join(GAP if mean is None else BARS[round((mean - least) / span * top) if span else 0] for mean in means)


def _losses(files: Sequence[Path]) -> list[tuple[int, float]]:
    """Losses by step, evenly picked; of a step that was done again, the later one."""
    losses: list[tuple[int, float]] = []
    for path in files:
        points = [(line["step"], loss) for line in _picked(path) if (loss := line.get("loss")) is not None]
        if points:
            losses = [point for point in losses if point[0] < points[0][0]] + points
    return losses


def _picked(path: Path) -> list[StepMetrics]:
    """The first and last lines of a file and some between, evenly spread over its bytes; all of a small one."""
    size = path.stat().st_size
    if size <= WHOLE:
        return metrics.lines(path.read_bytes())
    by_step: dict[int, StepMetrics] = {}
    with path.open("rb") as file:
        for number in range(PICKED):
            file.seek(number * (size - TAIL) // PICKED)
            if number:
                file.readline()  # most likely in the middle of one
            for line in metrics.lines(file.readline() + file.readline()):  # lines may be empty
                by_step[line["step"]] = line
    by_step |= {line["step"]: line for line in metrics.tail(path, TAIL) if "loss" in line}
    return [by_step[step] for step in sorted(by_step)]


def _last_evaluation(path: Path) -> StepMetrics | None:
    """The newest line with an evaluation's loss, searched from the end without parsing what is between."""
    if not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.rfind(b'"eval_loss"', max(0, len(data) - EVALUATIONS))
        if at < 0:
            return None
        end = data.find(b"\n", at)
        lines = metrics.lines(data[data.rfind(b"\n", 0, at) + 1 : end if end >= 0 else len(data)])
    return lines[-1] if lines else None


def _pace(trained: Sequence[StepMetrics]) -> float | None:
    """Seconds from step to step, saves and evaluations included, over the steps given."""
    if not trained:
        return None
    first, last = trained[0], trained[-1]
    if first["step"] == last["step"]:
        return last.get("seconds")
    return (last["time"] - first["time"]) / (last["step"] - first["step"])


def _checkpoint(run: Path) -> tuple[int | None, float | None]:
    """Step of the newest complete checkpoint, and when it was declared complete."""
    folder = run / paths.CHECKPOINTS
    if (step := checkpoints.newest_step(folder)) >= 0:
        with contextlib.suppress(OSError):  # dropped this moment
            return step, (folder / f"{checkpoints.PREFIX}{step}" / checkpoints.MARKER).stat().st_mtime
    return None, None


def _phase(run: Path) -> str | None:
    """What the first rank of the newest launch said last."""
    heartbeats = sorted((run / paths.RANKS).glob("*/0.json"), key=lambda path: path.stat().st_mtime)
    newest = read_json(heartbeats[-1]) if heartbeats else {}
    return str(newest["phase"]) if "phase" in newest else None
