"""``hala publish``: what a run made goes out, with its card."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import click

from hala_hpc.cli import common
from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, plural
from hala_hpc.data.outputs.collect import collect
from hala_hpc.pipeline import lookup
from hala_hpc.publish import content, hub, licences, publication

_say = partial(click.echo, err=True)
SHOWN: Final = 50
"""Files that are listed by name."""


@click.command()
@common.run_argument
@click.option("--to", required=True, help="hub:ORG/NAME, or a folder to make.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and its card; send and write nothing.")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option(
    "--replace",
    is_flag=True,
    help="Remove what was published there before.",
)
@click.option("--collected", type=common.PathOption(), help="Where `hala collect` put the dataset. [RUN/final]")
@click.option("--item", help="Which model of merges or exported checkpoints. [the only one]")
@click.option("--licence", help="The licence to publish under, as the hub names it.")
@click.option(
    "--licence-of", multiple=True, metavar="NAME=LICENCE", help="The licence of a source, where it is not known."
)
@click.option("--accept-conflicts", is_flag=True, help="Publish though the licence contradicts that of a source.")
@click.option("--scores", multiple=True, metavar="RUN", help="An evaluation of this model, for its card.")
@click.option("--about", type=common.PathOption(True, False), help="A file with words of your own, for the card.")
@common.as_json
def publish_command(
    run: str, to: str, dry_run: bool, private: bool, replace: bool, collected: Path | None, item: str | None,
    licence: str | None, licence_of: tuple[str, ...], accept_conflicts: bool, scores: tuple[str, ...],
    about: Path | None, json_: bool,
) -> None:  # fmt: skip
    r"""Publish the model or the dataset of a finished run, to the Hugging Face hub or to a folder.

    The card is filled from the run. The licences of everything that it was made from are shown, and a licence that
    contradicts one of them is refused unless you accept it. An upload that broke off goes on with the same command.

    \b
    hala publish sft-1.2b --to hub:my-org/sft-1.2b --scores evaluate-small --dry-run
    hala publish translate-openorca --to hub:my-org/openorca-ar --licence cc-by-nc-4.0 --private
    hala publish merge --item t0.50 --to models/merged
    hala publish evaluate/best --to hub:my-org/hala-9b --scores evaluate
    """
    (path, named), to = lookup.find_item(run), places.expanded(to, "--to")
    if named is not None and item is not None:
        raise HalaError(f"--item {item}: {run} is {named} of {path.name}", "give the run, or leave --item out")
    item = item or named
    if not to.strip():
        raise HalaError("--to: is empty", "hub:ORG/NAME, or a folder")
    name = hub.name_of(to) if to.startswith(hub.PREFIX) else ""
    if name and not dry_run:
        hub.refuse_without_key()
    elif not name:
        publication.refuse_existing(Path(to).resolve(), replace)
    wanted = publication.PublishOptions(
        licence=None if licence is None else licences.require_name(licence, "--licence"),
        licences_of=_given(licence_of),
        scores=tuple(lookup.find(evaluation) for evaluation in scores),
        about=about.read_text("utf-8", "replace") if about is not None else "",
        online=bool(name),
    )
    ready = publication.prepare(path, _content(path, item, collected), wanted)
    for warning in ready.warnings:
        _say(f"look at this: {warning}")
    if dry_run:
        content.refuse_unsound(ready.content)
        common.show(_preview(ready, to), json_, _lines(ready, to))
        return
    ready.refuse_conflicts(accept_conflicts)
    if not ready.content.is_there:
        ready = publication.prepare(path, _collect(path), wanted)
    content.refuse_unsound(ready.content)
    if name:
        hub.quiet_unless_watched()
        kind = ready.content.kind
        sent = asdict(hub.upload(ready.entries, name, kind, f"hala publish {path.name}", _say, private, replace))
    else:
        target = Path(to).resolve()
        publication.put(ready.entries, target, replace)
        sent = {"path": str(target), "files": len(ready.entries), "bytes": _size(ready)}
    lines = [f"{plural(sent['files'], 'file')}, {sent['bytes'] / 1e9:,.2f} GB: {sent.get('url') or sent['path']}"]
    common.show(sent, json_, lines + [f"removed there: {old}" for old in sent.get("removed", ())])


def _content(path: Path, item: str | None, collected: Path | None) -> content.Content:
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


def _collect(path: Path) -> content.Content:
    with common.counting("collecting") as counted:
        collect(path, path / "final", False, counted)
    return content.dataset(path, path / "final")


def _given(licence_of: tuple[str, ...]) -> dict[str, str]:
    if wrong := next((word for word in licence_of if not all(word.partition("="))), None):
        raise HalaError(f"--licence-of {wrong}: not of the form NAME=LICENCE", "for example my-data=cc-by-4.0")
    pairs = (word.rpartition("=") for word in licence_of)
    return {name: licences.require_name(licence, f"--licence-of {name}") for name, _, licence in pairs}


def _size(ready: publication.Publication) -> int:
    return sum(entry.size for entry in ready.entries)


def _preview(ready: publication.Publication, to: str) -> dict[str, object]:
    return {
        "to": to,
        "kind": ready.content.kind,
        "files": [{"name": entry.name, "bytes": entry.size} for entry in ready.entries],
        "bytes": _size(ready),
        "rows": ready.content.rows,
        "licence": ready.decision.licence,
        "conflicts": ready.decision.conflicts,
        "warnings": ready.warnings,
        "sources": [{"name": source.name, "role": source.role, "licence": source.licence} for source in ready.sources],
        "card": ready.card,
    }


def _lines(ready: publication.Publication, to: str) -> Iterator[str]:
    files = plural(len(ready.entries), "file")
    yield from (f"{entry.size:>16,}  {entry.name}" for entry in ready.entries[:SHOWN])
    if len(ready.entries) > SHOWN:
        yield f"{'':16}  … and {len(ready.entries) - SHOWN:,} more"
    yield f"{_size(ready):>16,}  bytes in {files}, a {ready.content.kind}, would go to {to}\n"
    yield ready.card
    yield from (common.Problem(f"licence: {why}") for why in ready.decision.conflicts)
