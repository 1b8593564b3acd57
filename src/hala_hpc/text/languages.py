"""Languages by their names: codes and scripts from the CLDR (langcodes); and whether a text is in one (CLD2)."""

from dataclasses import dataclass
from functools import cache
from typing import Final

SCRIPTS: Final = {"Hans": "CJK", "Hant": "CJK", "Jpan": "CJK", "Kore": "HANGUL"}
"""ISO 15924 codes of scripts that Unicode calls by other names, with the word that begins those of their letters."""
ALIKE: Final = 20
"""Languages nearer than this on CLDR's scale (``langcodes.tag_distance``; ours) are not told apart: Croatian and
Bosnian, Norwegian and Danish. Spanish is 20 from Basque."""
SAMPLE: Final = 500
"""Characters of a text's beginning and of its end that its language is told by (ours)."""


@dataclass(frozen=True)
class Language:
    """A language: its ISO 639 ``code``, English ``name``, and how Unicode calls its letters (``ARABIC``)."""

    code: str
    name: str
    script: str


@cache
def language(words: str) -> Language:
    """The language of a name ("Arabic", "euskara") or a code ("ar", "pt-BR"). Raises LookupError for any other word."""
    import langcodes
    from langcodes.tag_parser import LanguageTagError

    words = words.strip()
    try:
        tag = langcodes.get(words) if langcodes.tag_is_valid(words) else langcodes.find(words)
    except (LanguageTagError, LookupError) as error:
        raise LookupError(words) from error
    whole = tag.maximize()
    script = SCRIPTS.get(str(whole.script)) or whole.script_name().upper()
    return Language(str(tag.language), tag.display_name(), script)


def is_in(text: str, code: str) -> bool | None:
    """Whether a text is in a language, by its ISO 639 code, or may well be: False only where CLD2 is sure of another.

    None where CLD2 does not know the language.
    """
    others = _others(code)
    if others is None:
        return None
    import pycld2

    text = text if len(text) <= 2 * SAMPLE else f"{text[:SAMPLE]} {text[-SAMPLE:]}"
    try:
        is_sure, _, (first, *_) = pycld2.detect(text, isPlainText=True)
    except (pycld2.error, UnicodeEncodeError):  # characters that are none, which it refuses
        readable = "".join(character if character.isprintable() else " " for character in text)
        is_sure, _, (first, *_) = pycld2.detect(readable, isPlainText=True)
    return not (is_sure and first[1] in others)


@cache
def _others(code: str) -> frozenset[str] | None:
    """The codes, as CLD2 writes them, of languages that are neither this one nor nearly so; None for an unknown one."""
    import langcodes
    import pycld2

    names = dict(pycld2.LANGUAGES)
    known = {names[name] for name in pycld2.DETECTED_LANGUAGES if not names[name].startswith("xx")}
    distances = {other: langcodes.tag_distance(code, other) for other in known}
    if min(distances.values()) > 1:  # 1: a language and what it is a macrolanguage of, as Bokmål and Norwegian
        return None
    return frozenset(other for other, distance in distances.items() if distance >= ALIKE)
