"""How the texts of one request are written, and how their translations are read from the answer.

A request may hold several texts of a row: together they are translated better than apart (arXiv 2404.16257).
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol

from hala_hpc.text.protection import BRACKETS, DIGIT, Damage, without_chatter


class Form(Protocol):
    """One way of writing several texts into one prompt."""

    overhead: int
    """Tokens that each text costs beside its own, about."""

    def write(self, texts: Sequence[str], roles: Sequence[str]) -> str:
        """The texts as the prompt has them; ``roles`` say who speaks, or which column it is."""

    def schema(self, roles: Sequence[str]) -> str:
        """The JSON schema that an answer has to fulfil; empty where there is none."""

    def read(self, answer: str, texts: Sequence[str], roles: Sequence[str]) -> list[str]:
        """The translation of each text. Raises Damage where the answer has not all of them."""


class Marked:
    """Each text below a line that numbers it (``⟦#1⟧``); a single text stands as it is."""

    overhead = 8

    def write(self, texts: Sequence[str], roles: Sequence[str]) -> str:
        del roles
        opening, closing = tuple(_brackets(texts))
        numbered = (f"{opening}#{number}{closing}\n{text}" for number, text in enumerate(texts, 1))
        return "\n\n".join(numbered) if len(texts) > 1 else texts[0]

    def schema(self, roles: Sequence[str]) -> str:
        del roles
        return ""

    def read(self, answer: str, texts: Sequence[str], roles: Sequence[str]) -> list[str]:
        del roles
        if len(texts) == 1:
            return [without_chatter(answer, texts[0])]
        opening, closing = tuple(_brackets(texts))
        marker = rf"{re.escape(opening)}\s*#\s*({DIGIT}+)\s*{re.escape(closing)}"
        before, *rest = re.split(marker, answer)
        del before  # an announcement
        if list(map(int, rest[::2])) != list(range(1, len(texts) + 1)):
            raise Damage(f"texts: the answer has {len(rest[::2])} of {len(texts)}, or in another order")
        return [text.strip() for text in rest[1::2]]


class Turns:
    """A JSON list of turns, as Latxa's few-shot translation has it: ``[{"role": …, "content": …}]``.

    Where nothing enforces the schema, an answer may have words before and after the list, and lines within a text that
    are not escaped; both mean the same.
    """

    overhead = 12

    def write(self, texts: Sequence[str], roles: Sequence[str]) -> str:
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        return json.dumps(turns, ensure_ascii=False, indent=2)

    def schema(self, roles: Sequence[str]) -> str:
        turn = {"type": "object", "required": ["role", "content"], "additionalProperties": False}
        keys = ({"role": {"const": role}, "content": {"type": "string"}} for role in roles)
        turns = [turn | {"properties": own} for own in keys]
        count = {"minItems": len(roles), "maxItems": len(roles)}
        return json.dumps({"type": "array", "prefixItems": turns, "items": False} | count)

    def read(self, answer: str, texts: Sequence[str], roles: Sequence[str]) -> list[str]:
        try:
            turns, _ = json.JSONDecoder(strict=False).raw_decode(answer, max(answer.find("["), 0))
        except (ValueError, RecursionError) as error:
            raise Damage(f"json: the answer is no list of turns: {error}") from error
        if not isinstance(turns, list) or not all(map(_is_turn, turns)):
            raise Damage("json: the answer is no list of turns")
        if [turn.get("role") for turn in turns] != list(roles):
            raise Damage(f"turns: the answer has {len(turns)} of {len(texts)}, or of other roles")
        if any(_HALF.search(turn["content"]) for turn in turns):  # JSON may escape it, no file can hold it
            raise Damage("json: a text has half of a surrogate pair")
        return [turn["content"].strip() for turn in turns]


FORMS: Final[dict[str, Form]] = {"marked": Marked(), "json": Turns()}
"""The values of ``task.segments.form``."""


_HALF: Final = re.compile(r"[\ud800-\udfff]")


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _brackets(texts: Sequence[str]) -> str:
    """The first pair that no text puts around a number of ours."""
    return next((pair for pair in BRACKETS if not any(f"{pair[0]}#" in text for text in texts)), BRACKETS[0])
