"""Merges: their weights, and how alike the models were that went in."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypedDict, cast

from hala_hpc.models.folder import REPORT
from hala_hpc.report import plots, table
from hala_hpc.report.plots import Plot, Row
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.table import Cell, Section, Value, isolated
from hala_hpc.run.files import read_json
from hala_hpc.tasks.merge.merging import LERP_ABOVE, MergedTensor

LAYER: Final = re.compile(r"\.(\d+)\.")
LEAST_SHOWN: Final = 10
SUMMARY: Final = ("tensors", "slerp", "lerp", "least_cosine", "median_cosine")
"""Keys of a report's summary."""


class MergeReport(TypedDict, total=False):
    """What ``tasks.merge.merging`` wrote beside a merged model: ``cell`` is what it was made by."""

    name: str
    method: str
    cell: dict[str, Value]
    models: dict[str, dict[str, str]]
    summary: dict[str, float | None]
    tensors: list[MergedTensor]


def read(folder: Path) -> MergeReport | None:
    """The report of a merge in its model's folder; None where there is none."""
    report = read_json(folder / REPORT)
    return cast("MergeReport", report) if report.get("kind") == "merge" else None


def section(run: ReportedRun) -> Section | None:
    """The merges of a run: their weights and how alike their models were; None for another run, or before the first."""
    if run.kind != "merge":
        return None
    folders = [run.directory.shard_output(shard) for shard in range(len(run.facts.items))]
    reports = [report for folder in folders if (report := read(folder))]
    if not reports:
        return None
    name = f"merge-{run.name}"
    tables = (_merges(name, reports), *_least_alike(name, reports[0]))
    text = f"Where the cosine of two tensors is above {LERP_ABOVE}, slerp and lerp are the same: lerp was used."
    has_lerp = any(report["summary"].get("lerp") for report in reports)
    title, drawn = f"Merges of {isolated(run.name)}", tuple(_alike(name, reports))
    return Section(name, title, (text,) if has_lerp else (), tables, drawn)


def _merges(name: str, reports: Sequence[MergeReport]) -> table.Table:
    axes = list(dict.fromkeys(key for report in reports for key, value in report["cell"].items() if value is not None))
    columns = ["merge", "method", *axes, "tensors", "slerp", "lerp", "least cosine", "median"]
    rows = []
    for report in reports:
        summary = (Cell(report["summary"].get(key), digits=6) for key in SUMMARY)
        rows.append([report["name"], report["method"], *(report["cell"].get(axis) for axis in axes), *summary])
    return table.of(name, "Merges", columns, rows)


def _least_alike(name: str, report: MergeReport) -> list[table.Table]:
    cosines = sorted(
        (cosine, model, tensor["name"])
        for tensor in report["tensors"]
        for model, cosine in tensor["cosine"].items()
        if cosine is not None
    )
    rows: list[table.Row] = [[tensor, model, Cell(cosine, digits=6)] for cosine, model, tensor in cosines[:LEAST_SHOWN]]
    columns = ["tensor", "model", "cosine to the base"]
    return [table.of(f"{name}-least", "Tensors that differ most", columns, rows)] if rows else []


def _alike(name: str, reports: Sequence[MergeReport]) -> list[Plot]:
    """Cosines by layer, once for each model: they do not depend on the weight."""
    by_model: dict[str, list[Row]] = {}
    for report in reports:
        for model in report["models"]:
            by_model[model] = by_model.get(model) or _by_layer(report, model)
    drawn = []
    for model, rows in by_model.items():
        if cosines := [float(row["cosine"]) for row in rows]:
            says = f"Cosine of each tensor of {model} to the base's by layer, least {min(cosines):.6f}"
            drawing = plots.dots(rows, "layer", "cosine", "part", ("layer", "cosine"))
            drawn.append(Plot(f"{name}-cosines-{model}", f"Cosine of {model}'s tensors to the base's", says, drawing))
    return drawn


def _by_layer(report: MergeReport, model: str) -> list[Row]:
    rows: list[Row] = []
    for tensor in report["tensors"]:
        name, cosine = tensor["name"], tensor["cosine"].get(model)
        if cosine is not None and (layer := LAYER.search(name)):
            part = name[layer.end() :].removesuffix(".weight").partition(".")[0]
            rows.append({"layer": int(layer[1]), "cosine": cosine, "part": part, "tensor": name})
    return rows
