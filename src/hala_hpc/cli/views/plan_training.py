"""What ``hala plan`` shows of a training: its data, its steps, each GPU's memory by part, GPU-hours."""

from collections.abc import Mapping, Sequence
from typing import Any

from hala_hpc.config.words import plural
from hala_hpc.tasks.train.estimate.training import GPU, PARTS, SUM
from hala_hpc.tasks.train.prepare import expected


def show(found: Mapping[str, Any]) -> None:
    """The tables, on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    wide = Console(width=max(console.width, 250))  # a terminal may break its lines, but no number is cut off
    wide.print(_datasets(found["datasets"]))
    for line in expected.loud(found["datasets"]):
        console.print(f"[bold red]{escape(line)}[/]")
    console.print()
    facts = Table(show_header=False, box=None, pad_edge=False)
    weights = f", {found['weights']:,} weights" if "weights" in found else ""
    facts.add_row("model", f"{escape(found['model']['name'])}  [dim]{found['model']['family']}{weights}[/]")
    batch = found["batch"]
    facts.add_row(
        "batch", f"{batch['sequences']:,} sequences of {found['sequence_length']:,} tokens: {batch['tokens']:,}"
    )
    facts.add_row("packing", found["packing"])
    epochs = "" if found["epochs"] is None else f", {found['epochs']:g} epochs"
    told = f"about {found['estimated_tokens_trained']:,} tokens, {plural(found['estimated_steps'], 'step')}{epochs}"
    facts.add_row("training", told)
    if disk := found.get("disk"):
        sizes = f"{_gigabytes(disk['checkpoints'])} of checkpoints, {_gigabytes(disk['model'])} of the model"
        facts.add_row("disk", f"about {sizes}")
    console.print(facts)
    if not found["memory"]:
        console.print(f"memory: {found['memory_unknown']}")
        return
    console.print(_memory(found))
    for row in found["memory"]:
        if "refused" in row:
            console.print(f"{row['hardware']}: {row['refused']}")
    own = found["memory"][0]
    if not own.get("fits", False):
        why = own.get("refused") or f"it needs {own['total'] / 1024**3:,.3g} GiB of each GPU's {_room(found):g}"
        console.print(f"[bold red]This training does not fit on what the site gives it ({own['hardware']}): {why}[/]")
    if not any(row.get("fits") for row in found["memory"]):
        console.print("[bold red]It fits on none of these. A larger deepspeed.stage, a smaller batch.per_device, …[/]")
    assumed = found["assumed"]
    share = f"{assumed['mfu']:.0%} MFU ({assumed['mfu_recomputing']:.0%} with activation checkpointing)"
    console.print(
        f"[dim]Estimated GiB of memory on each GPU; it fits where a tenth of {_room(found):g} GiB is left over.\n"
        f"About {_hours(found['gpu_hours'])} GPU-hours: assumes {share}\nof {GPU}s, at 6 N + 12 L H T FLOPs a token.[/]"
    )


def _memory(found: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("GPUs", "weights", "gradients", "optimizer", "activ.", "working", "total", "fits", "hours"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("GPUs", "fits") else "right")
    for row in found["memory"]:
        if "refused" in row:
            table.add_row(row["hardware"], *["-"] * (len(PARTS) + 1), "[red]no[/]")
            continue
        numbers = [
            f"{row[part] / 1024**3:.1f}" if row["total"] > 1024**3 else f"{row[part] / 1024**3:.3f}" for part in SUM
        ]
        fits = "[green]yes[/]" if row["fits"] else "[red]no[/]"
        table.add_row(row["hardware"], *numbers, fits, _hours(row["hours"]))
    return table


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}" if hours >= 0.001 else "<0.001"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _room(found: Mapping[str, Any]) -> float:
    return float(found["gpu_bytes"] / 1024**3)


def _datasets(datasets: Sequence[Mapping[str, Any]]) -> Any:
    """Rows used, dropped and why, of each dataset."""
    from rich.markup import escape
    from rich.table import Table

    found = Table(box=None, pad_edge=False)
    for name in ("dataset", "kind", "rows", "used", "times", "tokens", "dropped, cut", "from"):
        found.add_column(name, no_wrap=True, justify="right" if name in ("rows", "used", "times", "tokens") else "left")
    for each in datasets:
        more = f" and {len(each['sources']) - 1} more" if len(each["sources"]) > 1 else ""
        color = "[red]" if each["is_loud"] else "[default]"
        found.add_row(
            escape(each["name"]),
            each["kind"],
            f"{each['rows']:,}",
            f"{color}{each['used']:,}[/]",
            f"{each['weight']:g}",
            f"{'' if each['is_exact'] else 'about '}{each['tokens']:,}",
            f"{color}{expected.reasons(each) or '-'}[/]",
            f"[dim]{escape(str(each['sources'][0]))}{more}[/]",
        )
    return found
