"""``hala collect``: the finished dataset."""

from pathlib import Path

import click

from hala_hpc.cli import common
from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.data.collect import collect
from hala_hpc.pipeline import lookup
from hala_hpc.run import manifest
from hala_hpc.run.collect import collect_folders


@click.command()
@common.run_argument
@click.option("--to", type=common.PathOption(), help="The folder to make. [RUN/final]")
@click.option("--partial", is_flag=True, help="Take what is finished so far.")
@common.as_json
def command(run: str, to: Path | None, partial: bool, json_: bool) -> None:
    r"""Write the finished dataset as Parquet in source order, with a card; rows in quarantine apart, with their reason.

    The finished model of a training is put where it is wanted.

    \b
    hala collect translate-openorca --to data/openorca-ar
    hala collect sft-1.2b --to models/sft-1.2b
    """
    path = lookup.find(run)
    target = (to or path / "final").resolve()
    suffix = manifest.read(path / "manifest.parquet").facts.suffix
    if suffix == ".parquet":
        with common.counting("collecting") as counted:
            data = collect(path, target, partial, counted)
        what = f"{plural(data.rows, 'row')} in {plural(data.files, 'file')}"
        common.show(data, json_, [f"{what}, {sum(data.quarantined.values()):,} in quarantine: {data.path}"])
    elif suffix == "":
        models = collect_folders(path, target, partial)
        size = f"{models.bytes / 1e9:,.2f} GB ({models.linked} linked)"
        common.show(models, json_, [f"{plural(models.files, 'file')}, {size}: {target}"])
    else:
        raise HalaError(f"{path}: its shards are {suffix} files, for the training alone", "collect the training's run")
