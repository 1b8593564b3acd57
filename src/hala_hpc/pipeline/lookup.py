"""What a person names, found: recipes and sites, runs, grids of them, and what a run's recipe says by now.

A grid is a folder of runs that share arrays of jobs; every command goes through its ``members`` as through one run.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NotRequired, TypedDict, cast

from hala_hpc.config import frozen, places
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.places import Address
from hala_hpc.config.schema import Recipe, Run
from hala_hpc.run import decisions, status
from hala_hpc.run.layout import GRID, PIPELINE, find_run
from hala_hpc.run.status import Status
from hala_hpc.run.verify import write
from hala_hpc.slurm import record

if TYPE_CHECKING:
    from hala_hpc.config.layers import Layer

PREPARED: Final = "prepared"
"""The folder of a grid with the tokens that its trainings share."""


class CellRecord(TypedDict):
    """A cell in GRID. ``state`` as in ``config.grid``; ``same_as`` and ``model`` where the cell is not a run."""

    name: str
    values: dict[str, str]
    state: str
    same_as: NotRequired[str]
    model: NotRequired[str]


def load(
    recipe: Path | None,
    site: str,
    overrides: tuple[str, ...],
    changes: Sequence["Layer"] = (),
    address: Address = places.in_runs,
) -> Recipe:
    """The recipe of a command line; without a file, a site profile as one that asks for nothing.

    ``changes`` and ``address``: as for ``config.compose.compose``.
    """
    from hala_hpc.config.compose import compose
    from hala_hpc.worker import registry

    composed = compose(recipe, profile_of(site), overrides, registry.options_of, changes, address)
    composed.run.root = str(Path(composed.run.root).resolve())
    return composed


def refuse_forgotten_site(site: str, executor: str) -> None:
    """Nobody starts workers on a login node by forgetting to name a site. Raises HalaError."""
    if not site and executor == "local" and shutil.which("sbatch"):
        raise HalaError(
            "which site? This machine has Slurm, and without --site or $HALA_SITE the workers would run right here",
            "--site NAME, one of `hala sites`; --site local runs them here",
        )


def profile_of(site: str) -> Path:
    """The file of a site profile, by its name or path; without either, this machine's. Raises HalaError."""
    name, known = places.expanded(site, "--site") or "local", profiles()
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    if name in known:
        return known[name]
    nothing = "there is no folder hpc/ here: run it in a checkout, or give a file"
    raise HalaError(f"no site profile '{name}'", did_you_mean(name, known) if known else nothing)


def profiles() -> dict[str, Path]:
    """The site profiles there are, by name; of two with one name the nearer one."""
    roots = reversed(places.hpc_roots())
    return {path.stem: path for root in roots for path in sorted((root / "sites").glob("*.yaml"))}


def find(run: str) -> Path:
    """A run by its path or name."""
    if not run.strip():
        raise HalaError("the name of the run is empty", "give its name or path; a variable that is not set is empty")
    return find_run(_named(run), runs_roots())


def find_item(run: str) -> tuple[Path, str | None]:
    """A run, and the model of it that is meant: ``RUN``, ``RUN/ITEM``, ``EVALUATION/best``, or the model's own folder.

    The item is None where all of the run is meant. Raises HalaError.
    """
    from hala_hpc.models import location

    for place in (Path(_named(run)), *(root / _named(run) for root in runs_roots())):
        is_item = not place.exists() and (place.parent / "manifest.parquet").is_file()
        folder = location.of_item(place.parent.resolve(), place.name) if is_item else place.resolve()
        if (folder / "config.json").is_file() and (owner := location.owner_of(folder)) is not None:
            return owner
    return find(run), None


def _named(run: str) -> str:
    """A run's name or path as an argument has it; ``run:NAME``, as recipes have it, is the run of that name."""
    return places.expanded(run.removeprefix(places.RUN), "RUN")


def find_grid(run: str) -> Path | None:
    """A grid by its path or name; None where no grid has that name."""
    return _marked(run, GRID)


def _marked(run: str, mark: str) -> Path | None:
    """The folder by its path or name, where it holds a file of the name ``mark``."""
    named = _named(run)
    candidates = (Path(named), *(root / named for root in runs_roots()))
    return next((path.resolve() for path in candidates if (path / mark).is_file()), None)


def find_pipeline(run: str) -> Path | None:
    """A pipeline by its path or name; None where no pipeline has that name."""
    return _marked(run, PIPELINE)


