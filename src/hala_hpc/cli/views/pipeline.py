"""A pipeline as people see it: its stages, how each stands, and what comes next."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from hala_hpc.cli import common
from hala_hpc.config.errors import few, plural
from hala_hpc.pipeline import lookup
from hala_hpc.pipeline.forecast import Forecast, Plans, total
from hala_hpc.pipeline.survey import HALTED, StageStatus, Survey
from hala_hpc.slurm import local

STYLES = {"done": "green", "running": "cyan", "left out": "dim", "waiting": "dim"} | dict.fromkeys(HALTED, "red")

WORDS_WIDTH = 32
"""Least width of the column of words (ours): names of stages that come before are whole on lines of 80 characters."""


def table(now: Survey) -> Table:
    """The stages in the order in which they are done."""
    result = _table("stage", "state", "progress", "left", "")
    for status in now.stages.values():
        style = STYLES.get(status.state, "yellow")
        result.add_row(status.name, f"[{style}]{status.state}[/]", *_progress(status), _words(now, status))
    return result


def _table(*columns: str, right: Collection[str] = ()) -> Table:
    """Only the words of the last column are broken where lines are short; numbers are on the ``right``."""
    result = common.table(*columns)
    for column in result.columns[:-1]:
        column.no_wrap = True
        column.justify = "right" if column.header in right else "left"
    result.columns[-1].min_width = WORDS_WIDTH
    return result


def as_json(now: Survey) -> dict[str, Any]:
    """The same for scripts."""
    listed = [
        {"stage": status.name, "state": status.state, "reason": status.reason, "takes": list(status.stage.takes)}
        | ({"path": str(status.folder)} if status.folder else {})
        | ({"result": status.result} if status.result else {})
        | ({"answer": dict(status.outcome)} if status.outcome else {})
        for status in now.stages.values()
    ]
    return {"pipeline": str(now.pipeline.folder), "finished": now.finished, "stages": listed}


def summary(now: Survey) -> str:
    """One line: how many stages are in which state."""
    counts: dict[str, int] = {}
    for status in now.stages.values():
        counts[status.state] = counts.get(status.state, 0) + 1
    listed = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{now.pipeline.name}: {plural(len(now.stages), 'stage')}: {listed}"


def next_step(now: Survey) -> str:
    """What a person does next."""
    if now.finished:
        return "finished"
    if now.is_cancelled:
        return f"cancelled; hala resume {now.pipeline.name} goes on"
    if now.in_state("failed", "stopped", "cancelled"):
        return f"hala resume {now.pipeline.name} tries again what failed, stopped or was cancelled"
    return ""


def is_abandoned(now: Survey) -> bool:
    """Whether a pipeline without Slurm has lost the process that went through its stages."""
    is_here = now.pipeline.recipe.site.executor == "local"
    return is_here and not now.has_ended and not local.workers(now.pipeline.folder)


def planned(now: Survey, plans: Plans, so_far: Mapping[str, Forecast]) -> dict[str, Any]:
    """The plan of a pipeline, for scripts."""
    record = as_json(now)
    for stage in record["stages"]:
        runs, warnings = plans.get(stage["stage"], ([], []))
        stage |= {"forecast": asdict(so_far[stage["stage"]])}
        stage |= ({"plans": runs} if runs else {}) | ({"warnings": warnings} if warnings else {})
    return record | {"gpu_hours": total(forecast.gpu_hours for forecast in so_far.values())}


def plan_lines(now: Survey, plans: Plans, so_far: Mapping[str, Forecast]) -> Iterator[object]:
    """The plan of a pipeline, for people; what is only a forecast has a tilde, what is not known a question mark."""
    numbers = ("rows", "tokens", "steps", "GPU-hours")
    result = _table("stage", "state", *numbers, "", right=numbers)
    for status in now.stages.values():
        style = STYLES.get(status.state, "yellow")
        cells = _numbers(so_far[status.name])
        result.add_row(status.name, f"[{style}]{status.state}[/]", *cells, _words(now, status))
    yield result
    hours = total(forecast.gpu_hours for forecast in so_far.values())
    unknown = [name for name, forecast in so_far.items() if forecast.is_training and forecast.gpu_hours is None]
    without = f", without {few(unknown, 4, ' and {} more')}" if unknown else ""
    yield summary(now) + ("" if hours is None else f"; trainings: about {hours:,.0f} GPU-hours{without}")
    for name, (runs, warnings) in plans.items():
        for run in runs:
            yield from (f"note: stage {name}: {count:,} {note}" for note, count in run["notes"].items())
        yield from (f"warning: stage {name}: {warning}" for warning in warnings)
    yield from _not_known(plans, so_far)


def _not_known(plans: Plans, so_far: Mapping[str, Forecast]) -> Iterator[str]:
    """A line for each reason why numbers are not known, besides those that stand there as warnings."""
    reasons: dict[str, list[str]] = {}
    for name, forecast in so_far.items():
        if forecast.unknown and forecast.unknown not in plans.get(name, ((), ()))[1]:
            reasons.setdefault(forecast.unknown, []).append(name)
    for reason, names in reasons.items():
        yield f"not known: {', '.join(names)}: {reason}"
    if standing := [name for name, forecast in so_far.items() if forecast.unknown_of]:
        yield f"not known, as they take what is not: {', '.join(standing)}"


def _numbers(forecast: Forecast) -> list[str]:
    """Rows, tokens, steps and GPU-hours."""
    sign, gap = "" if forecast.is_planned else "~", "" if forecast.is_known else "?"
    gaps = (gap, gap, *[gap if forecast.is_training else ""] * 2)
    numbers = (forecast.rows, forecast.tokens, forecast.steps)
    written = [None if number is None else f"{sign}{number:,}" for number in numbers]
    written.append(None if forecast.gpu_hours is None else f"{sign}{forecast.gpu_hours:,.1f}")
    return [blank if text is None else text for text, blank in zip(written, gaps, strict=True)]


def _words(now: Survey, status: StageStatus) -> str:
    before = now.pipeline.before(status.stage)
    after = f"after {few(before, 4)}" if before and status.state in ("ready", "planned") else ""
    reason = status.reason
    if status.state == "ready" and status.earlier is not None:
        reason = f"again: {reason}"
    where = status.folder.name if status.folder and status.folder.name != status.name else ""
    return escape("; ".join(filter(None, (where, reason, after))))


def _progress(status: StageStatus) -> tuple[str, str]:
    """Rows or shards that are done, and the time left of what runs."""
    if status.folder is None or status.state in ("done", "planned"):
        return "", ""
    states = [lookup.state_of(path) for path in lookup.runs_of(status.folder)]
    done, rows = sum(state.rows_done for state in states), sum(state.rows for state in states)
    shards = f"{sum(state.done for state in states):,}/{sum(state.shards for state in states):,} shards"
    left = [state.seconds_left for state in states if state.seconds_left is not None and not state.finished]
    words = f"{done:,}/{rows:,} {states[0].unit}" if states[0].unit == "rows" else shards
    return words, common.human_seconds(max(left)) if left else ""


def why(status: StageStatus) -> Iterator[str]:
    """Why a stage is or is not to be done again."""
    yield f"{status.name}: {status.state}" + (f" ({status.reason})" if status.reason else "")
    if status.key is None:
        yield "what it takes is not there yet, so it is not known whether it would be the same"
        return
    if status.earlier is None:
        yield "there is no other version of it"
        return
    differences = status.key.differences(status.earlier.key)
    was = status.earlier.folder or "the last time"
    yield (
        f"it is not what {was} was, by:" if status.folder is None else f"it is {status.folder.name}; {was} differs by:"
    )
    yield from (f"  {line}" for line in differences)
