"""What several commands share: options, what they show, progress."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, few, plural
from hala_hpc.slurm.record import Submission

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON, for scripts.")
site_option = click.option(
    "--site",
    default=lambda: places.from_environment("HALA_SITE") or "",
    help="A site profile: its name or its file. [$HALA_SITE, else local]",
)
wait_option = click.option(
    "--wait", type=click.IntRange(1, 86_400), default=120, help="Seconds that a test job may wait to start. [120]"
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
run_argument = click.argument("run", metavar="RUN")


class PathOption(click.Path):
    """A path of an option: `~` and variables that no shell has expanded (``--to=~/x``) are, or are refused.

    An empty one is refused, which would be the current folder: ``--to "$UNSET"``.
    """

    def __init__(self, exists: bool = False, dir_okay: bool = True) -> None:
        super().__init__(exists, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        what = param.opts[0] if param else "path"
        if not str(value).strip():
            raise HalaError(f"{what}: is empty", "give a path; a variable that is not set is empty")
        return super().convert(places.expanded(str(value), what), param, ctx)


recipe_argument = click.argument("recipe", type=PathOption())


def handed_in(submission: Submission, purpose: str) -> str:
    """What was started, and where: 2 workers for RUN (slurm 4711)."""
    return f"{plural(submission.workers, 'worker')} {purpose} ({submission.executor} {few(submission.jobs, 4)})"


def table(*columns: str, right: Collection[str] = ()) -> Table:
    """A table without lines; numbers are on the ``right``, and no cell of such a table is broken."""
    result = Table(box=None, pad_edge=False)
    for name in columns:
        result.add_column(name, no_wrap=bool(right), justify="right" if name in right else "left")
    return result


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values."""
    result = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        result.add_row(*row)
    return result


def show_table(table: Any) -> None:
    """A rich table on standard output, without the blanks at the ends of its lines, which scripts would get too."""
    console = Console(soft_wrap=True)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def owner_of_closed(folder: Path) -> str | None:
    """Whose folder it is, where it exists and this user may not read and write it; None where all is well."""
    if not folder.is_dir() or os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return None
    try:
        return folder.owner()
    except KeyError:
        return f"user {folder.stat().st_uid}"


class Problem(str):
    """A line that goes to standard error, where it is seen even if a script takes the output."""


def show(value: Any, json_: bool, lines: Iterable[object], well: bool | None = None) -> None:
    """What a command came to: a dataclass or plain data as JSON, or ``lines`` for people, with tables among them.

    ``well`` ends the command: exit code 0 where all is well, else 1.
    """
    if json_:
        plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        click.echo(json.dumps(plain, indent=2, ensure_ascii=False))
    for line in () if json_ else lines:
        if isinstance(line, str):
            click.echo(line, err=isinstance(line, Problem))
        else:
            show_table(line)
    if well is not None:
        raise click.exceptions.Exit(0 if well else 1)


@contextmanager
def counting(title: str) -> Iterator[Callable[[Iterator[Any]], Iterator[Any]]]:
    """A progress bar on standard error around an iterator of known length (its ``__len__``, else open-ended)."""
    from rich.progress import Progress  # `hala status` has no use for it

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield lambda items: iter(bar.track(items, description=title))


def human_seconds(seconds: float | None) -> str:
    """A time as people say it: 3 h 05 min."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
