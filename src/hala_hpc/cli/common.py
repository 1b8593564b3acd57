"""What several commands share: options, finding recipes, sites and runs, progress."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hala_hpc.config.schema import Recipe, Run

if TYPE_CHECKING:
    from hala_hpc.slurm.commands import JobState

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON, for scripts.")
site_option = click.option(
    "--site",
    default=lambda: os.environ.get("HALA_SITE", "local"),
    help="A site profile: its name or its file. [$HALA_SITE, else local]",
)
recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
run_argument = click.argument("run", metavar="RUN")


def runs_root() -> Path:
    """Where runs are looked for by name: $HALA_RUNS, else ./runs."""
    return Path(os.environ.get("HALA_RUNS", "runs"))


def find(run: str) -> Path:
    """A run by its path or name."""
    from hala_hpc.run.layout import find_run

    return find_run(run, runs_root())


def hpc_roots() -> list[Path]:
    """Where site profiles and lock files are: the current folder, an installed package, a checkout."""
    import hala_hpc

    package = Path(hala_hpc.__file__).parent
    return [root for root in (Path("hpc"), package / "hpc", package.parents[1] / "hpc") if root.is_dir()]


def load(recipe: Path | None, site: str, overrides: tuple[str, ...]) -> Recipe:
    """The recipe of a command line. $HALA_RUNS, where it is set, is the default of run.root."""
    from hala_hpc import tasks
    from hala_hpc.config.compose import compose, find_profile

    profile = find_profile(site, "sites", hpc_roots())
    composed = compose(recipe, profile, overrides, tasks.options_of)
    if composed.run.root == Run().root:
        composed.run.root = str(runs_root().resolve())
    return composed


def load_site(site: str, overrides: tuple[str, ...]) -> Recipe:
    """A site profile alone, as a recipe that asks for nothing."""
    return load(None, site, ("name=doctor", *overrides))


def thawed(run: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The frozen recipe of a run."""
    from hala_hpc import tasks
    from hala_hpc.config.compose import thaw

    return thaw(run / "recipe.yaml", tasks.options_of, overrides)


def frozen(run: Path) -> dict[str, Any]:
    """The frozen recipe of a run as plain data, without the machinery that checks one: status must be quick.

    Raises HalaError where it cannot be read.
    """
    import yaml

    from hala_hpc.config.errors import HalaError

    hint = "a run cannot do without it: put a copy back"
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        recipe: dict[str, Any] = yaml.load((run / "recipe.yaml").read_text("utf-8"), Loader=loader)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise HalaError(f"{run / 'recipe.yaml'} cannot be read: {error}", hint) from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("run"), dict):
        raise HalaError(f"{run / 'recipe.yaml'} is no frozen recipe of a run", hint)
    return recipe


def run_settings(run: Path) -> Run:
    """The ``run`` section of a frozen recipe. Raises HalaError where it cannot be read."""
    from hala_hpc.config.errors import HalaError

    try:
        return Run(**frozen(run)["run"])
    except TypeError as error:
        raise HalaError(f"{run / 'recipe.yaml'}: {error}", "was the run planned by a newer hala?") from error


def job_states(run: Path) -> "list[JobState]":
    """What Slurm says of a run's jobs, in one call; nothing where the run is not Slurm's or Slurm is away."""
    from hala_hpc.config.errors import HalaError
    from hala_hpc.slurm import commands
    from hala_hpc.slurm.submit import slurm_jobs

    try:
        return commands.states(slurm_jobs(run))
    except HalaError:
        return []


def owner_of_closed(folder: Path) -> str | None:
    """Whose folder it is, where it exists and this user may not read and write it; None where all is well."""
    import pwd

    if not folder.is_dir() or os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return None
    uid = folder.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def echo_json(value: Any) -> None:
    """A dataclass or plain data, as JSON on standard output."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    click.echo(json.dumps(plain, indent=2, ensure_ascii=False))


@contextmanager
def counting(title: str) -> Iterator[Callable[[Iterator[Any]], Iterator[Any]]]:
    """A progress bar on standard error around an iterator of known length (its ``__len__``, else open-ended)."""
    from rich.console import Console
    from rich.progress import Progress

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
