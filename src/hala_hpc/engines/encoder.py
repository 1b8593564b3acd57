"""Prompts as tokens: through the chat template, with words of the data that would be control tokens kept as text."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from hala_hpc.engines.base import Message, Request, ambiguous
from hala_hpc.text import prompts
from hala_hpc.text.prompts import ControlWords

TAIL = 64
"""Characters at the end of a prompt that show how a choice begins after it; few tokens are longer."""
SYSTEM = "system"
HERE = f"hala{secrets.token_hex(8)}"
"""Stands for what a user says, to find where a chat template puts it; no text holds it."""


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, whether words of its data would have been control tokens, and whether it opens a thought.

    ``choices``: the request's, by their first tokens.
    """

    ids: list[int]
    escaped: bool = False
    opened: bool = False
    choices: Mapping[int, str] = field(default_factory=dict)


class Encoder:
    """A tokenizer of transformers' with its chat template, and the recipe's arguments for the template."""

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._kwargs = dict(template_kwargs)
        backend = getattr(tokenizer, "backend_tokenizer", None)  # others have no words for control tokens
        self._words = ControlWords(backend) if backend is not None else None
        self._backend = backend
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        special = set(tokenizer.all_special_tokens)
        self.marks = special & {mark for pair in prompts.MARKS for mark in pair}
        """Those of thoughts that are control tokens: they stand in a text only where such tokens are written out."""
        self._others = special - self.marks
        self._choices = lru_cache(1024)(self._choices_after)

    def encode(self, request: Request) -> Prompt:
        """Raises whatever a chat template does, and HalaError for choices that begin with one token."""
        words, is_bare = self._words, isinstance(request.prompt, str)
        start, end = request.span or (0, len(request.last))
        said = [] if isinstance(request.prompt, str) else [m.content for m in request.prompt[:-1] if m.role != SYSTEM]
        # The template writes the special tokens itself: adding them again would give two beginnings of text.
        if words is None or not words.held([request.last[start:end], *said]):
            text = self._rendered(request)
            ids = self._ids(text, add_special_tokens=is_bare)
            return Prompt(ids, False, prompts.is_opened(text), self._choices(text[-TAIL:], request.choices))
        hidden = _hidden(request, words, start, end)
        text = self._rendered(hidden)
        choices = self._choices(words.restore(text)[-TAIL:], request.choices)
        return Prompt(words.encode(text, add_special_tokens=is_bare).ids, True, prompts.is_opened(text), choices)

    def without_special(self, text: str) -> str:
        """A text in which control tokens were written out, with no others left than marks of thoughts."""
        for word in self._others:
            text = text.replace(word, "")
        return text

    def _choices_after(self, tail: str, choices: tuple[str, ...]) -> dict[int, str]:
        """Choices by the first token that each has right after the end of a prompt; by its own first token, where it
        would melt into the prompt's last. Raises HalaError where two begin with one token.
        """
        if not choices:
            return {}
        before = self._ids(tail)
        firsts: dict[int, str] = {}
        for choice in choices:
            whole = self._ids(tail + choice)
            first = (whole[len(before) :] if whole[: len(before)] == before else self._ids(choice))[0]
            if first in firsts:
                raise ambiguous(choices, str(self._tokenizer.decode([first])))
            firsts[first] = choice
        return firsts

    def _ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        if self._backend is not None:  # five times as quick as through transformers, which does the same
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _rendered(self, request: Request) -> str:
        if isinstance(request.prompt, str):
            return request.prompt
        messages = [{"role": message.role, "content": message.content} for message in request.prompt]
        is_answer = request.speaker == "assistant"
        messages += [] if is_answer else [{"role": "user", "content": HERE}]
        template: Any = self._tokenizer.apply_chat_template
        text = str(template(messages, tokenize=False, add_generation_prompt=is_answer, **self._kwargs))
        if is_answer:
            return text
        before, mark, _ = text.partition(HERE)
        if not mark:
            raise ValueError("the chat template leaves out what the user says")
        return before


def _hidden(request: Request, words: ControlWords, start: int, end: int) -> Request:
    """The request with control words hidden in its data: so much of the last text, and all turns before but the
    system's, which are the recipe's own.
    """
    text = request.last
    last = text[:start] + words.hide(text[start:end]) + text[end:]
    if isinstance(request.prompt, str):
        return replace(request, prompt=last)
    *before, final = request.prompt
    turns = (turn if turn.role == SYSTEM else Message(turn.role, words.hide(turn.content)) for turn in before)
    return replace(request, prompt=(*turns, Message(final.role, last)))
