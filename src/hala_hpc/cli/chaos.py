"""``hala chaos``: hurt a run's own workers on purpose, and say what that cost."""

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.pipeline import chaos, harm, lookup, succession
from hala_hpc.pipeline.chaos import Fault
from hala_hpc.pipeline.harm import Harm
from hala_hpc.run.files import now_in
from hala_hpc.run.layout import RunDirectory
from hala_hpc.slurm.allocation import StopFlag


@click.command()
@common.run_argument
@click.option("--minutes", type=click.FloatRange(0, 10_000, min_open=True), default=10.0, help="How long. [10]")
@click.option("--every", type=click.FloatRange(1, 3_600), default=10.0, help="Seconds from fault to fault. [10]")
@click.option("--seed", type=click.IntRange(0), help="Draws the faults. [a new one, which is shown]")
@click.option(
    "--fault", "kinds", type=click.Choice(list(chaos.KINDS)), multiple=True, help="Several may be given. [all]"
)
@click.option(
    "--patience", type=click.FloatRange(0), default=60.0, help="Minutes to wait for the run's end afterwards. [60]"
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.as_json
def chaos_command(
    run: str,
    minutes: float,
    every: float,
    seed: int | None,
    kinds: tuple[str, ...],
    patience: float,
    yes: bool,
    json_: bool,
) -> None:
    r"""Kill, stop, drain and requeue the run's own workers for some minutes; then prove what it published.

    Shows rows lost, published twice and computed twice, and goodput. Exit code 1: a row was lost or published twice, or
    the run did not come to its end.

    \b
    hala chaos echo
    hala chaos translate-openorca --minutes 60 --every 30 --seed 1
    hala chaos translate-openorca --fault kill --fault requeue --yes --json | jq .lost
    """
    path = lookup.find(run)
    chaos.check(path)
    kinds = tuple(dict.fromkeys(kinds)) or tuple(chaos.KINDS)
    if not yes:
        _ask(path, minutes, every, kinds)
    if not succession.follows(lookup.thawed(path)):
        click.echo(f"no steward follows this run: have `hala steward {path} --watch` look after it", err=True)
    seed = random.randrange(1_000_000) if seed is None else seed
    since, should_stop = now_in(RunDirectory(path).leases), StopFlag(is_silent=True)
    click.echo(f"seed {seed}", err=json_)
    done: list[Fault] = []
    for fault in chaos.unleash(path, 60 * minutes, every, seed, kinds, should_stop):
        if isinstance(fault, Fault):
            done.append(fault)
        click.echo(_line(fault, 60 * minutes) if isinstance(fault, Fault) else fault, err=json_)
    click.echo(f"waiting for its end, {patience:g} min at most: hala status {path} --watch", err=True)
    unfinished = harm.wait(path, 60 * patience, should_stop)
    result = harm.judge(path, since)
    counts = dict(Counter(fault.kind for fault in done if not fault.refused))
    record: dict[str, object] = {"seed": seed, "faults": counts, "refused": sum(bool(fault.refused) for fault in done)}
    record |= {**result.as_json(), "unfinished": unfinished}
    common.show(record, json_, _lines(path, result, counts, unfinished), result.is_well)


def _ask(run: Path, minutes: float, every: float, kinds: tuple[str, ...]) -> None:
    """Raises HalaError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise HalaError("this hurts a run, and nobody is here to ask", "--yes")
    often = f"every {every:g} s for {common.human_seconds(60 * minutes)}"
    listed = "\n".join(f"  {kind}: {chaos.KINDS[kind]}" for kind in kinds)
    click.echo(f"Your workers of {run} are hurt {often}, one at a time, by\n{listed}", err=True)
    click.confirm("Go on?", abort=True, err=True)


def _line(fault: Fault, seconds: float) -> str:
    left = common.human_seconds(max(0.0, seconds - fault.seconds))
    lasts = f" for {fault.lasts:.0f} s" if fault.lasts else ""
    refused = f": refused: {fault.refused}" if fault.refused else ""
    return f"{fault.seconds:6.0f} s: {fault.kind} {fault.job} on {fault.node}{lasts}{refused} ({left} left)"


def _lines(run: Path, result: Harm, counts: dict[str, int], unfinished: str) -> Iterator[object]:
    if unfinished:
        yield common.Problem(f"not finished: {unfinished} (hala status {run})")
    yield from (common.Problem(problem) for problem in result.problems)
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    unknown = f" (and about {result.unknown:,} in the last seconds of killed workers)" if result.unknown else ""
    of_rows = f"of {plural(result.rows, 'row')}"
    layers = {name: f"{share:.1%}" for name, share in result.goodput.items() if share is not None}
    by = {"a person": result.by_people, "stewards": result.by_stewards}
    started = few([f"{count} times by {who}" for who, count in by.items() if count], 2)
    yield common.facts(
        [
            ("faults", faults or "none"),
            ("rows lost", "not known before its end" if result.lost is None else f"{result.lost:,} {of_rows}"),
            ("published twice", f"{result.published_twice:,}"),
            ("computed twice", f"{result.computed_twice:,}{unknown}: {result.share_twice:.2%}"),
            ("goodput", ", ".join(f"{name} {share}" for name, share in layers.items()) or "not measured"),
            ("workers started", started or "never again"),
            ("wall time", common.human_seconds(result.seconds)),
        ]
    )
    yield "proven: every row is there exactly once" if result.is_well else "NOT proven"
