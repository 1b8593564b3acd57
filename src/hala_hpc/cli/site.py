"""``hala sites``, ``env``, ``doctor`` and ``prefetch``: what a site is, and what a run needs there."""

import itertools
import os
from dataclasses import asdict
from pathlib import Path

import click

import hala_hpc
from hala_hpc.cli import common
from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.config.schema import Data, Model
from hala_hpc.data.files import hub
from hala_hpc.pipeline import lookup, planning
from hala_hpc.slurm.doctor import examine, nodes
from hala_hpc.slurm.environments import available_locks, build_environment
from hala_hpc.worker import registry


@click.command()
@common.as_json
def sites_command(json_: bool) -> None:
    r"""List the site profiles, and where each stands. Copy one and edit it for your cluster.

    \b
    hala sites
    """
    profiles = {name: str(path) for name, path in sorted(lookup.profiles().items())}
    common.show(profiles, json_, (f"{name:20} {path}" for name, path in profiles.items()))


@click.group()
def env_command() -> None:
    r"""Build the environments that stages run in, from the lock files in hpc/envs.

    \b
    hala env list
    hala env build serve-cuda --to /scratch/me/envs/serve
    """


@env_command.command("list")
def list_() -> None:
    """List the environments that can be built."""
    for name in available_locks(_locks()):
        click.echo(name)


@env_command.command()
@click.argument("name")
@click.option("--to", type=common.PathOption(), help="Where to build it. [.envs/NAME]")
@click.option("--switch", is_flag=True, help="Though it runs another checkout's hala_hpc: make it run this one's.")
def build(name: str, to: Path | None, switch: bool) -> None:
    r"""Build an environment, whole or not at all. One that is as its lock says is left alone.

    An environment runs the code of the checkout that built it. From another checkout it is built again only with
    --switch, for all who share it, their running jobs too, then run that code.

    \b
    hala env build serve-cpu
    hala env build serve-cuda --to /scratch/me/envs/serve
    """
    checkout = Path(hala_hpc.__file__).parents[2]
    project = checkout if (checkout / "pyproject.toml").is_file() else None
    target = (to or Path(".envs") / name).resolve()
    build_environment(name, target, locks=_locks(), project=project, echo=click.echo, switch=switch)


def _locks() -> Path:
    if folder := next((root / "envs" for root in places.hpc_roots() if (root / "envs").is_dir()), None):
        return folder
    raise HalaError("no folder hpc/envs with lock files", "run it from a checkout of hala_hpc")


COLOURS = {"ok": "green", "warning": "yellow", "missing": "red"}


@click.command()
@common.overrides_argument
@common.site_option
@click.option("--job", is_flag=True, help="Also run a job of less than a minute in each of the site's partitions.")
@common.wait_option
@common.as_json
def doctor_command(overrides: tuple[str, ...], site: str, job: bool, wait: int, json_: bool) -> None:
    r"""Show what is missing on this machine, or at a site, and what to do. Exit code 1 if something is.

    With --job the site's nodes are tried, too: whether they see the folder of runs and start the environments there,
    whether links and renames hold, how late a touch is seen, how long a lease must be therefore.

    \b
    hala doctor --site mycluster
    hala doctor --site mycluster --job
    """
    recipe = lookup.load(None, site, ("name=doctor", *overrides))
    if job and recipe.site.executor != "slurm":
        raise HalaError(f"--job: site {recipe.site.name} has no Slurm", "--site NAME, one of `hala sites`")
    looks = examine(recipe, lookup.profile_of(site), bool(site))
    on_nodes = nodes(recipe, float(wait), lambda line: click.echo(line, err=True)) if job else ()
    findings = []
    colour = True if os.environ.get("FORCE_COLOR") else None  # as rich does for the tables of other commands
    for finding in itertools.chain(looks, on_nodes):
        findings.append(finding)
        if not json_:
            advice = f"  → {finding.advice}" if finding.advice else ""
            mark = click.style(f"{finding.state:8}", fg=COLOURS[finding.state])
            click.echo(f"{mark} {finding.what:18} {finding.detail}{advice}", color=colour)
    well = all(finding.state != "missing" for finding in findings)
    common.show([asdict(finding) for finding in findings], json_, (), well)


@click.command()
@common.recipe_argument
@common.overrides_argument
@common.site_option
@common.as_json
def prefetch_command(recipe: Path, overrides: tuple[str, ...], site: str, json_: bool) -> None:
    r"""Download a recipe's model and datasets into the site's cache, here on the login node.

    \b
    hala prefetch jobs/hala/translate-openorca.yaml --site mycluster
    hala prefetch jobs/latxa/grid.yaml --site mycluster
    hala prefetch jobs/hala/evaluate-nano.yaml --site mycluster
    """
    recipes = planning.read(recipe, site, overrides).recipes
    hub.use_cache(recipes[0].site.cache)
    models, data = [], []
    for wanted in recipes:
        needs = [wanted.model, wanted.data, *registry.create(wanted).hub_needs()]  # a mixture, benchmarks
        models += [need for need in needs if isinstance(need, Model)]
        data += [need for need in needs if isinstance(need, Data)]
    folders = list(dict.fromkeys(folder for model in models for folder in hub.fetch_model(model)))
    datasets = {repr(source): source for source in data if source.hub}
    rows = {_label(data): hub.fetch_dataset(data) for data in datasets.values()}
    fetched = {"models": folders, "dataset_rows": sum(rows.values()) if rows else None, "datasets": rows}
    lines = [f"model: {folder}" for folder in folders]
    lines += [f"dataset: {name}, {plural(count, 'row')}" for name, count in rows.items()]
    nothing = "nothing to download: the recipe names no model and no dataset on the hub"
    common.show(fetched, json_, lines or [nothing])


def _label(data: Data) -> str:
    """A dataset as a person names it; its parts apart."""
    split = "" if data.split in (None, "train") else f" ({data.split})"
    return "/".join(filter(None, (data.hub, data.hub_config))) + split
