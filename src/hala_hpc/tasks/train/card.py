"""What made a trained model: gathered from its run directory, kept in ``hala.json``, shown in the model card."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

from hala_hpc.models import card
from hala_hpc.run import manifest
from hala_hpc.run.files import read_json
from hala_hpc.tasks.train import metrics, paths
from hala_hpc.tasks.train.metrics import StepMetrics
from hala_hpc.tasks.train.prepare.expected import Expected
from hala_hpc.worker.tracking import is_number

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
"""Whose versions are listed, where they are installed."""


class Trained(TypedDict, total=False):
    """Totals over the metrics; empty before the first step."""

    steps: int
    tokens: int
    useful_tokens: int
    final_loss: float | None
    eval_loss: float | None
    hours: float
    gpu_hours: float
    gpus: int
    launches: int


class SourceRecord(TypedDict):
    """A file of a dataset, and how many of its rows are in the plan."""

    file: str
    rows: int


class DatasetRecord(TypedDict, total=False):
    """One part of the mixture: its files from the plan, the other numbers from the report (``PreparedDataset``)."""

    name: str
    kind: str
    weight: float
    hub: str | None
    rows: int
    tokens: int
    dropped_rows: int
    dropped: dict[str, int]
    sources: list[SourceRecord]


def provenance(run: Path, step: int | None = None) -> dict[str, Any]:
    """Everything that ``render`` shows, but what the export adds: ``parameters`` and ``files``.

    ``step``: the last one that made the model, of a checkpoint (None: the whole training).
    """
    record = card.provenance(run, PACKAGES)
    facts = manifest.read(run / "manifest.parquet").facts
    report = read_json(run / paths.INDEX / "report.json")
    checkpoint = {} if step is None else {"checkpoint": step}
    return {
        **record,
        **checkpoint,
        "training": trained(run, step),
        "datasets": _datasets(record["recipe"]["task"]["datasets"], facts.sources, report.get("datasets", {})),
        "report": {key: value for key, value in report.items() if is_number(value)},
        "notes": facts.notes,
    }


def trained(run: Path, step: int | None = None) -> Trained:
    """Totals over the metrics, up to ``step``: steps, tokens, last losses, hours from step to step, and GPU-hours.

    Tokens are those that made the model. Hours are from each launch's first step to its last: with evaluations and
    saves and also steps that a resume had to repeat, without what lay between the launches.
    """
    until = math.inf if step is None else step
    lines = [line for line in metrics.read(run) if line["step"] <= until]
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return {}
    hours: list[float] = []  # of each launch
    gpu_hours = 0.0
    for path in metrics.files(run):
        if ended := [line for line in metrics.lines(path.read_bytes()) if "loss" in line and line["step"] <= until]:
            seconds = ended[-1]["time"] - ended[0]["time"] + (ended[0].get("seconds") or 0.0)
            hours.append(seconds / 3600)
            gpu_hours += hours[-1] * _gpus(ended[-1])
    return {
        "steps": steps[-1]["step"],
        "tokens": sum(line.get("tokens", 0) for line in steps),
        "useful_tokens": sum(line.get("useful_tokens", 0) for line in steps),
        "final_loss": steps[-1]["loss"],
        "eval_loss": next((line["eval_loss"] for line in reversed(lines) if "eval_loss" in line), None),
        "hours": round(sum(hours), 4),
        "gpu_hours": round(gpu_hours, 4),
        "gpus": _gpus(steps[-1]),
        "launches": len(hours),
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
    for name, value in record["training"].items():
        if value is not None:
            yield name.replace("_", " "), card.number(value)


def _datasets(
    mixture: Mapping[str, Any], sources: Iterable[Mapping[str, Any]], prepared: Mapping[str, DatasetRecord]
) -> list[DatasetRecord]:
    return [
        {
            "name": name,
            "kind": dataset["kind"],
            "weight": dataset["weight"],
            "hub": dataset.get("hub"),
            **prepared.get(name, {}),
            "sources": [
                {"file": Path(source["original"]).name, "rows": source["rows"]}
                for source in sources
                if source.get("dataset") == name
            ],
        }
        for name, dataset in mixture.items()
    ]


def _dataset_cells(dataset: DatasetRecord) -> tuple[str, ...]:
    where = ", ".join(f"`{source['file']}` ({source['rows']:,})" for source in dataset["sources"][:5])
    where = f"{dataset['hub']}: {where}" if dataset["hub"] else where
    if (more := len(dataset["sources"]) - 5) > 0:
        where += f", … {more} more"
    dropped = card.number(dataset.get("dropped_rows"))
    if reasons := ", ".join(f"{count:,} {reason}" for reason, count in sorted(dataset.get("dropped", {}).items())):
        dropped += f" ({reasons})"
    rows, tokens = card.number(dataset.get("rows")), card.number(dataset.get("tokens"))
    return dataset["name"], dataset["kind"], f"{dataset['weight']:g}", rows, dropped, tokens, where


def _warning(dataset: DatasetRecord) -> str:
    """A line on a dataset of which a large part was dropped."""
    rows = Expected(dataset.get("rows") or 0, dataset.get("dropped", {}))
    return f"**Only {rows.used:,} of {rows.rows:,} rows of {dataset['name']} were used.**" if rows.is_loud else ""


def _gpus(line: StepMetrics) -> int:
    per_gpu, together = line.get("tokens_per_second_per_gpu"), line.get("tokens_per_second")
    return max(1, round(together / per_gpu)) if per_gpu and together else 1
