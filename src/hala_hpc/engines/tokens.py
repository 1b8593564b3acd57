"""A request's prompt as tokens: its chat through the model's template, control tokens of the data as text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hala_hpc.engines.base import Message, Request
from hala_hpc.text import thinking
from hala_hpc.text.control import ControlWords


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, whether words of its data would have been control tokens, and whether it opens a thought."""

    ids: list[int]
    escaped: bool = False
    opened: bool = False


class Encoder:
    """A tokenizer of transformers' with its chat template, and what the recipe tells the template."""

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._kwargs = dict(template_kwargs)
        backend = getattr(tokenizer, "backend_tokenizer", None)  # others have no words for control tokens
        self._words = ControlWords(backend) if backend is not None else None
        special = set(tokenizer.all_special_tokens)
        self.marks = special & {mark for pair in thinking.MARKS for mark in pair}
        """Those of thoughts that are control tokens: they stand in a text only where such tokens are written out."""
        self._others = special - self.marks

    def encode(self, request: Request) -> Prompt:
        """Raises whatever a chat template does."""
        words = self._words
        start, end = request.span or (0, len(request.last))
        is_escaped = words is not None and words.held(request.last[start:end])
        if is_escaped and words is not None:
            request = _with_last(request, lambda text: text[:start] + words.hide(text[start:end]) + text[end:])
        text = self._rendered(request)
        is_bare = isinstance(request.prompt, str)
        # The template writes the special tokens itself: adding them again would give two beginnings of text.
        if is_escaped and words is not None:
            ids = words.encode(text, add_special_tokens=is_bare).ids
        else:
            ids = list(self._tokenizer.encode(text, **({} if is_bare else {"add_special_tokens": False})))
        return Prompt(ids, is_escaped, thinking.is_opened(text))

    def without_special(self, text: str) -> str:
        """A text in which control tokens were written out, with no others left than marks of thoughts."""
        for word in self._others:
            text = text.replace(word, "")
        return text

    def _rendered(self, request: Request) -> str:
        if isinstance(request.prompt, str):
            return request.prompt
        messages = [{"role": message.role, "content": message.content} for message in request.prompt]
        return str(
            self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **self._kwargs)
        )


def _with_last(request: Request, change: Any) -> Request:
    if isinstance(request.prompt, str):
        return replace(request, prompt=change(request.prompt))
    *before, last = request.prompt
    return replace(request, prompt=(*before, Message(last.role, change(last.content))))
