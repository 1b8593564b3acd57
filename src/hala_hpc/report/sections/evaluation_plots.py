"""Plots of evaluations: scores, differences to the base, and scores over a number that models were made by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.models.card import read_json
from hala_hpc.models.check import RECORD
from hala_hpc.report.page import plots, table
from hala_hpc.report.page.plots import Plot
from hala_hpc.report.page.table import Section
from hala_hpc.report.sections import merges
from hala_hpc.tasks.evaluate.scores import AVERAGE, PERCENT, Evaluations
from hala_hpc.tasks.evaluate.statistics import Mean

MOST_BESIDE: Final = plots.MOST_COLOURS
"""Models side by side in one plot; more are shown as a grid of numbers."""


def scores(found: Evaluations) -> Plot:
    """Every model on every benchmark, and its average."""
    rows: list[dict[str, Any]] = [
        {"benchmark": benchmark, "model": model, **bounds(mean)}
        for benchmark in (*found.benchmarks, AVERAGE)
        for model in found.models
        if (mean := found.mean(model, benchmark))
    ]
    says = "Scores: " + "; ".join(
        f"{model} {mean.value * PERCENT:.2f}" for model in found.models if (mean := found.average(model))
    )
    if len(found.models) > MOST_BESIDE:
        title = "Scores in percent; the darker, the better among the models of a column"
        across = ("benchmark", [*found.benchmarks, AVERAGE])
        return Plot("scores", title, says, plots.grid(_placed(rows), across, ("model", found.models), "score"))
    label = "score in percent, with its standard error"
    return Plot("scores", "Scores", says, plots.bars(rows, "benchmark", "score", ("model", found.models), label))


def differences(found: Evaluations) -> list[Plot]:
    """To the base, by benchmark; of many models that of the average alone."""
    only_average = len(found.models) > MOST_BESIDE
    rows: list[dict[str, Any]] = []
    for (model, benchmark), gap in found.differences.items():
        low, high = (bound * PERCENT for bound in gap.interval)
        if benchmark == AVERAGE or not only_average:
            value = {"difference": gap.value * PERCENT, "low": low, "high": high}
            rows.append({"benchmark": benchmark, "model": model, **value, "p": gap.p})
    if not rows:
        return []
    order = {name: place for place, name in enumerate((*found.benchmarks, AVERAGE))}
    rows.sort(key=lambda row: order[row["benchmark"]])
    title = f"Differences to {found.base}" + (", average" if only_average else "")
    label = "points of percent, with 95 % intervals"
    beside = ("benchmark", [AVERAGE]) if only_average else ("model", found.models)
    spec = plots.forest(rows, "model" if only_average else "benchmark", "difference", beside, label)
    return [Plot("differences", title, f"{title}, with 95 % intervals", spec)]


def bounds(mean: Mean) -> dict[str, float]:
    """A score in percent, with a standard error below and above; none of a single question."""
    value, error = mean.value * PERCENT, (mean.error if mean.error == mean.error else 0.0) * PERCENT
    return {"score": value, "low": value - error, "high": value + error}


def _placed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With ``place``: 0 for the lowest score of a benchmark, 1 for the highest."""
    found = []
    for row in rows:
        beside = [other["score"] for other in rows if other["benchmark"] == row["benchmark"]]
        span = max(beside) - min(beside)
        found.append({**row, "place": (row["score"] - min(beside)) / span if span else 0.5})
    return found


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
