"""``hala sites``: the site profiles there are."""

import click

from hala_hpc.cli import common
from hala_hpc.pipeline import lookup


@click.command()
@common.as_json
def command(json_: bool) -> None:
    r"""List the site profiles, and where each stands. Copy one and edit it for your cluster.

    \b
    hala sites
    """
    profiles = {name: str(path) for name, path in sorted(lookup.profiles().items())}
    common.show(profiles, json_, (f"{name:20} {path}" for name, path in profiles.items()))
