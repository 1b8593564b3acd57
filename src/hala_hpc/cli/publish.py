"""``hala publish``: what a run made goes out, with its card."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hala_hpc.cli import common
from hala_hpc.config.words import plural
from hala_hpc.pipeline import lookup

if TYPE_CHECKING:
    from hala_hpc.publish.content import Content
    from hala_hpc.publish.publication import Publication

SHOWN: Final = 50
"""Files that are listed by name."""


@click.command()
@common.run_argument
@click.option("--to", required=True, help="hub:ORG/NAME, or a folder to make.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and its card; send and write nothing.")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--replace", is_flag=True, help="Remove what the repository has of older weights or rows.")
@click.option(
    "--collected", type=common.Place(path_type=Path), help="Where `hala collect` put the dataset. [RUN/final]"
)
@click.option("--item", help="Of merges or exported checkpoints: which model. [the only one]")
@click.option("--licence", help="The licence to publish under, as the hub names it.")
@click.option("--licence-of", multiple=True, metavar="NAME=LICENCE", help="What nobody told: the licence of a source.")
@click.option("--accept-conflicts", is_flag=True, help="Publish though the licence contradicts that of a source.")
@click.option("--scores", multiple=True, metavar="RUN", help="An evaluation of this model, for its card.")
@click.option(
    "--about",
    type=common.Place(True, dir_okay=False, path_type=Path),
    help="A file with words of your own, for the card.",
)
@common.as_json
def command(
    run: str, to: str, dry_run: bool, private: bool, replace: bool, collected: Path | None, item: str | None,
    licence: str | None, licence_of: tuple[str, ...], accept_conflicts: bool, scores: tuple[str, ...],
    about: Path | None, json_: bool,
) -> None:  # fmt: skip
    r"""Publish the model or the dataset of a finished run, to the Hugging Face hub or to a folder.

    The card is filled from the run. Licences of everything that it was made from are told, and a licence that
    contradicts one of them is refused unless you accept it. An upload that broke off goes on with the same command.

    \b
    hala publish sft-1.2b --to hub:my-org/sft-1.2b --scores evaluate-small --dry-run
    hala publish translate-openorca --to hub:my-org/openorca-ar --licence cc-by-nc-4.0 --private
    hala publish merge --item t0.50 --to models/merged
    """
    from hala_hpc.config import places
    from hala_hpc.config.errors import HalaError
    from hala_hpc.publish import content, hub, licences, publication

    path, to = lookup.find(run), places.expanded(to, "--to")
    if not to.strip():
        raise HalaError("--to: is empty", "hub:ORG/NAME, or a folder")
    name = hub.name_of(to) if to.startswith(hub.PREFIX) else ""
    if name and not dry_run:
        hub.refuse_without_key()
    elif not name:
        publication.refuse_existing(Path(to).resolve())
    options = publication.PublishOptions(
        licence=None if licence is None else licences.require_name(licence, "--licence"),
        licences_of=_given(licence_of),
        scores=tuple(lookup.find(each) for each in scores),
        about=about.read_text("utf-8", "replace") if about is not None else "",
        online=bool(name),
    )
    made = publication.prepare(path, _content(path, item, collected), options)
    for warning in made.warnings:
        _say(f"look at this: {warning}")
    if dry_run:
        content.refuse_unsound(made.content)
        _show(made, to, json_)
        return
    made.refuse_conflicts(accept_conflicts)
    if not made.content.is_there:
        made = publication.prepare(path, _collect(path), options)
    content.refuse_unsound(made.content)
    told = _hub(made, name, path.name, private, replace) if name else _folder(made, Path(to).resolve())
    _tell(told, json_)


def _content(path: Path, item: str | None, collected: Path | None) -> "Content":
    from hala_hpc.config.errors import HalaError
    from hala_hpc.publish import content

    is_model = content.kind_of(path) == "model"
    if is_model and collected is not None:
        raise HalaError("--collected: a model is taken from its run", "leave it out")
    if is_model:
        return content.model(path, item)
    if item is not None:
        raise HalaError("--item does not apply to datasets", "leave it out")
    folder = collected or path / "final"
    if folder.exists() or collected is not None:
        return content.dataset(path, folder)
    with common.counting("checking") as counted:
        return content.uncollected(path, counted)


def _collect(path: Path) -> "Content":
    from hala_hpc.data.collect import collect
    from hala_hpc.publish import content

    with common.counting("collecting") as counted:
        collect(path, path / "final", False, counted)
    return content.dataset(path, path / "final")


def _given(licence_of: tuple[str, ...]) -> dict[str, str]:
    from hala_hpc.config.errors import HalaError
    from hala_hpc.publish import licences

    if wrong := next((word for word in licence_of if not all(word.partition("="))), None):
        raise HalaError(f"--licence-of {wrong}: not of the form NAME=LICENCE", "for example my-data=cc-by-4.0")
    named = (word.rpartition("=") for word in licence_of)
    return {name: licences.require_name(told, f"--licence-of {name}") for name, _, told in named}


def _show(made: "Publication", to: str, json_: bool) -> None:
    total = sum(entry.size for entry in made.entries)
    if json_:
        sources = ({"name": each.name, "role": each.role, "licence": each.licence} for each in made.sources)
        common.echo_json(
            {
                "to": to,
                "kind": made.content.kind,
                "files": [{"name": entry.name, "bytes": entry.size} for entry in made.entries],
                "bytes": total,
                "rows": made.content.rows,
                "licence": made.decision.licence,
                "conflicts": made.decision.conflicts,
                "warnings": made.warnings,
                "sources": list(sources),
                "card": made.card,
            }
        )
        return
    for entry in made.entries[:SHOWN]:
        click.echo(f"{entry.size:>16,}  {entry.name}")
    if len(made.entries) > SHOWN:
        click.echo(f"{'':16}  … and {len(made.entries) - SHOWN:,} more")
    click.echo(f"{total:>16,}  bytes in {plural(len(made.entries), 'file')}, a {made.content.kind}, would go to {to}\n")
    click.echo(made.card)
    for why in made.decision.conflicts:
        click.echo(f"licence: {why}", err=True)


def _hub(made: "Publication", name: str, run: str, private: bool, replace: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from hala_hpc.publish import hub

    hub.quiet_unless_watched()
    return asdict(hub.upload(made.entries, name, made.content.kind, f"hala publish {run}", _say, private, replace))


def _folder(made: "Publication", target: Path) -> dict[str, Any]:
    from hala_hpc.publish import publication

    publication.put(made.entries, target)
    return {"path": str(target), "files": len(made.entries), "bytes": sum(entry.size for entry in made.entries)}


def _tell(told: dict[str, Any], json_: bool) -> None:
    if json_:
        common.echo_json(told)
        return
    click.echo(f"{plural(told['files'], 'file')}, {told['bytes'] / 1e9:,.2f} GB: {told.get('url') or told['path']}")
    for old in told.get("removed", ()):
        click.echo(f"removed there: {old}")


def _say(line: str) -> None:
    click.echo(line, err=True)
