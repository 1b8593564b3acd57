"""``hala env``: the environments that stages run in."""

from pathlib import Path

import click

import hala_hpc
from hala_hpc.cli import common
from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.slurm.environments import available_locks, build_environment


@click.group()
def command() -> None:
    r"""Build the environments that stages run in, from the lock files in hpc/envs.

    \b
    hala env list
    hala env build serve-cuda --to /scratch/me/envs/serve
    """


@command.command("list")
def list_() -> None:
    """List the environments that can be built."""
    for name in available_locks(_locks()):
        click.echo(name)


@command.command()
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
