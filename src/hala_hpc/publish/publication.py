"""A publication before it is sent: files, card, sources and licence, and what speaks against it; and how it is put into
a folder.
"""

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hala_hpc.config import frozen
from hala_hpc.config.errors import HalaError
from hala_hpc.data.outputs.diff import diff
from hala_hpc.models import location
from hala_hpc.publish import cards, hub, licences
from hala_hpc.publish import sources as origins
from hala_hpc.publish.content import Content, Entry, naming, refuse_keys
from hala_hpc.publish.licences import Decision, Origin
from hala_hpc.run import files, history, manifest
from hala_hpc.run.collect import LINKED
from hala_hpc.run.digests import CARD


@dataclass(frozen=True)
class PublishOptions:
    """What a person says of it: its licence, those of sources by name, evaluations, words for the card.

    ``online``: cards of sources that are not in the cache may be fetched.
    """

    licence: str | None = None
    licences_of: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[Path, ...] = ()
    about: str = ""
    online: bool = False


@dataclass(frozen=True)
class Publication:
    """Everything that goes out; the card is the last of ``entries``. ``warnings``: what should be looked at first."""

    content: Content
    entries: tuple[Entry, ...]
    sources: tuple[Origin, ...]
    decision: Decision
    warnings: tuple[str, ...] = ()

    @property
    def card(self) -> str:
        return self.entries[-1].text

    def refuse_conflicts(self, accepted: bool) -> None:
        """Raises HalaError where there is no licence, or where it contradicts a source's and nobody accepted that."""
        licence, conflicts = self.decision.licence, "; ".join(self.decision.conflicts)
        unknown = [source.name for source in self.sources if source.licence is None]
        name_it = f"--licence-of {shlex.quote(unknown[0])}=LICENCE" if unknown else ""
        if licence is None:
            raise HalaError(f"licence: {conflicts}", f"choose with --licence{name_it and f', and name {name_it}'}")
        if conflicts and not accepted:
            cure = name_it or "another --licence, or --licence-of NAME=LICENCE for a source whose licence is wrong"
            raise HalaError(
                f"{licence} contradicts the licences of sources: {conflicts}", f"{cure}, or --accept-conflicts"
            )


def prepare(run: Path, content: Content, options: PublishOptions) -> Publication:
    """Find sources and licence, and write the card. Nothing is changed, and nothing sent.

    Raises HalaError for a licence of no source, scores of other weights, a card that the hub would refuse, and texts
    that hold a secret key.
    """
    recipe = frozen.read(run)
    site = recipe.get("site") or {}
    cache = Path(site["cache"]) / "hub" if site.get("cache") else None
    sources = licences.with_given(origins.of_run(run, hub.cards(cache, options.online)), options.licences_of)
    decision = licences.decide(sources, licences.normal(options.licence) if options.licence else None)
    entries = list(content.entries)
    text = licences.text_of(decision.licence, sources)
    if text is not None and not {entry.name for entry in entries} & set(licences.TEXTS):
        entries.append(Entry(text.name, text))
    if options.scores and content.kind == "dataset":
        raise HalaError("--scores: a dataset has none", "leave it out")
    facts = cards.CardFacts(
        run=run.name,
        recipe=recipe,
        made_by=manifest.read(run / "manifest.parquet").facts.made_by,
        sources=sources,
        decision=decision,
        work=history.of_run(run, site),
        scores=cards.scores_of(options.scores, location.digest(content.folder)) if options.scores else None,
        about=options.about,
        licence_file=next((entry.name for entry in entries if entry.name in licences.TEXTS), None),
        redone=diff(run) if content.kind == "dataset" else None,
    )
    write = cards.dataset if content.kind == "dataset" else cards.model
    entries.append(Entry(CARD, text=write(content, facts)))
    cards.refuse_odd(entries[-1].text)
    refuse_keys(entries)
    warnings = [*naming(entries, [run, run.parent, Path.home()]), *_odd(decision.licence, facts.licence_file)]
    if content.kind == "model" and any((source.licence or "").startswith(cards.LLAMA) for source in sources):
        warnings.append("Llama's licence wants the model's name to begin with Llama")
    return Publication(content, tuple(entries), tuple(sources), decision, tuple(warnings))


def _odd(licence: str | None, text: str | None) -> Iterator[str]:
    """Warnings about a licence that the hub has no name for."""
    if licence is None or licence in licences.ON_THE_HUB:
        return
    near = difflib.get_close_matches(licence, licences.ON_THE_HUB, n=1, cutoff=0.8)
    yield f"the hub has no licence '{licence}'" + (f" (did you mean '{near[0]}'?)" if near else "")
    if text is None:
        yield f"the text of {licence} does not go along: nobody has a LICENSE file of it"


def put(entries: Sequence[Entry], target: Path, replace: bool = False) -> None:
    """Make ``target`` of ``entries``, whole or not at all. Large files share their disk space with the run's.

    Raises HalaError as ``refuse_existing``.
    """
    refuse_existing(target, replace)
    try:
        with files.whole_directory(target, replace) as folder:
            for entry in entries:
                place = folder / entry.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if entry.file is None:
                    place.write_text(entry.text, "utf-8")
                else:
                    files.link_or_copy(entry.file.resolve(), place, LINKED)
    except FileExistsError:
        refuse_existing(target)
        raise


def refuse_existing(target: Path, replace: bool = False) -> None:
    """Raises HalaError where ``target`` is there already, or cannot be made. ``replace``: not if its card is ours."""
    if target.exists() and not replace:
        raise HalaError(f"{target} exists", "give another folder with --to, or --replace")
    if target.exists() and not _is_published(target):
        raise HalaError(f"{target} was not published by hala: its card does not say so", "give another folder")
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise HalaError(f"--to: {target}: {above} is not a folder", "give another one")


def _is_published(folder: Path) -> bool:
    """Whether a folder has a card of ours, by the tag that each of them has."""
    card = folder / CARD
    return card.is_file() and f"- {cards.TAG}\n" in card.read_text("utf-8", "replace")
