"""``hala collect``: the finished dataset."""

from pathlib import Path

import click

from hala_hpc.cli import common


@click.command()
@common.run_argument
@click.option("--to", type=click.Path(path_type=Path), help="The folder to make. [RUN/final]")
@click.option("--partial", is_flag=True, help="Take what is finished so far.")
@common.as_json
def command(run: str, to: Path | None, partial: bool, json_: bool) -> None:
    r"""Write the finished dataset as Parquet in source order, with a card; rows in quarantine apart, with their reason.

    \b
    hala collect translate-openorca --to data/openorca-ar
    """
    from hala_hpc.data.collect import collect

    path = common.find(run)
    with common.counting("collecting") as counted:
        collected = collect(path, (to or path / "final").resolve(), partial, counted)
    if json_:
        common.echo_json(collected)
    else:
        held = sum(collected.quarantined.values())
        click.echo(f"{collected.rows:,} rows in {collected.files} files, {held:,} in quarantine: {collected.path}")
