"""What several commands share: options, finding recipes, sites and runs, progress."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, Run
from hala_hpc.config.words import plural

if TYPE_CHECKING:
    from hala_hpc.slurm.record import Submission

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON, for scripts.")
site_option = click.option(
    "--site",
    default=lambda: places.from_environment("HALA_SITE") or "",
    help="A site profile: its name or its file. [$HALA_SITE, else local]",
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
run_argument = click.argument("run", metavar="RUN")


class Place(click.Path):
    """A path of an option: `~` and variables that no shell has expanded (``--to=~/x``) are, or are refused.

    An empty one is refused, which would be the current folder: ``--to "$UNSET"``.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        what = param.opts[0] if param else "path"
        if not str(value).strip():
            raise HalaError(f"{what}: is empty", "give a path; a variable that is not set is empty")
        return super().convert(places.expanded(str(value), what), param, ctx)


recipe_argument = click.argument("recipe", type=Place(path_type=Path))


def runs_roots() -> list[Path]:
    """Where runs are looked for by name: $HALA_RUNS and run.root of $HALA_SITE; ./runs where neither says a place.

    A recipe's runs go to the first, unless the recipe or the command line says another.
    """
    said = [places.from_environment("HALA_RUNS"), _profile_root(places.from_environment("HALA_SITE"))]
    return list(dict.fromkeys(Path(root).resolve() for root in said if root)) or [Path(Run().root).resolve()]


def runs_root() -> Path:
    """Where new runs go, and where ``hala runs`` looks."""
    return runs_roots()[0]


def _profile_root(site: str | None) -> str | None:
    """What a profile says of run.root, with only as much machinery as that takes. Raises HalaError."""
    if site is None:
        return None
    from hala_hpc.config.written import load

    path = profile_of(site)
    try:
        found = load(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HalaError(f"{path}: {error}", "the site profile that $HALA_SITE names") from error
    root = found.get("run", {}).get("root") if isinstance(found, dict) and isinstance(found.get("run"), dict) else None
    if root is None or "${oc." in str(root):
        return None
    return str(path.parent / places.expanded(str(root), f"{path}: run.root"))


def find(run: str) -> Path:
    """A run by its path or name."""
    from hala_hpc.run.layout import find_run

    if not run.strip():
        raise HalaError("'': names no run", "give its name or path; a variable that is not set is empty")

    return find_run(places.expanded(run, "RUN"), runs_roots())


def hpc_roots() -> list[Path]:
    """Where site profiles and lock files are: the current folder, an installed package, a checkout."""
    import hala_hpc

    package = Path(hala_hpc.__file__).parent
    return [root for root in (Path("hpc"), package / "hpc", package.parents[1] / "hpc") if root.is_dir()]


def profile_of(site: str) -> Path:
    """The file of a site profile, by its name or path; without either, this machine's. Raises HalaError."""
    from hala_hpc.config.compose import find_profile

    return find_profile(places.expanded(site, "--site") or "local", "sites", hpc_roots())


def load(recipe: Path | None, site: str, overrides: tuple[str, ...]) -> Recipe:
    """The recipe of a command line."""
    from hala_hpc import tasks
    from hala_hpc.config.compose import compose

    composed = compose(recipe, profile_of(site), overrides, tasks.options_of)
    composed.run.root = str(Path(composed.run.root).resolve())
    return composed


def refuse_forgotten_site(site: str, executor: str) -> None:
    """On a login node nobody starts workers by forgetting to say where. Raises HalaError."""
    if not site and executor == "local" and shutil.which("sbatch"):
        raise HalaError(
            "which site? This machine has Slurm, and without --site or $HALA_SITE the workers would run right here",
            "--site NAME, one of `hala sites`; --site local runs them here",
        )


@contextmanager
def changed(runs: "Sequence[Path]", overrides: tuple[str, ...]) -> Iterator[None]:
    """Write down what ``overrides`` change of the recipes of some runs, so that the workers that are started have it.

    Taken back where they cannot be started, unless Slurm may have taken them all the same.
    """
    from hala_hpc.config import changes
    from hala_hpc.run.changes import write
    from hala_hpc.slurm import record

    before = {run: changes.between(thawed(run), thawed(run, overrides)) for run in runs} if overrides else {}
    written = [path for run, found in before.items() if (path := write(run, found)) is not None]
    try:
        yield
    except HalaError:
        if not any(record.unanswered(run) for run in runs):
            for path in written:
                path.unlink(missing_ok=True)
        raise


def handed_in(submission: "Submission", purpose: str) -> str:
    """What was started, and where: 2 workers for RUN (slurm 4711)."""
    jobs = ", ".join(submission.jobs[:4]) + (", …" if len(submission.jobs) > 4 else "")
    return f"{plural(submission.workers, 'worker')} {purpose} ({submission.executor} {jobs})"


def show(table: Any) -> None:
    """A rich table on standard output; without blanks at the ends of its lines, which scripts would get too."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def load_site(site: str, overrides: tuple[str, ...]) -> Recipe:
    """A site profile alone, as a recipe that asks for nothing."""
    return load(None, site, ("name=doctor", *overrides))


def thawed(run: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The frozen recipe of a run."""
    from hala_hpc import tasks
    from hala_hpc.config.compose import thaw

    return thaw(run / "recipe.yaml", tasks.options_of, overrides)


def frozen(run: Path) -> dict[str, Any]:
    """The frozen recipe of a run as plain data. Raises HalaError where it cannot be read."""
    from hala_hpc.config import frozen as recipes

    return recipes.read(run)


def settings_now(run: Path) -> dict[str, Any]:
    """The frozen recipe of a run as plain data, with what was changed when it was resumed. Raises HalaError."""
    from hala_hpc.config import changes

    return changes.merged(frozen(run), run)


def run_settings(run: Path) -> Run:
    """The ``run`` section of a frozen recipe, as it holds now. Raises HalaError where it cannot be read."""
    from hala_hpc.config import frozen as recipes

    return recipes.settings(run, settings_now(run))


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
