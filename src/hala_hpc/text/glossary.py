"""Terms with a fixed translation: hints for the prompt where they occur, and a check of the answer.

A hint and a check do better than forcing words on a model while it writes (arXiv 2511.07461).
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Glossary:
    """Terms of the source language and their translations."""

    translations: Mapping[str, str]

    def terms_in(self, texts: Iterable[str]) -> dict[str, str]:
        """The terms that stand in some texts as whole words, whatever their case, and their translations."""
        if not self.translations:
            return {}
        held = {match[0].casefold() for text in texts for match in self._terms.finditer(text)}
        return {term: self.translations[term] for term in self.translations if term.casefold() in held}

    def missing(self, source: str, target: str) -> int | None:
        """How many of the source's terms are not translated as they are to be; None where it has none.

        Case, diacritics and tatweel do not count, and endings and prefixes may be attached.
        """
        terms = self.terms_in([source])
        if not terms:
            return None
        written = _plain(target)
        return sum(_plain(translation) not in written for translation in terms.values())

    @cached_property
    def _terms(self) -> re.Pattern[str]:
        terms = sorted(self.translations, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, terms))})(?!\w)", re.IGNORECASE)


def _plain(text: str) -> str:
    """Without case, diacritics and tatweel."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter) and letter != "ـ")
