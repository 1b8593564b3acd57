"""What a person names, found: recipes and sites, runs and where they are, and what a run's recipe says by now."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, Run


def load(recipe: Path | None, site: str, overrides: tuple[str, ...]) -> Recipe:
    """The recipe of a command line."""
    from hala_hpc.config.compose import compose
    from hala_hpc.worker import registry

    composed = compose(recipe, profile_of(site), overrides, registry.options_of)
    composed.run.root = str(Path(composed.run.root).resolve())
    return composed


def load_site(site: str, overrides: tuple[str, ...]) -> Recipe:
    """A site profile alone, as a recipe that asks for nothing."""
    return load(None, site, ("name=doctor", *overrides))


def refuse_forgotten_site(site: str, executor: str) -> None:
    """On a login node nobody starts workers by forgetting to say where. Raises HalaError."""
    if not site and executor == "local" and shutil.which("sbatch"):
        raise HalaError(
            "which site? This machine has Slurm, and without --site or $HALA_SITE the workers would run right here",
            "--site NAME, one of `hala sites`; --site local runs them here",
        )


def profile_of(site: str) -> Path:
    """The file of a site profile, by its name or path; without either, this machine's. Raises HalaError."""
    from hala_hpc.config.compose import find_profile

    return find_profile(places.expanded(site, "--site") or "local", "sites", places.hpc_roots())


def find(run: str) -> Path:
    """A run by its path or name."""
    from hala_hpc.run.layout import find_run

    if not run.strip():
        raise HalaError("'': names no run", "give its name or path; a variable that is not set is empty")

    return find_run(places.expanded(run, "RUN"), runs_roots())


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


def thawed(run: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The frozen recipe of a run."""
    from hala_hpc.config.compose import thaw
    from hala_hpc.worker import registry

    return thaw(run / "recipe.yaml", registry.options_of, overrides)


@contextmanager
def changed(runs: "Sequence[Path]", overrides: tuple[str, ...]) -> Iterator[None]:
    """Write down what ``overrides`` change of the recipes of some runs, so that the workers that are started have it.

    Taken back where they cannot be started, unless Slurm may have taken them all the same.
    """
    from hala_hpc.config import frozen as recipes
    from hala_hpc.run.redo import write
    from hala_hpc.slurm import record

    before = {run: recipes.between(thawed(run), thawed(run, overrides)) for run in runs} if overrides else {}
    written = [path for run, found in before.items() if (path := write(run, found)) is not None]
    try:
        yield
    except HalaError:
        if not any(record.unanswered(run) for run in runs):
            for path in written:
                path.unlink(missing_ok=True)
        raise
