"""A card, README.md: metadata in YAML between two lines of three dashes, then Markdown."""

import re
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.publish.licences import NOT_TOLD, ON_THE_HUB, normal

FENCE: Final = "---"
LANGUAGE: Final = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
"""The hub's values of ``language``: ISO 639 codes, not names."""
NAME: Final = re.compile(r"([\w.-]{1,96}/)?[\w.-]{1,96}")
"""Of a dataset or a model on the hub."""

MEND: Final = "mend the README.md of the model"


def split(text: str) -> tuple[dict[str, Any], str]:
    """The metadata of a card and the text after it. Raises HalaError where the metadata are no YAML mapping."""
    import yaml

    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != FENCE:
        return {}, text
    end = next((at for at, line in enumerate(lines[1:], 1) if line.strip() == FENCE), None)
    if end is None:
        return {}, text
    try:
        found = yaml.safe_load("\n".join(lines[1:end])) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 2}: " if mark is not None else ""
        raise HalaError(f"the card's metadata are no YAML: {where}{getattr(error, 'problem', error)}", MEND) from error
    if not isinstance(found, dict):
        raise HalaError("the card's metadata are no YAML mapping", MEND)
    return found, "\n".join(lines[end + 1 :]).strip() + "\n"


def refuse_odd(text: str) -> None:
    """Refuse metadata that the hub would refuse, after everything else was sent. Raises HalaError naming the key."""
    metadata, _ = split(text)
    for key, pattern, example in (
        ("language", LANGUAGE, "ar"),
        ("datasets", NAME, "org/name"),
        ("base_model", NAME, "org/name"),
    ):
        value = [] if metadata.get(key) is None else metadata[key]
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str) or not pattern.fullmatch(one):
                raise HalaError(f"the card's {key}: the hub does not take {one!r}", f"for example {example}; {MEND}")
    tags = metadata.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise HalaError(f"the card's tags: {tags!r} is not a list of texts", MEND)


def join(metadata: dict[str, Any], text: str) -> str:
    """A card; metadata without a value are left out."""
    import yaml

    told = {key: value for key, value in metadata.items() if value not in (None, "", [], {})}
    head = str(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    return f"{FENCE}\n{head}{FENCE}\n{text.rstrip()}\n"


def licences_in(path: Path) -> list[str]:
    """The licences that a card names, as the hub writes them; none where there is no card or it tells none."""
    try:
        metadata, _ = split(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, HalaError):  # somebody else's card: its licence is not known then
        return []
    told = metadata.get("license")
    names = [normal(str(name)) for name in (told if isinstance(told, list) else [told]) if name]
    if set(names) <= NOT_TOLD and metadata.get("license_name"):
        names = [normal(str(metadata["license_name"]))]
    return [name for name in names if name not in NOT_TOLD]


def licence_metadata(licence: str | None, link: str | None = None) -> dict[str, Any]:
    """How a card's metadata name a licence. Of one that the hub does not know ``link`` says where its text is."""
    if licence is None or licence in ON_THE_HUB:
        return {"license": licence}
    return {"license": "other", "license_name": licence, "license_link": link}
