"""Languages by their names: codes and scripts from the CLDR (langcodes); and whether a text is in one (py3langid)."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

SCRIPTS: Final = {"Hans": "CJK", "Hant": "CJK", "Jpan": "CJK", "Kore": "HANGUL"}
"""ISO 15924 codes of scripts that Unicode calls by other names, with the word that begins those of their letters."""
SURE: Final = 0.5
DOUBT: Final = 0.15
"""A text is in another language where that one is at least so likely (SURE) and its own less than so (DOUBT): ours.

Of human translations of at least 20 letters (FLORES-200, Tatoeba) at most 0.1 % count as another language so, and of
texts in another one at least 99.6 %.
"""


SAMPLE: Final = 150
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
    """Whether a text is in a language, by its ISO 639-1 code; None where the identifier does not know the language."""
    identifier = _identifier()
    if code not in identifier.labels:
        return None
    text = text if len(text) <= 2 * SAMPLE else f"{text[:SAMPLE]} {text[-SAMPLE:]}"
    if identifier.classify(text)[0] == code:
        return True
    likely = dict(identifier.rank(text))
    return bool(max(likely.values()) < SURE or likely[code] >= DOUBT)


@cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_modelpath(
        Path(langid.__file__).with_name("data") / "model.npz.xz", norm_probs=True
    )
