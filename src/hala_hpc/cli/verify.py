"""``hala verify``: proof that nothing was lost."""

from dataclasses import asdict

import click

from hala_hpc.cli import common


@click.command()
@common.run_argument
@common.as_json
def command(run: str, json_: bool) -> None:
    r"""Prove that every input row is in the output or in quarantine, exactly once. Exit code 0: proven; 1: not.

    \b
    hala verify translate-openorca
    """
    from hala_hpc import tasks
    from hala_hpc.run import manifest
    from hala_hpc.run.verify import verify

    path = common.find(run)
    facts = manifest.read(path / "manifest.parquet").facts
    with common.counting("verifying") as counted:
        verdict = verify(path, tasks.create(common.thawed(path)).checker(facts), counted)
    if json_:
        common.echo_json(asdict(verdict) | {"proven": verdict.proven})
    else:
        for problem in verdict.problems:
            click.echo(problem, err=True)
        if verdict.missing_shards:
            click.echo(
                f"{verdict.missing_shards} of {verdict.shards} shards are not finished: hala resume {path}", err=True
            )
        held = ", ".join(f"{count:,} {reason}" for reason, count in sorted(verdict.quarantined.items()))
        click.echo(
            f"{verdict.rows:,} rows: {verdict.done:,} done, {held or 'none'} in quarantine, {verdict.shards:,} shards"
        )
        click.echo("proven: every row is there exactly once" if verdict.proven else "NOT proven")
    raise click.exceptions.Exit(0 if verdict.proven else 1)
