"""Plots of evaluations: scores, differences to the base, and scores over a number that models were made by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hala_hpc.models.folder import RECORD
from hala_hpc.report import plots, table
from hala_hpc.report.plots import Plot, Row
from hala_hpc.report.sections import merges
from hala_hpc.report.sections.merges import MergeReport
from hala_hpc.report.table import Cell, Section, Value
from hala_hpc.run.files import read_json
from hala_hpc.tasks.evaluate.choose import AVERAGE, PERCENT, Evaluations
from hala_hpc.tasks.evaluate.statistics import Mean

MOST_BESIDE: Final = plots.MOST_COLOURS
"""Models side by side in one plot; more are shown as a grid of numbers."""
SCORE: Final = "score in percent"


def scores(evaluations: Evaluations) -> Plot:
    """Every model on every benchmark, and its average."""
    models, columns = evaluations.models, evaluations.columns
    averages = [(model, mean) for model in models if (mean := evaluations.average(model))]
    says = f"Scores: {'; '.join(f'{model} {mean.value * PERCENT:.2f}' for model, mean in averages)}"
    by_column = {column: [evaluations.mean(model, column) for model in models] for column in columns}
    is_grid = len(models) > MOST_BESIDE
    rows: list[Row] = [
        {"benchmark": column, "model": model, **_bounds(mean), **({"place": _place(mean, means)} if is_grid else {})}
        for column, means in by_column.items()
        for model, mean in zip(models, means, strict=True)
        if mean
    ]
    if not is_grid:
        drawing = plots.bars(rows, "benchmark", "score", ("model", models), f"{SCORE}, with its standard error")
        return Plot("scores", "Scores", says, drawing)
    title = "Scores in percent; the darker, the better among the models of a column"
    return Plot("scores", title, says, plots.grid(rows, ("benchmark", columns), ("model", models), "score"))


def _place(mean: Mean, beside: Sequence[Mean | None]) -> float:
    """0 for the lowest score of a benchmark, 1 for the highest."""
    scores = [other.value for other in beside if other]
    span = max(scores) - min(scores)
    return (mean.value - min(scores)) / span if span else 0.5


def differences(evaluations: Evaluations) -> list[Plot]:
    """Differences to the base, by benchmark; where there are many models, only that of the average."""
    only_average = len(evaluations.models) > MOST_BESIDE
    shown = [AVERAGE] if only_average else evaluations.columns
    rows: list[Row] = [
        {"benchmark": column, "model": model, "difference": value, "low": low, "high": high, "p": gap.p}
        for column in shown
        for (model, benchmark), gap in evaluations.differences.items()
        if benchmark == column
        for value, low, high in [[PERCENT * number for number in (gap.value, *gap.interval)]]
    ]
    if not rows:
        return []
    title = f"Differences to {evaluations.base}" + (", average" if only_average else "")
    group, colours = ("model", ("benchmark", shown)) if only_average else ("benchmark", ("model", evaluations.models))
    drawing = plots.bars(rows, group, "difference", colours, "points of percent, with 95 % intervals", with_zero=True)
    return [Plot("differences", title, f"{title}, with 95 % intervals", drawing)]


def _bounds(mean: Mean) -> dict[str, float]:
    """A score in percent, with a standard error below and above, or without where a single question has none."""
    value, error = mean.value * PERCENT, (mean.error if mean.error == mean.error else 0.0) * PERCENT
    return {"score": value, "low": value - error, "high": value + error}


WEIGHT: Final = "t"


@dataclass(frozen=True)
class Point:
    """A model on a curve: its place (a merge's weight, a checkpoint's step), and what else it was made by."""

    model: str
    place: float
    others: str


def section(evaluations: Evaluations) -> Section | None:
    """Scores over the weight of merges, or the steps of checkpoints; None where no two models differ in one.

    The inputs of a slerp are points too, where they were evaluated: the base is t = 0, the other model t = 1. They are
    known by their weights' digest.
    """
    origins = {model: origin for model in evaluations.models if (origin := _origin(evaluations, model))}
    axis = _axis([origin["cell"] for origin in origins.values()])
    if axis is None:
        return None
    points = _points(origins, axis)
    points += _inputs(evaluations, origins, points) if axis == WEIGHT else []
    if len({point.place for point in points}) < 2:
        return None
    points.sort(key=lambda point: (point.others, point.place))
    title, columns = f"Scores over {axis}", ["model", axis, "made by", *evaluations.columns]
    digits = 0 if axis != WEIGHT and all(point.place.is_integer() for point in points) else 2
    means = {point.model: evaluations.means(point.model) for point in points}
    cells = {model: [Cell(mean.value * PERCENT if mean else None) for mean in row] for model, row in means.items()}
    rows: list[table.Row] = [
        [point.model, Cell(point.place, digits=digits), point.others, *cells[point.model]] for point in points
    ]
    drawn: list[Row] = [
        {axis: point.place, **_bounds(mean), "what": f"{column} · {point.others}" if point.others else column}
        for at, column in enumerate(evaluations.columns)
        for point in points
        if (mean := means[point.model][at])
    ]
    averages = [(point.place, mean) for point in points if (mean := evaluations.average(point.model))]
    says = f"{title}: {', '.join(f'{place:g} {mean.value * PERCENT:.2f}' for place, mean in averages)}"
    drawing = plots.lines(drawn, axis, "score", "what", (axis, SCORE), points=True)
    shown = table.of("curve", title, columns, rows)
    return Section("curve", title, tables=(shown,), plots=(Plot("curve", title, says, drawing),))


def _origin(evaluations: Evaluations, model: str) -> MergeReport | None:
    """How an evaluated model was made, by the files in its folder; None where they do not say it, or are gone.

    A checkpoint that was exported is described as a merge is.
    """
    folder = next((Path(cell.result.path) for key, cell in evaluations.cells.items() if key[0] == model), None)
    if folder is None:
        return None
    if report := merges.read(folder):
        return report
    record = read_json(folder / RECORD)
    if "checkpoint" not in record:
        return None
    return {"method": "checkpoint", "models": {}, "cell": {"step": record["checkpoint"], "training": record["run"]}}


def _axis(cells: Sequence[Mapping[str, Value]]) -> str | None:
    """t, where any model has it; else the first number that two of them have differently."""
    for key in dict.fromkeys([WEIGHT, *(key for cell in cells for key in cell)]):
        values = {number for cell in cells if (number := _number(cell.get(key))) is not None}
        if len(values) > (0 if key == WEIGHT else 1):
            return key
    return None


def _points(origins: Mapping[str, MergeReport], axis: str) -> list[Point]:
    """The models that have a place. What is the same in all of them is left out of ``others``."""
    numbers = {model: _number(origin["cell"].get(axis)) for model, origin in origins.items()}
    places = {model: number for model, number in numbers.items() if number is not None}
    cells = {model: {key: _shown(value) for key, value in origins[model]["cell"].items()} for model in places}
    keys = [key for key in dict.fromkeys(key for cell in cells.values() for key in cell) if key != axis]
    keys = [key for key in keys if len({cell.get(key, "") for cell in cells.values()}) > 1]
    return [
        Point(model, places[model], ", ".join(f"{key} {cell[key]}" for key in keys if cell.get(key)))
        for model, cell in cells.items()
    ]


def _inputs(evaluations: Evaluations, origins: Mapping[str, MergeReport], points: Sequence[Point]) -> list[Point]:
    """Evaluated inputs of slerps as the ends of their curves, where no merge stands there."""
    by_weights = {cell.result.weights: model for (model, _), cell in evaluations.cells.items()}
    taken = {(point.others, point.place) for point in points}
    ends: dict[tuple[str, float], Point] = {}
    for point in points:
        origin = origins[point.model]
        if origin["method"] != "slerp" or origin["cell"].get("filters"):
            continue
        for place, source in zip((0.0, 1.0), origin["models"].values(), strict=False):
            if (model := by_weights.get(source["digest"])) and (point.others, place) not in taken:
                ends[point.others, place] = Point(model, place, point.others)
    return list(ends.values())


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(value: Value) -> str:
    number = _number(value)
    return f"{number:g}" if number is not None else "" if value is None else str(value)
