"""Scores over a number that models were made by: merges over their weight, checkpoints over steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.models.card import read_json
from hala_hpc.models.check import RECORD
from hala_hpc.report.page import plots, table
from hala_hpc.report.page.plots import Plot
from hala_hpc.report.page.section import Section
from hala_hpc.report.sections import merges
from hala_hpc.report.sections.evaluation_plots import bounds
from hala_hpc.tasks.evaluate.scores import AVERAGE, PERCENT, Evaluations

WEIGHT: Final = "t"


@dataclass(frozen=True)
class Point:
    """A model on a curve: its place (a merge's weight, a checkpoint's step), and what else it was made by."""

    model: str
    place: float
    others: str


def section(found: Evaluations) -> Section | None:
    """Scores over the weight of merges, or the steps of checkpoints; None where no two models differ in one.

    Of slerp the inputs are points too, where they were evaluated: the base is t = 0, the other model t = 1. They are
    known by their weights' digest.
    """
    reports = {model: _report(found, model) for model in found.models}
    made = {model: report for model, report in reports.items() if report}
    axis = _axis([report["cell"] for report in made.values()])
    if axis is None:
        return None
    points = _points(made, axis)
    points += _inputs(found, made, points) if axis == WEIGHT else []
    if len({point.place for point in points}) < 2:
        return None
    points.sort(key=lambda point: (point.others, point.place))
    digits = 0 if axis != WEIGHT and all(point.place.is_integer() for point in points) else 2
    columns = ["model", axis, "made by", *found.benchmarks, AVERAGE]
    rows: list[list[table.Cell | table.Value]] = [
        [one.model, table.Cell(one.place, digits=digits), one.others, *_scores(found, one.model)] for one in points
    ]
    says = f"Scores over {axis}: " + ", ".join(
        f"{point.place:g} {mean.value * PERCENT:.2f}" for point in points if (mean := found.average(point.model))
    )
    spec = plots.lines(_rows(found, points, axis), axis, "score", "what", (axis, "score in percent"), points=True)
    shown = table.of("curve", f"Scores over {axis}", columns, rows)
    return Section("curve", shown.title, tables=(shown,), plots=(Plot("curve", shown.title, says, spec),))


def _report(found: Evaluations, model: str) -> dict[str, Any] | None:
    """How an evaluated model was made, by what its folder tells; None where that is no such thing, or it is gone."""
    folder = next((Path(cell.result.path) for key, cell in found.cells.items() if key[0] == model), None)
    return (merges.read(folder) or _checkpoint(folder)) if folder else None


def _checkpoint(folder: Path) -> dict[str, Any] | None:
    """Of a checkpoint that was exported, in the form of a merge's report."""
    record = read_json(folder / RECORD)
    if "checkpoint" not in record:
        return None
    return {"method": "checkpoint", "models": {}, "cell": {"step": record["checkpoint"], "training": record["run"]}}


def _axis(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """t, where any model has it; else the first number that two of them have differently."""
    for key in dict.fromkeys([WEIGHT, *(key for cell in cells for key in cell)]):
        values = {cell.get(key) for cell in cells if _is_number(cell.get(key))}
        if len(values) > (key != WEIGHT):
            return key
    return None


def _points(made: Mapping[str, dict[str, Any]], axis: str) -> list[Point]:
    """The models that have a place. What they all have alike besides it is not told."""
    cells = {model: report["cell"] for model, report in made.items() if _is_number(report["cell"].get(axis))}
    keys = [key for key in dict.fromkeys(key for cell in cells.values() for key in cell) if key != axis]
    keys = [key for key in keys if len({_shown(cell.get(key)) for cell in cells.values()}) > 1]
    return [
        Point(
            model,
            float(cell[axis]),
            ", ".join(f"{key} {_shown(cell[key])}" for key in keys if cell.get(key) is not None),
        )
        for model, cell in cells.items()
    ]


def _inputs(found: Evaluations, made: Mapping[str, dict[str, Any]], points: Sequence[Point]) -> list[Point]:
    """Evaluated inputs of slerps as the ends of their curves, where no merge stands there."""
    weights = {cell.result.weights: model for (model, _), cell in found.cells.items()}
    have = {(point.others, point.place) for point in points}
    ends: dict[tuple[str, float], Point] = {}
    for point in points:
        report = made[point.model]
        if report["method"] != "slerp" or report["cell"].get("filters"):
            continue
        for end, facts in zip((0.0, 1.0), report["models"].values(), strict=False):
            if (label := weights.get(facts["digest"])) and (point.others, end) not in have:
                ends[point.others, end] = Point(label, end, point.others)
    return list(ends.values())


def _rows(found: Evaluations, points: Sequence[Point], axis: str) -> list[dict[str, Any]]:
    return [
        {axis: point.place, **bounds(mean), "what": f"{benchmark} · {point.others}" if point.others else benchmark}
        for benchmark in (*found.benchmarks, AVERAGE)
        for point in points
        if (mean := found.mean(point.model, benchmark))
    ]


def _scores(found: Evaluations, model: str) -> list[table.Cell | table.Value]:
    means = [found.mean(model, one) for one in (*found.benchmarks, AVERAGE)]
    return [table.Cell(mean.value * PERCENT) if mean else None for mean in means]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:g}" if _is_number(value) else str(value)
