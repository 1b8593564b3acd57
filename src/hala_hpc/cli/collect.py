"""``hala collect``: the finished dataset."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup


@click.command()
@common.run_argument
@click.option("--to", type=common.Place(path_type=Path), help="The folder to make. [RUN/final]")
@click.option("--partial", is_flag=True, help="Take what is finished so far.")
@common.as_json
def command(run: str, to: Path | None, partial: bool, json_: bool) -> None:
    r"""Write the finished dataset as Parquet in source order, with a card; rows in quarantine apart, with their reason.

    Of a training: put the finished model where it is wanted.

    \b
    hala collect translate-openorca --to data/openorca-ar
    hala collect sft-1.2b --to models/sft-1.2b
    """
    from hala_hpc.config.errors import HalaError
    from hala_hpc.run import manifest

    path = lookup.find(run)
    target = (to or path / "final").resolve()
    suffix = manifest.read(path / "manifest.parquet").facts.suffix
    if suffix == ".parquet":
        _rows(path, target, partial, json_)
    elif suffix == "":
        _folders(path, target, partial, json_)
    else:
        raise HalaError(f"{path}: its shards are {suffix} files, for the training alone", "collect the training's run")


def _rows(path: Path, target: Path, partial: bool, json_: bool) -> None:
    from hala_hpc.data.collect import collect

    with common.counting("collecting") as counted:
        collected = collect(path, target, partial, counted)
    if json_:
        common.echo_json(collected)
    else:
        held = sum(collected.quarantined.values())
        what = f"{plural(collected.rows, 'row')} in {plural(collected.files, 'file')}"
        click.echo(f"{what}, {held:,} in quarantine: {collected.path}")


def _folders(path: Path, target: Path, partial: bool, json_: bool) -> None:
    from hala_hpc.run.collect import collect_folders

    collected = collect_folders(path, target, partial)
    if json_:
        common.echo_json(collected)
    else:
        click.echo(
            f"{plural(collected.files, 'file')}, {collected.bytes / 1e9:,.2f} GB ({collected.linked} linked): {target}"
        )
