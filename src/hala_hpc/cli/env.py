"""``hala env``: the environments that stages run in."""

from pathlib import Path

import click

from hala_hpc.cli import common


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
    from hala_hpc.slurm.environments import available_locks

    for name in available_locks(_locks()):
        click.echo(name)


@command.command()
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Where to build it. [.envs/NAME]")
def build(name: str, to: Path | None) -> None:
    r"""Build an environment, whole or not at all; one that is there already is left alone.

    \b
    hala env build serve-cpu
    """
    import hala_hpc
    from hala_hpc.slurm.environments import build_environment

    checkout = Path(hala_hpc.__file__).parents[2]
    project = checkout if (checkout / "pyproject.toml").is_file() else None
    target = (to or Path(".envs") / name).resolve()
    build_environment(name, target, locks=_locks(), project=project, echo=click.echo)


def _locks() -> Path:
    from hala_hpc.config.errors import HalaError

    for root in common.hpc_roots():
        if (root / "envs").is_dir():
            return root / "envs"
    raise HalaError("no folder hpc/envs with lock files", "run it from a checkout of hala_hpc")
