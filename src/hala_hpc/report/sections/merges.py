"""Merges: their weights, and how alike the models were that went in."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hala_hpc.models.folder import REPORT
from hala_hpc.report.page import plots, table
from hala_hpc.report.page.plots import Plot
from hala_hpc.report.page.table import Section, isolated
from hala_hpc.report.runs import Run
from hala_hpc.tasks.merge.merging import LERP_ABOVE

LAYER: Final = re.compile(r"\.(\d+)\.")
LEAST_SHOWN: Final = 10


def section(run: Run) -> Section | None:
    """The merges of a run: their weights and how alike their models were; None for another run, or before the first."""
    if run.kind != "merge":
        return None
    folders = [run.directory.shard_output(shard) for shard in range(len(run.facts.items))]
    reports = [report for folder in folders if (report := read(folder))]
    if not reports:
        return None
    name = f"merge-{run.name}"
    tables = (_merges(name, reports), *_least_alike(name, reports[0]))
    has_lerp = any(report["summary"].get("lerp") for report in reports)
    text = (
        f"Where the cosine of two tensors is above {LERP_ABOVE}, slerp and lerp are the same: lerp was used.",
    ) * has_lerp
    return Section(name, f"Merges of {isolated(run.name)}", text, tables, tuple(_alike(name, reports)))


def _merges(name: str, reports: Sequence[dict[str, Any]]) -> table.Table:
    axes = list(dict.fromkeys(key for report in reports for key, value in report["cell"].items() if value is not None))
    told = {
        "tensors": "tensors",
        "slerp": "slerp",
        "lerp": "lerp",
        "least_cosine": "least cosine",
        "median_cosine": "median",
    }
    rows: list[list[table.Cell | table.Value]] = [
        [
            report["name"],
            report["method"],
            *(report["cell"].get(axis) for axis in axes),
            *(table.Cell(report["summary"].get(key), digits=6) for key in told),
        ]
        for report in reports
    ]
    return table.of(name, "Merges", ["merge", "method", *axes, *told.values()], rows)


def _least_alike(name: str, report: dict[str, Any]) -> list[table.Table]:
    found = [
        (cosine, model, line["name"])
        for line in report["tensors"]
        for model, cosine in line["cosine"].items()
        if cosine is not None
    ]
    rows: list[list[table.Cell | table.Value]] = [
        [tensor, model, table.Cell(cosine, digits=6)] for cosine, model, tensor in sorted(found)[:LEAST_SHOWN]
    ]
    columns = ["tensor", "model", "cosine to the base"]
    return [table.of(f"{name}-least", "Tensors that differ most", columns, rows)] if rows else []


def _alike(name: str, reports: Sequence[dict[str, Any]]) -> list[Plot]:
    """Cosines by layer, once for each model: they do not depend on the weight."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for label in report["models"]:
            rows = _by_layer(report, label)
            if rows and label not in seen:
                seen[label] = rows
    return [
        Plot(
            f"{name}-cosines-{label}",
            f"Cosine of {label}'s tensors to the base's",
            f"Cosine of each tensor of {label} to the base's by layer, least {min(row['cosine'] for row in rows):.6f}",
            plots.dots(rows, "layer", "cosine", "part", ("layer", "cosine")),
        )
        for label, rows in seen.items()
    ]


def _by_layer(report: dict[str, Any], label: str) -> list[dict[str, Any]]:
    found = []
    for line in report["tensors"]:
        cosine, layer = line["cosine"].get(label), LAYER.search(line["name"])
        if cosine is not None and layer:
            part = line["name"][layer.end() :].removesuffix(".weight").partition(".")[0]
            found.append({"layer": int(layer[1]), "cosine": cosine, "part": part, "tensor": line["name"]})
    return found


def read(folder: Path) -> dict[str, Any] | None:
    """The report of a merge in its model's folder; None where there is none."""
    try:
        found = json.loads((folder / REPORT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("kind") == "merge" else None
