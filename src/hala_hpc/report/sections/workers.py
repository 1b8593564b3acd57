"""How a run went: rates over time, who was at which shard, what failed."""

import re
from collections import Counter
from typing import Final

from hala_hpc.config.errors import plural
from hala_hpc.report import plots, table
from hala_hpc.report.plots import Plot, Rows
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.table import Cell, Section, Table, isolated
from hala_hpc.run import history
from hala_hpc.run.history import History, Incident

MOST_WORKERS: Final = 60
"""Lines of the plot of shards; with more workers only the first ones are drawn."""
MOST_REASONS: Final = 12
MOST_TROUBLES: Final = 50
REASON_LENGTH: Final = 90
UNITS: Final = ((86400.0, "days", 4 * 86400), (3600.0, "hours", 3 * 3600), (60.0, "minutes", 120), (1.0, "seconds", 0))
"""Seconds of a unit of time, its name, and the shortest run that is shown in it."""


def section(run: ReportedRun) -> Section:
    """The work on one run."""
    past = run.history
    name, title = f"work-{run.name}", f"Work on {isolated(run.name)}"
    if not past.workers:
        return Section(name, title, ("Nobody has worked on it, or its ledgers are gone.",))
    drawn = (*_progress(run, name), *_rates(run, name), *_shards(past, name), *_failures(past, name))
    text = (
        f"Workers: {len(past.whole):,}, nodes: {len({worker.host for worker in past.workers}):,}, "
        f"worker-hours: {past.worker_seconds / 3600:,.2f}, failures: {len(past.troubles):,}."
    )
    return Section(name, title, (text, *_goodput(run)), _troubles(past, name), drawn)


def _goodput(run: ReportedRun) -> list[str]:
    """How busy engines were and what was done twice, as far as ledgers say; ``hala cost`` has all of it."""
    done = run.goodput.done
    shares = [(stay.busy, stay.seconds) for stay in run.goodput.leaves if stay.busy is not None]
    busy, seconds = sum(busy for busy, _ in shares), sum(seconds for _, seconds in shares)
    parts = [f"engines busy: {busy / seconds:.1%} of the workers' time"] if seconds and run.kind != "train" else []
    if done.unit == "rows" and (rows := round(sum(done.twice.values()))):
        parts.append(f"done twice: {plural(rows, 'row')}")
    return [_capital("; ".join(parts)) + "."] if parts else []


def _progress(run: ReportedRun, name: str) -> list[Plot]:
    """How many items were done by when: items are few and each takes long. Rows have rates instead."""
    past, unit = run.history, run.facts.unit
    ends = sorted(span.end for worker in past.workers for span in worker.spans if span.ending == "done")
    if unit == "rows" or len(ends) < 2:
        return []
    scale, across = _time(past)
    rows = [{"time": (end - past.start) / scale, "done": count} for count, end in enumerate([past.start, *ends])]
    title = f"{_capital(unit)} done"
    says = f"{title} over time, {len(ends)} of {run.status.shards} in the end"
    return [Plot(f"{name}-done", title, says, plots.area(rows, "time", "done", (across, title)))]


def _rates(run: ReportedRun, name: str) -> list[Plot]:
    unit, (scale, across) = run.facts.unit, _time(run.history)
    rows = [
        {"time": rate.seconds / scale, unit: rate.rows, "tokens": rate.tokens, "workers": rate.workers}
        for rate in history.rates(run.history)
    ]
    curves = {"rows": "rows/s"} if unit == "rows" else {}
    curves |= {"tokens": "tokens/s"} | ({"workers": "workers"} if len(run.history.whole) > 1 else {})
    highest = {key: max((row[key] for row in rows), default=0.0) for key in curves}
    return [
        Plot(
            f"{name}-{key}",
            f"{_capital(title)} over time",
            f"{title} of {run.name} over time, highest {highest[key]:,.2f}",
            plots.area(rows, "time", key, (across, title)),
        )
        for key, title in curves.items()
        if highest[key] > 0
    ]


def _shards(past: History, name: str) -> list[Plot]:
    places = {worker.name: at for at, worker in enumerate(past.workers[:MOST_WORKERS])}
    spans = [span for worker in past.workers if worker.name in places for span in worker.spans]
    if not spans:
        return []
    (scale, across), length = _time(past), past.end - past.start
    joined = history.joined(spans, length / history.PARTS)
    rows: Rows = [
        {
            "worker": f"{places[span.worker] + 1} · {past.workers[places[span.worker]].host}",
            "start": (span.start - past.start) / scale,
            "end": (span.end - past.start) / scale,
            "ending": span.ending,
            "shard": span.shard,
        }
        for span in sorted(joined, key=lambda span: (places[span.worker], span.start))
    ]
    hidden = f", the first {MOST_WORKERS} of {len(past.workers)}" if len(past.workers) > MOST_WORKERS else ""
    title = f"Shards over time by worker{hidden}"
    says = f"{title}: {len(spans):,} claims, {sum(span.ending == 'done' for span in spans):,} of them finished"
    return [Plot(f"{name}-shards", title, says, plots.spans(rows, across, length / scale))]


def _failures(past: History, name: str) -> list[Plot]:
    times = Counter(map(_reason, past.troubles)).most_common(MOST_REASONS)
    if not times:
        return []
    rows: Rows = [{"reason": reason, "times": count} for reason, count in times]
    says = f"Failures by reason; most often: {times[0][0]}, {times[0][1]} times"
    return [Plot(f"{name}-failures", "Failures by reason", says, plots.counts(rows, "reason", "times"))]


def _troubles(past: History, name: str) -> tuple[Table, ...]:
    troubles = past.troubles
    if not troubles:
        return ()
    rows: list[table.Row] = []
    for trouble in troubles[-MOST_TROUBLES:]:
        minutes = Cell((trouble.time - past.start) / 60, digits=1)
        shard = "" if trouble.shard is None else str(trouble.shard)
        rows.append([minutes, trouble.worker, trouble.host, shard, trouble.error])
    note = f"The last {MOST_TROUBLES} of {len(troubles):,}." if len(troubles) > MOST_TROUBLES else ""
    columns = ["minutes after start", "worker", "node", "shard", "error"]
    return (table.of(f"{name}-failures", "Failures", columns, rows, note),)


def _time(past: History) -> tuple[float, str]:
    """Seconds of the unit that suits the run, and its name."""
    length = past.end - past.start
    return next((scale, f"{name} since the start") for scale, name, least in UNITS if length >= least)


def _reason(trouble: Incident) -> str:
    """The same for failures that differ in a number or a name only."""
    first = (trouble.error.splitlines() or [""])[0]
    return re.sub(r"\d+", "#", re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "…", first))[:REASON_LENGTH]


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
