"""What ``hala plan`` shows of a training: data, steps, each GPU's memory by part, GPU-hours; and ``hala status``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hala_hpc.cli import common
from hala_hpc.config import frozen
from hala_hpc.config.errors import plural
from hala_hpc.pipeline import lookup
from hala_hpc.run import status
from hala_hpc.run.status import Status
from hala_hpc.tasks.train.prepare import expected

if TYPE_CHECKING:
    from hala_hpc.tasks.train.progress import Progress

GIB: Final = 1024**3
PREPARATION: Final = (
    "run", "path", "shards", "done", "running", "failed", "rows", "rows_done", "quarantined", "seconds_left",
)  # fmt: skip
"""What scripts get of the runs that prepare the data."""


@dataclass(frozen=True)
class TrainingState:
    """``training`` is None while the data are being prepared; ``preparation`` is empty once they are.

    ``loud``: lines on datasets of which little is used.
    """

    state: Status
    training: "Progress | None"
    preparation: Sequence[Status]
    loud: Sequence[str] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Lines of the table: name and value."""
        lines = [("data", f"[bold red]{line}[/]") for line in self.loud]
        lines += [(f"prepare {run.run}", _preparation(run)) for run in self.preparation]
        return lines if self.training is None else lines + _progress(self.training, self.state)

    @property
    def seconds_left(self) -> float | None:
        """To the last step; None while nobody works."""
        return self.training.seconds_left if self.training is not None and self.state.alive else None

    @property
    def done_share(self) -> float:
        """How much of the steps is done, 0 to 1; while data are prepared, of their rows."""
        if self.state.finished:
            return 1.0
        if self.training is not None:
            return self.training.step / self.training.steps if self.training.steps else 0.0
        return sum(run.rows_done for run in self.preparation) / max(1, sum(run.rows for run in self.preparation))

    @property
    def failure(self) -> str:
        """Why the training stopped for good; empty where it did not."""
        reason = self.training.failure if self.training is not None else None
        if reason is None:
            return ""
        where = f" at step {reason['step']}" if "step" in reason else ""
        return f"stopped for good{where}: {reason.get('reason')}"

    def as_json(self) -> dict[str, object]:
        """For scripts: the keys ``training``, ``preparation`` and ``loud``."""
        preparation = [{key: getattr(run, key) for key in PREPARATION} for run in self.preparation]
        now = asdict(self.training) if self.training is not None else None
        return {"training": now, "preparation": preparation, "loud": list(self.loud)}


def read(path: Path, state: Status) -> TrainingState | None:
    """How far the training at ``path`` is; None for other runs."""
    if state.unit != "models":
        return None
    from hala_hpc.tasks.train import progress

    now = progress.read(path, state.time)
    if now is not None or state.finished:
        return TrainingState(state, now, (), loud(path))
    settings = frozen.settings(path)
    preparation = [status.read(run, settings.lease_seconds, settings.attempts) for run in data_runs(path).values()]
    return TrainingState(state, None, preparation, loud(path))


def data_runs(path: Path) -> dict[str, Path]:
    """The run that makes the tokens of each dataset of a training, where it still is: once trained, it may go.

    Only shared tokens need the recipe to be understood, which takes its time.
    """
    task = frozen.read(path)["task"]
    if task["kind"] != "train":
        return {}
    runs = {name: path / "prepare" / name for name in task.get("datasets", {})}
    if task.get("prepared"):
        from hala_hpc.tasks.train import task as train

        runs = dict(zip(runs, train.prepare_runs(path, lookup.thawed(path)), strict=True))
    return {name: run for name, run in runs.items() if (run / "manifest.parquet").is_file()}


def loud(path: Path) -> list[str]:
    """A line for each dataset of which the training uses little, as far as its preparation is still there."""
    return expected.loud(expected.of_runs(data_runs(path).items()))


def _progress(now: "Progress", state: Status) -> list[tuple[str, str]]:
    steps = "?" if now.steps is None else f"{now.steps:,}"
    age = "" if state.finished else f", {common.human_seconds(now.checkpoint_age)} old"
    is_at_work = now.phase is not None and not state.finished and state.alive
    lines: dict[str, str | None] = {
        "step": f"{now.step:,} of {steps}" + (f", epoch {now.epoch:.2f}" if now.epoch else ""),
        "loss": None if now.loss is None else f"{now.loss:.4f}  [cyan]{now.curve}[/]",
        "evaluation": None if now.eval_loss is None else f"loss {now.eval_loss:.4f} after step {now.eval_step:,}",
        "rate": None if now.tokens_per_second is None else _rate(now),
        "checkpoint": None if now.checkpoint is None else f"step {now.checkpoint:,}{age}",
        "resumed": None if now.fallback is None else f"[yellow]{_fallback(now.fallback)}[/]",
        "now": f"{now.phase}" + (f" (launch {now.launches})" if now.launches else "") if is_at_work else None,
    }
    return [(name, line) for name, line in lines.items() if line is not None]


def _fallback(record: Mapping[str, Any]) -> str:
    """Why steps that were done are done again."""
    damaged = ", ".join(f"{name} is damaged ({how})" for name, how in record.get("damaged", {}).items())
    return escape(f"from checkpoint-{record.get('step')}: {damaged}")


