"""What made a trained model: gathered from its run directory, kept in ``hala.json``, told in the model card."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hala_hpc.models import card
from hala_hpc.run import manifest
from hala_hpc.tasks.train import metrics, paths
from hala_hpc.tasks.train.prepare.expected import Expected

PACKAGES: Final = (
    "torch",
    "transformers",
    "trl",
    "deepspeed",
    "accelerate",
    "tokenizers",
    "liger-kernel",
    "flash-attn",
)
"""Whose versions are told, where they are installed."""


def provenance(run: Path, step: int | None = None) -> dict[str, Any]:
    """Everything that ``render`` tells, but what the export adds: ``parameters`` and ``files``.

    ``step``: the last one that made the model, of a checkpoint (None: the whole training).
    """
    found = card.provenance(run, PACKAGES)
    facts = manifest.read(run / "manifest.parquet").facts
    sources = facts.sources
    report = card.read_json(run / paths.INDEX / "report.json")
    datasets = _datasets(found["recipe"]["task"], sources, report.get("datasets", {}))
    counts = {key: value for key, value in report.items() if _is_count(value)}
    checkpoint = {} if step is None else {"checkpoint": step}
    return (
        found
        | checkpoint
        | {
            "training": trained(run, step),
            "datasets": datasets,
            "report": counts,
            "notes": facts.notes,
        }
    )


def trained(run: Path, step: int | None = None) -> dict[str, Any]:
    """Totals over the metrics, up to ``step``: steps, tokens, last losses, hours from step to step, and GPU-hours.

    Tokens are those that made the model. Hours are from each launch's first step to its last: with evaluations and
    saves and also steps that a resume had to repeat, without what lay between the launches.
    """
    until = math.inf if step is None else step
    lines = [line for line in metrics.read(run) if line["step"] <= until]
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return {}
    hours = gpu_hours = 0.0
    launches = 0
    for path in metrics.files(run):
        ended = [line for line in metrics.lines(path.read_bytes()) if "loss" in line and line["step"] <= until]
        if ended:
            took = (ended[-1]["time"] - ended[0]["time"] + (ended[0].get("seconds") or 0.0)) / 3600
            hours += took
            gpu_hours += took * _gpus(ended[-1])
            launches += 1
    return {
        "steps": steps[-1]["step"],
        "tokens": sum(line.get("tokens", 0) for line in steps),
        "useful_tokens": sum(line.get("useful_tokens", 0) for line in steps),
        "final_loss": steps[-1]["loss"],
        "eval_loss": next((line["eval_loss"] for line in reversed(lines) if "eval_loss" in line), None),
        "hours": round(hours, 4),
        "gpu_hours": round(gpu_hours, 4),
        "gpus": _gpus(steps[-1]),
        "launches": launches,
    }


def render(record: Mapping[str, Any]) -> str:
    """The model card, as the hub shows it."""
    at = f": its checkpoint after step {record['checkpoint']:,}" if "checkpoint" in record else ""
    said = f"`{record['base_model']}`, trained further by hala_hpc{at}."
    columns = ("dataset", "kind", "weight", "rows", "dropped", "tokens", "sources")
    lines = ["", "## Data", "", *card.table(columns, map(_dataset_cells, record["datasets"]))]
    remarks = [*filter(None, map(_warning, record["datasets"]))]
    remarks += [f"{count:,} {note}" for note, count in record.get("notes", {}).items()]
    lines += ["", *(f"- {remark}" for remark in remarks)] if remarks else []
    if record["report"]:
        counts = ((key.replace("_", " "), card.number(value)) for key, value in record["report"].items())
        lines += ["", *card.table(("prepared", ""), counts)]
    return card.page(record, said, _facts(record), lines)


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{record['parameters']:,}"
    for name in (
        "steps",
        "tokens",
        "useful_tokens",
        "final_loss",
        "eval_loss",
        "hours",
        "gpu_hours",
        "gpus",
        "launches",
    ):
        if record["training"].get(name) is not None:
            yield name.replace("_", " "), card.number(record["training"][name])


def _datasets(
    task: dict[str, Any], sources: list[dict[str, Any]], told: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each part of the mixture: its files from the plan, its rows and tokens from the report."""
    found = []
    for name, asked in task["datasets"].items():
        mine = [source for source in sources if source.get("dataset") == name]
        listed = [{"file": Path(source["original"]).name, "rows": source["rows"]} for source in mine]
        what = {"kind": asked["kind"], "weight": asked["weight"], "hub": asked.get("hub")}
        found.append({"name": name, **what, **told.get(name, {}), "sources": listed})
    return found


def _dataset_cells(dataset: dict[str, Any]) -> tuple[str, ...]:
    sources = ", ".join(f"`{source['file']}` ({source['rows']:,})" for source in dataset["sources"][:5])
    more = len(dataset["sources"]) - 5
    where = f"{dataset['hub']}: {sources}" if dataset["hub"] else sources
    rows, dropped, tokens = (card.number(dataset.get(key)) for key in ("rows", "dropped_rows", "tokens"))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dataset.get("dropped", {}).items()))
    counts = (rows, dropped + (f" ({reasons})" if reasons else ""), tokens)
    return (
        dataset["name"],
        dataset["kind"],
        f"{dataset['weight']:g}",
        *counts,
        where + (f", … {more} more" if more > 0 else ""),
    )


def _warning(dataset: dict[str, Any]) -> str:
    """Of a dataset of which a large part was dropped."""
    told = Expected(dataset.get("rows") or 0, dataset.get("dropped", {}))
    return f"**Only {told.used:,} of {told.rows:,} rows of {dataset['name']} were used.**" if told.is_loud else ""


def _gpus(line: dict[str, Any]) -> int:
    each, together = line.get("tokens_per_second_per_gpu"), line.get("tokens_per_second")
    return max(1, round(together / each)) if each and together else 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
