"""What ``hala status`` tells of a training, besides what it tells of every run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hala_hpc.cli import common
from hala_hpc.config import frozen
from hala_hpc.pipeline import lookup
from hala_hpc.tasks.train.prepare import expected

if TYPE_CHECKING:
    from hala_hpc.run.status import Status
    from hala_hpc.tasks.train.checkpoint.checkpoints import Fallback
    from hala_hpc.tasks.train.progress import Progress


@dataclass(frozen=True)
class TrainingState:
    """``training`` is None while the data are being prepared; ``preparation`` is empty once they are.

    ``loud``: lines on datasets of which little is used.
    """

    training: "Progress | None"
    preparation: "Sequence[Status]"
    loud: Sequence[str] = ()


def read(path: Path, state: "Status") -> TrainingState | None:
    """How far the training at ``path`` is; None for a run that is none."""
    if state.unit != "models":
        return None
    from hala_hpc.run import status
    from hala_hpc.tasks.train import progress

    found = progress.read(path, state.time)
    lines = loud(path)
    if found is not None or state.finished:
        return TrainingState(found, (), lines)
    settings = frozen.settings(path)
    preparation = [status.read(run, settings.lease_seconds, settings.attempts) for _, run in _datasets(path)]
    return TrainingState(None, preparation, lines)


def loud(path: Path) -> list[str]:
    """A line for each dataset of which the training uses little; of those whose preparation still is there."""
    return expected.loud(expected.of_runs(_datasets(path)))


def rows(found: TrainingState, state: "Status") -> list[tuple[str, str]]:
    """Lines of the table: name and value."""
    lines = [("data", f"[bold red]{line}[/]") for line in found.loud]
    lines += [(f"prepare {run.run}", _preparation(run)) for run in found.preparation]
    now = found.training
    if now is None:
        return lines
    lines += [("step", f"{now.step:,} of {_known(now.steps, ',')}" + (f", epoch {now.epoch:.2f}" if now.epoch else ""))]
    if now.loss is not None:
        lines += [("loss", f"{now.loss:.4f}  [cyan]{now.curve}[/]")]
    if now.eval_loss is not None:
        lines += [("evaluation", f"loss {now.eval_loss:.4f} after step {now.eval_step:,}")]
    if now.tokens_per_second is not None:
        lines += [("rate", _rate(now))]
    if now.checkpoint is not None:
        age = common.human_seconds(now.checkpoint_age)
        lines += [
            ("checkpoint", f"step {now.checkpoint:,}, {age} old" if not state.finished else f"step {now.checkpoint:,}")
        ]
    if now.fallback is not None:
        lines += [("resumed", f"[yellow]{_fallback(now.fallback)}[/]")]
    if now.phase is not None and not state.finished and is_alive(state):
        lines += [("now", f"{now.phase} (launch {now.launches})" if now.launches else now.phase)]
    return lines


def seconds_left(found: TrainingState, state: "Status") -> float | None:
    """To the last step; None while nobody works."""
    return found.training.seconds_left if found.training is not None and is_alive(state) else None


def done_share(found: TrainingState, state: "Status") -> float:
    """How much of the steps is done, 0 to 1; while data are prepared, of their rows."""
    if state.finished:
        return 1.0
    if found.training is not None:
        return found.training.step / found.training.steps if found.training.steps else 0.0
    return sum(run.rows_done for run in found.preparation) / max(1, sum(run.rows for run in found.preparation))


def failure(found: TrainingState) -> str | None:
    """Why the training stopped for good."""
    told = found.training.failure if found.training is not None else None
    if told is None:
        return None
    where = f" at step {told['step']}" if "step" in told else ""
    return f"stopped for good{where}: {told.get('reason')}"


def _fallback(told: "Fallback") -> str:
    """Why steps are done again that were done."""
    import rich.markup

    damaged = ", ".join(f"{name} is damaged ({how})" for name, how in told.get("damaged", {}).items())
    return rich.markup.escape(f"from checkpoint-{told.get('step')}: {damaged}")


def is_alive(state: "Status") -> bool:
    """Whether any worker of the run is."""
    return any(worker.alive for worker in state.workers)


def as_json(found: TrainingState) -> dict[str, Any]:
    """For scripts: the keys ``training`` and ``preparation``."""
    from dataclasses import asdict

    told = ("run", "path", "shards", "done", "running", "failed", "rows", "rows_done", "quarantined", "seconds_left")
    return {
        "training": asdict(found.training) if found.training is not None else None,
        "preparation": [{key: getattr(run, key) for key in told} for run in found.preparation],
        "loud": list(found.loud),
    }


def prepare_runs(path: Path) -> list[Path]:
    """Where the datasets' tokens are made. Only shared ones need the recipe to be understood, which takes its time."""
    task = frozen.read(path)["task"]
    if not task.get("prepared"):
        return [path / "prepare" / name for name in task.get("datasets", {})]
    from hala_hpc.tasks.train import task as train

    return train.prepare_runs(path, lookup.thawed(path))


def _datasets(path: Path) -> list[tuple[str, Path]]:
    named = zip(frozen.read(path)["task"].get("datasets", {}), prepare_runs(path), strict=True)
    return [(name, run) for name, run in named if (run / "manifest.parquet").is_file()]


def _preparation(run: "Status") -> str:
    failed = f", [red]{run.failed:,} failed[/]" if run.failed else ""
    left = "" if run.finished or run.seconds_left is None else f", {common.human_seconds(run.seconds_left)} left"
    return f"{run.rows_done:,} of {run.rows:,} rows, {run.done:,} of {run.shards:,} shards{failed}{left}"


def _rate(now: "Progress") -> str:
    parts = [f"{now.tokens_per_second:,.0f} tokens/s"]
    if now.tokens_per_second_per_gpu is not None:
        parts += [f"{now.tokens_per_second_per_gpu:,.0f} per GPU"]
    if now.mfu is not None:
        parts += [f"MFU {now.mfu:.1%}"]
    if now.seconds_per_step is not None:
        parts += [f"{now.seconds_per_step:,.2f} s a step"]
    if now.memory_gb is not None:
        parts += [f"{now.memory_gb:,.1f} GB"]
    return ", ".join(parts)


def _known(value: int | None, form: str) -> str:
    return "?" if value is None else format(value, form)