def _preparation(run: Status) -> str:
    failed = f", [red]{run.failed:,} failed[/]" if run.failed else ""
    left = "" if run.finished or run.seconds_left is None else f", {common.human_seconds(run.seconds_left)} left"
    return f"{run.rows_done:,} of {run.rows:,} rows, {run.done:,} of {run.shards:,} shards{failed}{left}"


def _rate(now: "Progress") -> str:
    parts = (
        (now.tokens_per_second, "{:,.0f} tokens/s"),
        (now.tokens_per_second_per_gpu, "{:,.0f} per GPU"),
        (now.mfu, "MFU {:.1%}"),
        (now.seconds_per_step, "{:,.2f} s a step"),
        (now.memory_gb, "{:,.1f} GB"),
    )
    return ", ".join(form.format(number) for number, form in parts if number is not None)


def show_plan(plan: Mapping[str, Any]) -> None:
    """The tables, on standard output."""
    # It takes a tenth of a second, which `hala status` has no use for.
    from hala_hpc.tasks.train.estimate.memory import GPU

    console = Console(soft_wrap=True)
    wide = Console(width=max(console.width, 250))  # a terminal may break its lines, but no number is cut off
    wide.print(_data_table(plan["datasets"]))
    for line in expected.loud(plan["datasets"]):
        console.print(f"[bold red]{escape(line)}[/]")
    console.print()
    weights = f", {plan['weights']:,} weights" if "weights" in plan else ""
    batch, disk = plan["batch"], plan.get("disk")
    sequences = f"{batch['sequences']:,} sequences of {plan['sequence_length']:,} tokens"
    epochs = "" if plan["epochs"] is None else f", {plan['epochs']:g} epochs"
    steps = f"{plural(plan['estimated_steps'], 'step')}{epochs}"
    facts = [
        ("model", f"{escape(plan['model']['name'])}  [dim]{plan['model']['family']}{weights}[/]"),
        ("batch", f"{sequences}: {batch['tokens']:,}"),
        ("packing", plan["packing"]),
        ("training", f"about {plan['estimated_tokens_trained']:,} tokens, {steps}"),
    ]
    if disk:
        sizes = f"{_gigabytes(disk['checkpoints'])} of checkpoints, {_gigabytes(disk['model'])} of the model"
        facts.append(("disk", f"about {sizes}"))
    console.print(common.facts(facts))
    if not plan["memory"]:
        console.print(f"memory: {plan['memory_unknown']}")
        return
    room = plan["gpu_bytes"] / GIB
    console.print(_memory(plan["memory"]))
    for row in plan["memory"]:
        if "refused" in row:
            console.print(f"{row['hardware']}: {row['refused']}")
    own = plan["memory"][0]
    if not own.get("fits", False):
        why = own.get("refused") or f"it needs {own['total'] / GIB:,.3g} GiB of each GPU's {room:g}"
        console.print(f"[bold red]This training does not fit on what the site gives it ({own['hardware']}): {why}[/]")
    if not any(row.get("fits") for row in plan["memory"]):
        console.print("[bold red]It fits on none of these. A larger deepspeed.stage, a smaller batch.per_device, …[/]")
    assumed = plan["assumed"]
    share = f"{assumed['mfu']:.0%} MFU ({assumed['mfu_recomputing']:.0%} with activation checkpointing)"
    console.print(
        f"[dim]Estimated GiB of memory on each GPU; it fits where a tenth of {room:g} GiB is left over.\n"
        f"About {_hours(plan['gpu_hours'])} GPU-hours: assumes {share}\nof {GPU}s, at 6 N + 12 L H T FLOPs a token.[/]"
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    from hala_hpc.tasks.train.estimate.memory import SUM

    numbers = ("weights", "gradients", "optimizer", "activ.", "working", "total")
    table = common.table("GPUs", *numbers, "fits", "hours", right=(*numbers, "hours"))
    for row in rows:
        if "refused" in row:
            table.add_row(row["hardware"], *["-"] * len(SUM), "[red]no[/]")
            continue
        sizes = [f"{row[part] / GIB:.{1 if row['total'] > GIB else 3}f}" for part in SUM]
        table.add_row(row["hardware"], *sizes, "[green]yes[/]" if row["fits"] else "[red]no[/]", _hours(row["hours"]))
    return table


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}" if hours >= 0.001 else "<0.001"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _data_table(datasets: Sequence[Mapping[str, Any]]) -> Table:
    """Rows used, dropped and why, of each dataset."""
    numbers = ("rows", "used", "times", "tokens")
    table = common.table("dataset", "kind", *numbers, "dropped, cut", "from", right=numbers)
    for data in datasets:
        more = f" and {len(data['sources']) - 1} more" if len(data["sources"]) > 1 else ""
        color = "[red]" if data["is_loud"] else "[default]"
        table.add_row(
            escape(data["name"]),
            data["kind"],
            f"{data['rows']:,}",
            f"{color}{data['used']:,}[/]",
            f"{data['weight']:g}",
            f"{'' if data['is_exact'] else 'about '}{data['tokens']:,}",
            f"{color}{expected.reasons(data) or '-'}[/]",
            f"[dim]{escape(str(data['sources'][0]))}{more}[/]",
        )
    return table
