"""``hala why``: what made a stage of a pipeline stale."""

import click

from hala_hpc.cli import common
from hala_hpc.cli.views import pipeline as views
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.pipeline import lookup, stages
from hala_hpc.pipeline.survey import survey


@click.command()
@click.argument("pipeline")
@click.argument("stage")
@common.as_json
def why_command(pipeline: str, stage: str, json_: bool) -> None:
    r"""Say how a stage differs from its version before: keys of the recipe, results that it takes, files.

    \b
    hala why hala mix-instructions
    hala why hala sft-1.2b --json | jq -r .differences[]
    """
    if (folder := lookup.find_pipeline(pipeline)) is None:
        raise HalaError(f"no pipeline '{pipeline}'", "`hala runs` lists runs and pipelines")
    now = survey(stages.load(folder))
    if stage not in now.stages:
        raise HalaError(f"{pipeline} has no stage '{stage}'", did_you_mean(stage, now.stages))
    status = now.stages[stage]
    differences = status.key.differences(status.earlier.key) if status.key and status.earlier else []
    record = {"stage": stage, "state": status.state, "reason": status.reason, "differences": differences}
    common.show(record, json_, views.why(status))
