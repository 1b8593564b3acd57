"""What ``hala cost`` shows."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from hala_hpc.cli import common
from hala_hpc.config.errors import plural
from hala_hpc.pipeline.cost import CostReport
from hala_hpc.run.cost import HOUR, Cost
from hala_hpc.run.goodput import Done

JOULES = 3.6e6
"""Of a kilowatt-hour."""
UNKNOWN = "not measured"
LAYERS = {"infrastructure": "of the allocated time workers ran", "framework": "of that the engine was busy"}


def lines(report: CostReport) -> Iterator[object]:
    """A table of the parts, where there are several, and then what all of it cost."""
    if len(report.parts) > 1:
        yield _parts(report)
        yield ""
    yield common.facts([(name, text) for name, text in _facts(report.whole) if text])
    yield from (f"note: {note}" for note in report.whole.notes)


def _parts(report: CostReport) -> Table:
    columns = ("GPU-hours", "node-hours", "requeues", "ran", "busy", "output", "all")
    table = common.table("", *columns, right=columns)
    for cost in (*report.parts, report.whole):
        hours = (_hours(cost.given.gpu_seconds), _hours(cost.given.node_seconds))
        name = "sum" if cost is report.whole else cost.name
        shares = [_share(share) if share is not None else "-" for share in cost.goodput.values()]
        table.add_row(name, *hours, f"{cost.given.requeues:,}", *shares)
    return table


def _facts(cost: Cost) -> Iterator[tuple[str, str]]:
    given = cost.given
    yield "run", cost.name
    yield "from", f"Slurm's {cost.source}" if given.allocations and cost.source != "ledger" else "the workers' ledgers"
    yield "GPU-hours", _hours(given.gpu_seconds)
    yield "node-hours", f"{_hours(given.node_seconds)}, of a shared node as of a whole one"
    starts = f"{plural(given.allocations, 'start')} of jobs, {plural(given.requeues, 'requeue')}"
    yield "workers", f"{_hours(cost.worker_seconds)} hours of {plural(cost.workers, 'worker')}; {starts}"
    yield "wall time", f"{common.human_seconds(cost.wall_seconds)} from the first start to the last end"
    mean = f"{common.human_seconds(given.waited / given.waits)} on average" if given.waits else ""
    longest = f"{common.human_seconds(given.longest_wait)} at most, of {plural(given.waits, 'start')}"
    yield "queue time", f"{mean}, {longest}" if given.waits else UNKNOWN
    whole = cost.goodput
    yield "goodput", _share(whole["all"]) if whole["all"] is not None else UNKNOWN
    for name, what in LAYERS.items():
        yield f"  {name}", f"{_share(whole[name])} {what}" if whole[name] is not None else UNKNOWN
    published = f"{_share(whole['output'])} of that ended in published output"
    yield "  output", published if whole["output"] is not None else "nothing is published yet"
    yield "done twice", _twice(cost)
    if cost.steps is not None:
        yield "steps", f"{cost.steps['useful']:,} made the model, {cost.steps['repeated']:,} were done again"
    yield "tokens", _tokens(cost)
    cores = f"{_hours(given.cpu_given)} core-hours"
    yield "CPU", f"{_share(cost.cpu_efficiency)} of {cores}" if cost.cpu_efficiency is not None else UNKNOWN
    share, peak, memory = cost.memory_efficiency, (given.peak or 0) / 1e9, (given.memory or 0) / 1e9
    yield "memory", f"{_share(share)}: {peak:,.2f} of {memory:,.2f} GB at most" if share is not None else UNKNOWN
    known = f" (of {given.energies} of {given.allocations} starts)" if given.energies < given.allocations else ""
    yield "energy", f"{given.energy / JOULES:,.3f} kWh{known}" if given.energy is not None else UNKNOWN


def _twice(cost: Cost) -> str:
    amounts = {why: amount for why, amount in cost.done.twice.items() if amount}
    silent = ""
    if cost.silent:
        silent = f"; what {plural(cost.silent, 'worker')} did in the last seconds before it was killed is not known"
    if not amounts:
        return f"nothing that ledgers know of{silent}"
    ranked = sorted(amounts.items(), key=lambda pair: -pair[1])
    reasons = ", ".join(f"{_amount(cost.done, amount)} because {why}" for why, amount in ranked)
    return f"{'at least ' if silent else ''}{reasons}{silent}"


def _amount(done: Done, amount: float) -> str:
    return plural(round(amount), "row") if done.unit == "rows" else common.human_seconds(amount)


def _tokens(cost: Cost) -> str:
    counts: Mapping[str, int] = {
        "read": cost.prompt_tokens,
        "written": cost.output_tokens,
        "trained on": cost.trained_tokens,
    }
    listed = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    days = cost.gpu_days_per_billion_tokens
    return listed + (f"; {days:,.2f} GPU-days per billion {cost.costly}" if days is not None else "")


def _hours(seconds: float) -> str:
    """Hours with as many digits as they are worth."""
    hours = seconds / HOUR
    return f"{hours:,.1f}" if hours >= 100 else f"{hours:,.3g}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
