"""Plots of evaluations: scores, and differences to the base."""

from typing import Any, Final

from hala_hpc.report.page import plots
from hala_hpc.report.page.plots import Plot
from hala_hpc.tasks.evaluate.paired import Mean
from hala_hpc.tasks.evaluate.scores import AVERAGE, PERCENT, Evaluations

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
