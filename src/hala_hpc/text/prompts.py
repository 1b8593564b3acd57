"""What is asked of a model: prompts, words that are control tokens, and what of an answer is thinking."""

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Final


def problem_of(template: str, names: Sequence[str] = ("text",)) -> str | None:
    """Why a prompt template cannot be used; None where it can. ``names`` are those of the texts that it must hold."""
    counts = {f"{{{name}}}": template.count(f"{{{name}}}") for name in names}
    odd = next((word for word, count in counts.items() if count != 1), None)
    return None if odd is None else f"holds {odd} {counts[odd]} times, it must hold it once"


def render(template: str, texts: Mapping[str, str], **words: str) -> tuple[str, tuple[int, int]]:
    """A template with named texts and words filled in, and from where to where the texts stand in it.

    Between two texts stands what the template has there; none of it may be a control token. Braces anywhere else, also
    in the texts, mean nothing.
    """
    parts = re.split(rf"\{{({'|'.join(map(re.escape, texts))})\}}", template)  # words and names in turn
    filled = [texts[part] if at % 2 else _filled(part, words) for at, part in enumerate(parts)]
    written = "".join(filled)
    return written, (len(filled[0]), len(written) - len(filled[-1]))


def _filled(part: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        part = part.replace(f"{{{name}}}", word)
    return part


MARKS: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
"""How models open and close a thought, as their chat templates have it."""


class EndlessThought(ValueError):
    """A thought that never ends: there is no answer."""


def is_opened(prompt: str) -> bool:
    """Whether a prompt ends in an opened thought, so that the model goes on thinking without a mark."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in MARKS))


def answer_of(written: str, given: str = "", opened: bool = False) -> str:
    """What was written, without a thought at its beginning; the same text where there is none.

    Marks that ``given`` (the text that was sent) has too are the text's own: a translated thought is not thinking.
    Raises EndlessThought.
    """
    for opening, closing in MARKS:
        thought, mark, answer = written.partition(closing)
        if mark and (opened or written.count(closing) > given.count(closing)):
            return answer.lstrip()
        if not mark and thought.lstrip().startswith(opening) and opening not in given:
            raise EndlessThought(f"{opening} was never closed")
    if opened:
        raise EndlessThought("the thought that the prompt opens was never closed")
    return written


BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
"""Tokens for single bytes: some tokenizers list them as special, and could not encode rare characters without them."""
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text; ``offsets`` (of each token, the characters from and to) and ``spans`` are of the same text."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    spans: list[tuple[int, int]]


class ControlWords:
    """The words of one tokenizer that are control tokens: those that its ``added_tokens`` call special.

    Texts without such words are encoded by the tokenizer itself, and nothing is built for the others before one comes.
    """

    def __init__(self, backend: Any, allowed: Collection[str] = ()) -> None:
        """``backend``: a ``tokenizers.Tokenizer``. ``allowed``: words that stay control tokens in data, too."""
        self._backend = backend
        added = backend.get_added_tokens_decoder().items()
        self._ids = {token.content: id for id, token in added if token.special and not BYTE.fullmatch(token.content)}
        self.words: frozenset[str] = frozenset(self._ids)
        self._nonce = f"h{secrets.token_hex(8)}"  # nobody's data can hold it
        self._hidden = {f"{self._nonce}w{id}e": word for word, id in self._ids.items()}
        self._found_in_data = _any_of(self.words - set(allowed))
        self._found_in_rendered = _any_of([*self.words, *self._hidden])

    def held(self, value: Any) -> bool:
        """Whether a text, or any text of a list or mapping, has such a word."""
        return bool(self.hide(value) != value)

    def hide(self, value: Any) -> Any:
        """The same value with the words in its texts, however deep, put under other names; for ``encode``."""
        if isinstance(value, str):
            return self._found_in_data.sub(lambda word: f"{self._nonce}w{self._ids[word[0]]}e", value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return type(value)(map(self.hide, value)) if isinstance(value, list | tuple) else value

    def restore(self, text: str) -> str:
        """A text as it was before its words were hidden."""
        return self._found_in_rendered.sub(lambda word: self._hidden.get(word[0], word[0]), text)

    def encode(self, text: str, spans: Spans = (), add_special_tokens: bool = False) -> Encoded:
        """Tokens of a text in which the words of the data are hidden; ``spans`` are characters of it, from and to.

        ``add_special_tokens`` as transformers has it: with what the tokenizer puts before and after a text.
        """
        if self._nonce not in text:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
            return Encoded(encoding.ids, encoding.offsets, list(spans))
        renamed, moved = self._renamed(text, spans)
        twin, originals = self._twin
        encoding = twin.encode(renamed, add_special_tokens=False)
        ids, offsets = [originals.get(id, id) for id in encoding.ids], encoding.offsets
        if add_special_tokens:
            before, after = self._around
            ids = [*before, *ids, *after]
            offsets = [*[(0, 0)] * len(before), *offsets, *[(len(renamed), len(renamed))] * len(after)]
        return Encoded(ids, offsets, moved)

    def _renamed(self, text: str, spans: Spans) -> tuple[str, list[tuple[int, int]]]:
        """Hidden words as themselves, control tokens by their names in the twin; spans move along."""
        words = list(self._found_in_rendered.finditer(text))
        others = [self._hidden.get(word[0]) or self._marker(self._ids[word[0]]) for word in words]
        grown = [0, *accumulate(len(new) - len(old[0]) for old, new in zip(words, others, strict=True))]
        ends = [word.end() for word in words]

        def moved(position: int) -> int:
            return position + grown[bisect_right(ends, position)]

        new = iter(others)
        return self._found_in_rendered.sub(lambda _: next(new), text), [(moved(a), moved(b)) for a, b in spans]

    def _marker(self, id: int) -> str:
        return f"{self._nonce}t{id}e"

    @cached_property
    def _twin(self) -> tuple[Any, dict[int, int]]:
        """The tokenizer with its control tokens under other names, and the original id of each added token."""
        spec = json.loads(self._backend.to_str())
        named = {id: self._marker(id) for id in self._ids.values()}
        for token in spec["added_tokens"]:
            token["content"] = named.get(token["id"], token["content"])
        if spec["model"]["type"] == "Unigram":  # it alone would make the word's own piece of ordinary text
            for id, (word, _) in enumerate(spec["model"]["vocab"]):
                if self._ids.get(word) == id:
                    spec["model"]["vocab"][id][0] = named[id]
        twin = type(self._backend).from_str(json.dumps(spec))
        twin.no_truncation()
        twin.no_padding()
        return twin, {twin.token_to_id(token["content"]): token["id"] for token in spec["added_tokens"]}

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        whole, bare = (self._backend.encode("x", add_special_tokens=added).ids for added in (True, False))
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """Finds the longest at each place, as tokenizers do; nothing where there are no words."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")