def find_group(run: str) -> Path | None:
    """The folder of a grid or of a pipeline, by its path or name; None for a run."""
    return find_pipeline(run) or find_grid(run)


def pipeline_of(run: Path) -> Path | None:
    """The pipeline that a run or a grid is a stage of."""
    return run.parent if (run.parent / PIPELINE).is_file() else None


def planner_of(pipeline: Path) -> str:
    """The Python that plans a pipeline's stages: workers' environments lack what reads data of all kinds."""
    return str(json.loads((pipeline / PIPELINE).read_text("utf-8"))["python"])


def stage_folders(pipeline: Path) -> dict[str, Path]:
    """The run or grid of each stage of a pipeline, in its newest version, by the stage's name."""
    listed = json.loads((pipeline / PIPELINE).read_text("utf-8"))["stages"]
    planned = [item.event for item in decisions.read(pipeline) if item.kind == decisions.PLANNED]
    newest = {event["stage"]: pipeline / event["version"] for event in planned}
    return {stage["name"]: newest[stage["name"]] for stage in listed if stage["name"] in newest}


def cells(grid: Path) -> list[CellRecord]:
    """The cells of a grid, as its own file lists them."""
    return cast("list[CellRecord]", json.loads((grid / GRID).read_text())["cells"])


def runs_in(grid: Path) -> list[Path]:
    """The runs of a grid, in the order of its cells."""
    return [grid / cell["name"] for cell in cells(grid) if cell["state"] == "run"]


def runs(run: str) -> list[Path]:
    """The runs that a name stands for: one, those of a grid, or those of a pipeline's stages so far."""
    if pipeline := find_pipeline(run):
        return [path for folder in stage_folders(pipeline).values() for path in runs_of(folder)]
    grid = find_grid(run)
    return [find(run)] if grid is None else runs_in(grid)


def runs_of(folder: Path) -> list[Path]:
    """The runs of the folder of a run or of a grid."""
    return runs_in(folder) if (folder / GRID).is_file() else [folder]


def members(run: str) -> list[Path]:
    """All folders on record for workers of a run, a grid or a pipeline; the first is its own."""
    if pipeline := find_pipeline(run):
        return [pipeline, *(path for folder in stage_folders(pipeline).values() for path in members(str(folder)))]
    grid = find_grid(run)
    return [find(run)] if grid is None else [grid, *runs_in(grid), *sorted((grid / PREPARED).glob("[!.]*"))]


def state_of(run: Path) -> Status:
    """How far a run is, by the settings that hold for it now."""
    settings = frozen.settings(run)
    return status.read(run, settings.lease_seconds, settings.attempts)


def runs_roots() -> list[Path]:
    """Where runs are looked for by name: $HALA_RUNS and run.root of $HALA_SITE; ./runs where neither is given.

    New runs go to the first, unless the recipe or the command line says another.
    """
    roots = [places.from_environment("HALA_RUNS"), _profile_root(places.from_environment("HALA_SITE"))]
    return list(dict.fromkeys(Path(root).resolve() for root in roots if root)) or [Path(Run().root).resolve()]


def _profile_root(site: str | None) -> str | None:
    """What a profile says of run.root, with only as much machinery as that takes. Raises HalaError."""
    if site is None:
        return None
    from hala_hpc.config import layers  # with it comes omegaconf, which `hala status` has no use for

    path = profile_of(site)
    try:
        profile = layers.load(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HalaError(f"{path}: {error}", "the site profile that $HALA_SITE names") from error
    section = profile.get("run") if isinstance(profile, Mapping) else None
    root = section.get("root") if isinstance(section, Mapping) else None
    if root is None or "${oc." in str(root):
        return None
    return str(path.parent / places.expanded(str(root), f"{path}: run.root"))


def thawed(run: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The frozen recipe of a run."""
    from hala_hpc.config.compose import thaw
    from hala_hpc.worker import registry

    return thaw(run / "recipe.yaml", registry.options_of, overrides)


@contextmanager
def changed(runs: Sequence[Path], overrides: tuple[str, ...]) -> Iterator[None]:
    """Write down what ``overrides`` change in the recipes of some runs, for the workers that are started now.

    It is taken back where they cannot be started, unless Slurm may have taken them all the same.
    """
    changes = {run: frozen.between(thawed(run), thawed(run, overrides)) for run in runs} if overrides else {}
    files = [path for run, change in changes.items() if (path := write(run, change)) is not None]
    try:
        yield
    except HalaError:
        if not any(record.unanswered(run) for run in runs):
            for path in files:
                path.unlink(missing_ok=True)
        raise
