"""How far a training is, read from its run directory: the ends of a few small files, so that status stays quick."""

import contextlib
import json
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.tasks.train import metrics, paths
from hala_hpc.tasks.train.checkpoint import checkpoints

TAIL: Final = 32 * 1024
"""Bytes of the newest metrics that rates are taken over: some dozens of steps."""
WHOLE: Final = 128 * 1024
"""Metrics of a launch up to this size are read whole for the curve; of longer ones lines are picked, evenly spread."""
PICKED: Final = 200
EVALUATIONS: Final = 8 * 1024 * 1024
"""So far back is looked for the last evaluation."""
WIDTH: Final = 60
"""Of the curve, in characters."""
BARS: Final = "▁▂▃▄▅▆▇█"
GAP: Final = " "


@dataclass(frozen=True)
class Progress:
    """The state of a training. Rates are over the last dozens of steps; None is what is not known yet.

    ``phase`` is what the first rank said last: starting, data, forward and backward, optimizer, saving, exporting.
    ``seconds_left`` is to the last step, if it goes on as it does. ``curve`` is the loss from the first step on, in
    block characters. ``checkpoint`` is the step of the newest complete one. ``failure`` tells why it stopped for good,
    ``fallback`` after which step it last had to go on because newer checkpoints were damaged.
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
    failure: dict[str, Any] | None
    fallback: dict[str, Any] | None


def read(run: Path, now: float | None = None) -> Progress | None:
    """The progress of the training at ``run``; None before it has an order of steps (its data are being prepared).

    ``now``: the file server's time, for ages.
    """
    report = _json(run / paths.INDEX / "report.json")
    files = metrics.files(run)
    if report is None and not files:
        return None
    newest = _tail(files[-1], TAIL) if files else []
    trained = [line for line in newest if "loss" in line]
    if not trained and len(files) > 1:  # a launch that has ended no step yet: what the one before did
        trained = [line for line in _tail(files[-2], TAIL) if "loss" in line]
    last: dict[str, Any] = trained[-1] if trained else {}
    steps = report["steps"] if report else None
    pace = _pace(trained)
    evaluation = next((found for path in reversed(files) if (found := _last_evaluation(path))), {})
    checkpoint, saved_at = _checkpoint(run)
    return Progress(
        step=last.get("step", 0),
        steps=steps,
        phase=_phase(run),
        **{key: last.get(key) for key in ("epoch", "loss", "grad_norm", "learning_rate", "mfu", "memory_gb")},
        eval_loss=evaluation.get("eval_loss"),
        eval_step=evaluation.get("step"),
        tokens_per_second=_rate(trained, "tokens_per_second"),
        tokens_per_second_per_gpu=_rate(trained, "tokens_per_second_per_gpu"),
        seconds_per_step=pace,
        seconds_left=(steps - last.get("step", 0)) * pace if steps is not None and pace is not None else None,
        curve=curve(_losses(files), WIDTH),
        checkpoint=checkpoint,
        checkpoint_age=max(0.0, (time.time() if now is None else now) - saved_at) if saved_at is not None else None,
        launches=len(files),
        failure=_json(run / paths.FAILURE),
        fallback=_json(run / paths.CHECKPOINTS / checkpoints.FALLBACK),
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
    found: list[tuple[int, float]] = []
    for path in files:
        points = [(line["step"], line["loss"]) for line in _picked(path) if line.get("loss") is not None]
        if points:
            found = [point for point in found if point[0] < points[0][0]] + points
    return found


def _picked(path: Path) -> list[dict[str, Any]]:
    """The first and last lines of a file and some between, evenly spread over its bytes; all of a small one."""
    size = path.stat().st_size
    if size <= WHOLE:
        return metrics.lines(path.read_bytes())
    found: dict[int, dict[str, Any]] = {}
    with path.open("rb") as file:
        for number in range(PICKED):
            file.seek(number * (size - TAIL) // PICKED)
            if number:
                file.readline()  # most likely in the middle of one
            for line in metrics.lines(file.readline() + file.readline()):  # lines may be empty
                found[line["step"]] = line
    found |= {line["step"]: line for line in _tail(path, TAIL) if "loss" in line}
    return [found[step] for step in sorted(found)]


def _tail(path: Path, most: int) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return metrics.lines(file.read())


def _last_evaluation(path: Path) -> dict[str, Any]:
    """The newest line with an evaluation's loss, searched from the end without parsing what is between."""
    if not path.stat().st_size:
        return {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.rfind(b'"eval_loss"', max(0, len(data) - EVALUATIONS))
        if at < 0:
            return {}
        end = data.find(b"\n", at)
        found = metrics.lines(data[data.rfind(b"\n", 0, at) + 1 : end if end >= 0 else len(data)])
    return found[-1] if found else {}


def _pace(trained: Sequence[dict[str, Any]]) -> float | None:
    """Seconds from step to step, saves and evaluations included, over the steps given."""
    if not trained:
        return None
    first, last = trained[0], trained[-1]
    if first["step"] == last["step"]:
        seconds: float | None = last.get("seconds")
        return seconds
    return float((last["time"] - first["time"]) / (last["step"] - first["step"]))


def _rate(trained: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean rate, each step by its time. The first step of a launch compiles and warms up: it counts only if alone."""
    weighed = [(line[key], line["seconds"]) for line in trained[1:] or trained if line.get(key) and line.get("seconds")]
    seconds = sum(one for _, one in weighed)
    return float(sum(rate * one for rate, one in weighed) / seconds) if seconds else None


def _checkpoint(run: Path) -> tuple[int | None, float | None]:
    """Step of the newest complete checkpoint, and when it was declared complete."""
    newest: tuple[int | None, float | None] = (None, None)
    for marker in (run / paths.CHECKPOINTS).glob("checkpoint-*/complete.json"):
        step = marker.parent.name.rpartition("-")[2]
        with contextlib.suppress(OSError):  # dropped this moment
            if step.isdigit() and (newest[0] is None or int(step) > newest[0]):
                newest = int(step), marker.stat().st_mtime
    return newest


def _phase(run: Path) -> str | None:
    """What the first rank of the newest launch said last."""
    beacons = sorted((run / paths.RANKS).glob("*/0.json"), key=lambda path: path.stat().st_mtime)
    said = _json(beacons[-1]) if beacons else None
    return str(said["phase"]) if said and "phase" in said else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
