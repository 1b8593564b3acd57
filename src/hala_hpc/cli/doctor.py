"""``hala doctor``: what is missing here."""

import os
from dataclasses import asdict

import click

from hala_hpc.cli import common
from hala_hpc.pipeline import lookup
from hala_hpc.slurm.doctor import examine

COLOURS = {"ok": "green", "warning": "yellow", "missing": "red"}


@click.command()
@common.overrides_argument
@common.site_option
@common.as_json
def command(overrides: tuple[str, ...], site: str, json_: bool) -> None:
    r"""Show what is missing on this machine, or at a site, and what to do. Exit code 1 if something is.

    \b
    hala doctor --site mycluster
    """
    findings = []
    colour = True if os.environ.get("FORCE_COLOR") else None  # as rich does for the tables of other commands
    for finding in examine(lookup.load(None, site, ("name=doctor", *overrides)), lookup.profile_of(site)):
        findings.append(finding)
        if not json_:
            advice = f"  → {finding.advice}" if finding.advice else ""
            mark = click.style(f"{finding.state:8}", fg=COLOURS[finding.state])
            click.echo(f"{mark} {finding.what:18} {finding.detail}{advice}", color=colour)
    if json_:
        well = all(finding.state != "missing" for finding in findings)
    common.show([asdict(finding) for finding in findings], json_, (), well)
