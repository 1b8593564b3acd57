"""What licences ask of what is made from a work, as far as their names say it. No legal advice.

A licence is named as on the Hugging Face hub (docs/hub/repositories-licenses); any other name is a licence with terms
of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


PERMISSIVE: Final = _names(
    "apache-2.0 mit afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 etalab-2.0 isc ms-pl odc-by "
    "openmdw-1.0 postgresql ofl-1.1 ncsa unlicense zlib pddl"
)
"""They ask at most to be named."""
SHARE_ALIKE: Final = _names(
    "cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 odbl gfdl gpl gpl-2.0 "
    "gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 osl-3.0 lppl-1.3c"
)
"""What is made from the work stays under its licence, or a later version of it."""
NON_COMMERCIAL: Final = _names(
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 h-research intel-research apple-amlr fair-noncommercial-research-license"
)
NO_DERIVATIVES: Final = _names("cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0")
OWN_TERMS: Final = _names(
    "openrail openrail++ bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "apple-ascl c-uda deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma"
)
"""Terms that go with whatever is made from the work."""
ON_THE_HUB: Final = PERMISSIVE | SHARE_ALIKE | NON_COMMERCIAL | NO_DERIVATIVES | OWN_TERMS
"""Names that the hub's field ``license`` takes; others are ``other`` with a ``license_name``."""
NAME: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,95}")
UNKNOWN: Final = frozenset({"", "unknown", "other", "cc", "none"})
"""Names that say nothing of what is allowed."""

TEXTS: Final = ("LICENSE", "LICENSE.md", "LICENSE.txt")


@dataclass(frozen=True)
class Origin:
    """A work that something was made from.

    ``role`` is what it was used as: data, model (that was trained, merged or quantized) or writer (a model that wrote
    the data). ``licence`` is None where nobody named one; ``named_by`` says who did. ``made`` names what of ours it
    went into, on the way to what is published. ``folder`` is where its files are, if they are here.
    """

    name: str
    role: str
    licence: str | None = None
    named_by: str = ""
    rows: int | None = None
    revision: str | None = None
    on_hub: bool = False
    made: str = ""
    folder: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Decision:
    """The licence that something is published under, and in what it contradicts its sources, in plain words."""

    licence: str | None
    conflicts: tuple[str, ...]
    carried: bool = False  # nobody chose it: it is the only one of the sources' licences that contradicts none


def require_name(name: str, key: str) -> str:
    """Raises HalaError for what cannot be the name of any licence; ``key`` says where it was given."""
    if not NAME.fullmatch(normal(name)):
        raise HalaError(f"{key}: {name!r} cannot be a licence's name", "as the hub names it, for example cc-by-4.0")
    return name


def normal(name: str) -> str:
    """A licence's name as the hub writes it: ``Apache 2.0`` is ``apache-2.0``, ``CC BY-NC 4.0`` is ``cc-by-nc-4.0``."""
    licence = re.sub(r"[\s_]+", "-", name.strip().lower()).removesuffix("-license").removesuffix("-licence")
    licence = re.sub(r"^apache(-license)?(-version)?-?(2|2\.0)$", "apache-2.0", licence)
    return {"cc0": "cc0-1.0", "odc-by-1.0": "odc-by", "gplv3": "gpl-3.0", "gplv2": "gpl-2.0"}.get(licence, licence)


def conflict(source: Origin, licence: str) -> str | None:
    """Why something made from ``source`` should not be published under ``licence``; None where nothing forbids it."""
    theirs = source.licence
    what = f"{source.name} ({theirs})" if theirs else source.name
    if theirs is None or theirs in UNKNOWN:
        return f"{what}: its licence is not known"
    if theirs == licence and theirs not in NO_DERIVATIVES:
        return None
    if theirs in NO_DERIVATIVES:
        return f"{what}: nothing made from it may be shared"
    if theirs in SHARE_ALIKE and not _is_later(theirs, licence):
        return f"{what}: what is made from it must be shared under the same licence, not {licence}"
    if theirs in NON_COMMERCIAL and licence not in NON_COMMERCIAL:
        return f"{what}: for non-commercial use only, which {licence} does not say"
    if theirs not in ON_THE_HUB or theirs in OWN_TERMS:
        return f"{what}: has terms of its own, which {licence} does not pass on"
    return None


def decide(sources: Sequence[Origin], wanted: str | None) -> Decision:
    """The licence that is wanted; else the only one of the sources' that contradicts none of them, if there is one."""
    if wanted is not None:
        return Decision(wanted, _conflicts(sources, wanted))
    theirs = {source.licence for source in sources if source.licence and source.licence not in UNKNOWN}
    conflicts = {licence: _conflicts(sources, licence) for licence in sorted(theirs)}
    fitting = [licence for licence, against in conflicts.items() if not against]
    if len(fitting) == 1:
        return Decision(fitting[0], (), carried=True)
    if fitting:
        return Decision(None, (f"no licence given, and the sources allow several: {', '.join(fitting)}",))
    unknown = "no licence is known of any source" if sources else "nothing names a licence"
    why = "none of the sources' fits all of them" if theirs else unknown
    details = (f"as {licence}: {'; '.join(against)}" for licence, against in conflicts.items())
    return Decision(None, (f"no licence given, and {why}", *details))


def with_given(sources: Iterable[Origin], given: Mapping[str, str]) -> list[Origin]:
    """Sources with the licences that a person gives them by name. Raises HalaError for a name that no source has."""
    known = list(sources)
    if strange := given.keys() - {source.name for source in known}:
        names = ", ".join(sorted({source.name for source in known})) or "there are none"
        raise HalaError(f"--licence-of: no source '{min(strange)}'", f"sources: {names}")
    return [
        replace(source, licence=normal(given[source.name]), named_by="the command line")
        if source.name in given
        else source
        for source in known
    ]


def text_of(licence: str | None, sources: Iterable[Origin]) -> Path | None:
    """The text of a licence with terms of its own, which has to go along: that of the model that came under it."""
    if licence is None or (licence in ON_THE_HUB and licence not in OWN_TERMS):
        return None
    folders = (source.folder for source in sources if source.role == "model" and source.licence == licence)
    texts = (folder / name for folder in folders if folder is not None for name in TEXTS)
    return next((text for text in texts if text.is_file()), None)


def _conflicts(sources: Iterable[Origin], licence: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(why for source in sources if (why := conflict(source, licence))))


def _is_later(theirs: str, licence: str) -> bool:
    """Whether ``licence`` is a later version of the same one."""
    old, new = (re.fullmatch(r"(.+)-(\d+(?:\.\d+)?)", name) for name in (theirs, licence))
    return old is not None and new is not None and old[1] == new[1] and float(new[2]) >= float(old[2])
