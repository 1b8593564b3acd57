"""How a run went: rates over time, who was at which shard, what failed."""

import re
from collections import Counter
from collections.abc import Sequence

from hala_hpc.report.page import plots, table
from hala_hpc.report.page.plots import Plot
from hala_hpc.report.page.table import Section, Table, isolated
from hala_hpc.report.runs import Run
from hala_hpc.run import history
from hala_hpc.run.history import History, Incident

MOST_WORKERS = 60
"""Lines of the plot of shards; of more workers the first ones are drawn."""
MOST_REASONS = 12
MOST_TROUBLES = 50
REASON_LENGTH = 90


def section(run: Run) -> Section:
    """The work on one run."""
    past = run.history
    name = f"work-{run.name}"
    if not past.workers:
        return Section(name, f"Work on {isolated(run.name)}", ("Nobody has worked on it, or its ledgers are gone.",))
    drawn = (*_progress(run, past, name), *_shards(past, name), *_failures(past, name))
    text = (
        f"Workers: {len(past.workers):,}, nodes: {len({worker.host for worker in past.workers}):,}, "
        f"worker-hours: {past.worker_seconds / 3600:,.2f}, failures: {len(past.troubles):,}."
    )
    return Section(name, f"Work on {isolated(run.name)}", (text,), _troubles(past, name), drawn)


def _progress(run: Run, past: History, name: str) -> list[Plot]:
    """Rates of a run of rows, and of tokens. Items are few and each takes long: of them how many were done by then."""
    rates = _rates(run, past, name)
    ends = sorted(span.end for worker in past.workers for span in worker.spans if span.ending == "done")
    unit = run.facts.unit
    if unit == "rows" or len(ends) < 2:
        return rates
    scale, across = _time(past)
    rows = [{"time": 0.0, "done": 0}] + [
        {"time": (end - past.start) / scale, "done": n} for n, end in enumerate(ends, 1)
    ]
    title = f"{unit[0].upper()}{unit[1:]} done"
    says = f"{title} over time, {len(ends)} of {run.status.shards} in the end"
    return [Plot(f"{name}-done", title, says, plots.area(rows, "time", "done", (across, title))), *rates]


def _rates(run: Run, past: History, name: str) -> list[Plot]:
    unit, scale, across = run.facts.unit, *_time(past)
    found = [
        {"time": one.seconds / scale, unit: one.rows, "tokens": one.tokens, "workers": one.workers}
        for one in history.rates(past)
    ]
    what = {"tokens": "tokens/s"} | ({"workers": "workers"} if len(past.workers) > 1 else {})
    if unit == "rows":
        what = {unit: "rows/s"} | what
    return [
        Plot(
            f"{name}-{key}",
            f"{title[0].upper()}{title[1:]} over time",
            f"{title} of {run.name} over time, highest {max(row[key] for row in found):,.2f}",
            plots.area(found, "time", key, (across, title)),
        )
        for key, title in what.items()
        if any(row[key] > 0 for row in found)
    ]


def _shards(past: History, name: str) -> list[Plot]:
    shown = {worker.name: number for number, worker in enumerate(past.workers[:MOST_WORKERS], 1)}
    scale, across = _time(past)
    shortest = (past.end - past.start) / history.PARTS
    spans = [span for worker in past.workers if worker.name in shown for span in worker.spans]
    if not spans:
        return []
    hosts = {worker.name: worker.host for worker in past.workers}
    rows = [
        {
            "worker": f"{shown[span.worker]} · {hosts[span.worker]}",
            "start": (span.start - past.start) / scale,
            "end": (span.end - past.start) / scale,
            "ending": span.ending,
            "shard": span.shard,
        }
        for span in history.joined(spans, shortest)
    ]
    rows.sort(key=lambda row: (int(str(row["worker"]).partition(" ")[0]), row["start"]))
    hidden = f", the first {MOST_WORKERS} of {len(past.workers)}" if len(past.workers) > MOST_WORKERS else ""
    title = f"Shards over time by worker{hidden}"
    says = f"{title}: {len(spans):,} claims, {sum(span.ending == 'done' for span in spans):,} of them finished"
    return [Plot(f"{name}-shards", title, says, plots.spans(rows, across, (past.end - past.start) / scale))]


def _failures(past: History, name: str) -> list[Plot]:
    counted = Counter(_reason(trouble) for trouble in past.troubles).most_common(MOST_REASONS)
    if not counted:
        return []
    rows = [{"reason": reason, "times": times} for reason, times in counted]
    says = f"Failures by reason; most often: {counted[0][0]}, {counted[0][1]} times"
    return [Plot(f"{name}-failures", "Failures by reason", says, plots.counts(rows, "reason", "times"))]


def _troubles(past: History, name: str) -> tuple[Table, ...]:
    troubles: Sequence[Incident] = past.troubles
    rows: list[list[table.Cell | table.Value]] = [
        [
            table.Cell((one.time - past.start) / 60, digits=1),
            one.worker,
            one.host,
            "" if one.shard is None else str(one.shard),
            one.error,
        ]
        for one in troubles[-MOST_TROUBLES:]
    ]
    if not rows:
        return ()
    note = f"The last {MOST_TROUBLES} of {len(troubles):,}." if len(troubles) > MOST_TROUBLES else ""
    columns = ["minutes after start", "worker", "node", "shard", "error"]
    return (table.of(f"{name}-failures", "Failures", columns, rows, note),)


def _reason(trouble: Incident) -> str:
    """The same for failures that differ in a number or a name only."""
    first = (trouble.error.splitlines() or [""])[0]
    return re.sub(r"\d+", "#", re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "…", first))[:REASON_LENGTH]


def _time(past: History) -> tuple[float, str]:
    """Seconds of the unit that suits the run, and its name."""
    length = past.end - past.start
    return next(
        (unit, f"{name} since the start")
        for unit, name, least in (
            (86400.0, "days", 4 * 86400),
            (3600.0, "hours", 3 * 3600),
            (60.0, "minutes", 120),
            (1.0, "seconds", 0),
        )
        if length >= least
    )
