"""Chat templates: what they print of a conversation, and the marks around what the assistant says."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, first_line
from hala_hpc.config.schema import Model
from hala_hpc.data.documents import Chat
from hala_hpc.data.files import hub
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import Turn
from hala_hpc.data.spoken import CONTENTS

GENERATION: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")
USER, ANSWER, USER_2, ANSWER_2 = PROBE = ("Which is first?", "Seven comes.", "Which is next?", "Eleven follows.")
HOW_TO_MARK: Final = (
    "give a copy of it with task.chat_template, where the assistant's text and the token that ends its turn stand "
    "between {% generation %} and {% endgeneration %}"
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. ``spans`` are the characters, from and to, that the assistant wrote."""

    text: str
    spans: list[tuple[int, int]]


def load_tokenizer(model: Model, chat_template: str | None = None) -> Any:
    """The tokenizer of a model, with the template of the file ``chat_template`` where one is given.

    Raises HalaError where there is none, or only a slow one, which does not know where a token is in its text.
    """
    name = model.tokenizer or model.name
    hub.go_offline_if_out_of_reach([name])
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # else it says on standard error: no torch
    from transformers import AutoTokenizer

    revision = {"revision": model.revision} if model.revision and not model.tokenizer else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise HalaError(f"model: no tokenizer in '{name}': {first_line(error)}", _hint(name)) from error
    if not tokenizer.is_fast:
        raise HalaError(f"model: '{name}' has no tokenizer.json", "one of transformers' fast tokenizers is needed")
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HalaError(f"task.chat_template: {chat_template}: {error}") from error
    return tokenizer


def model_config(model: Model) -> Row:
    """The ``config.json`` of a model: of a folder, or of the hub by way of its cache. Raises HalaError."""
    path = Path(model.name) / "config.json"
    try:
        if not path.is_file():
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import HFValidationError

            hub.go_offline_if_out_of_reach([model.name])
            try:
                path = Path(hf_hub_download(model.name, "config.json", revision=model.revision))
            except HFValidationError as error:
                raise places.no_model(model.name, "model.name: ") from error
        config: Row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        is_away = isinstance(error, ConnectionError | FileNotFoundError) and hub.is_on_hub(model.name)
        why = hub.why(error) if is_away else first_line(error)
        raise HalaError(f"model.name: no config.json in '{model.name}': {why}", _hint(model.name)) from error
    return config


def _hint(name: str) -> str:
    return hub.PREFETCH if hub.is_on_hub(name) else ""


def render(tokenizer: Any, chat: Chat) -> Rendered:
    """A conversation through the tokenizer's template. Raises HalaError where the template refuses it."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    through: Any = render_jinja_template
    try:
        texts, spans = through(
            [chat.messages],
            tools=chat.tools,
            chat_template=template_of(tokenizer),
            return_assistant_tokens_mask=True,
            strftime_now=_refuse_date,
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise HalaError(f"the chat template refuses this conversation: {first_line(error)}") from error
    return Rendered(texts[0], [(begin, end) for begin, end in spans[0]])


def _refuse_date(form: str) -> str:
    """Stands in for what gives templates the date."""
    raise HalaError(
        f"the chat template prints the date of today ({form}), so tokens would depend on the day that they are made",
        "give a copy of it with task.chat_template, with a date that is written there",
    )


def template_of(tokenizer: Any) -> str:
    """The chat template: where a tokenizer has several, its default. Raises HalaError where there is none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise HalaError("the tokenizer has no chat template", HOW_TO_MARK)
    return str(template)


def check(tokenizer: Any, kinds: Collection[str]) -> None:
    """Refuse a tokenizer or template that would spoil a training on rows of these kinds.

    Raises HalaError for no EOS, a BOS twice, and a chat template without generation marks, or whose marks leave out
    some of the assistant's text or the token that ends its turn, or take in what others say.
    """
    if tokenizer.eos_token_id is None:
        raise HalaError("the tokenizer has no EOS token, so the model would never learn to stop", "set its eos_token")
    _check_bos(tokenizer, tokenizer("x")["input_ids"], "the tokenizer puts BOS before a text twice")
    if tokenizer.bos_token_id in tokenizer("x", add_special_tokens=False)["input_ids"]:
        raise HalaError("the tokenizer adds BOS even with add_special_tokens=False", "mend its tokenizer.json")
    if "chat" in kinds:
        _check_template(tokenizer)


def _check_template(tokenizer: Any) -> None:
    if not GENERATION.search(template_of(tokenizer)):
        raise _unusable("has no {% generation %} marks, so what the assistant says cannot be told from the rest")
    turns = zip(("user", "assistant") * 2, PROBE, strict=True)
    rendered = render(tokenizer, Chat([{"role": role, "content": text} for role, text in turns]))
    marked = "".join(rendered.text[begin:end] for begin, end in rendered.spans)
    if USER in marked or USER_2 in marked:
        raise _unusable("marks what the user says as the assistant's")
    if ANSWER not in marked or ANSWER_2 not in marked:
        raise _unusable("does not mark all that the assistant says")
    encoding = tokenizer.backend_tokenizer.encode(rendered.text, add_special_tokens=False)
    _check_bos(tokenizer, encoding.ids, "the chat template puts BOS before a conversation twice")
    _check_ends(tokenizer, encoding, rendered)


def _unusable(why: str) -> HalaError:
    return HalaError(f"the chat template {why}", HOW_TO_MARK)


def _check_bos(tokenizer: Any, ids: list[int], message: str) -> None:
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise HalaError(message, "mend it, or give another with task.chat_template")


def _check_ends(tokenizer: Any, encoding: Any, rendered: Rendered) -> None:
    """The first special token after each answer is what a model stops at: it has to be learned."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    special = {id for id, token in added.items() if token.special} | {tokenizer.eos_token_id}
    for answer, following in ((ANSWER_2, None), (ANSWER, USER_2)):
        begin = rendered.text.index(answer) + len(answer)
        end = rendered.text.index(following) if following else len(rendered.text)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        ends = [place for id, place in places if id in special and begin <= place[0] < end]
        if not ends:
            raise _unusable("ends the assistant's turn with no special token, so the model would never stop")
        if not any(start <= ends[0][0] < stop for start, stop in rendered.spans):
            token = rendered.text[slice(*ends[0])]
            raise HalaError(
                f"the chat template's marks leave {token!r} out, so the model would never stop", HOW_TO_MARK
            )


THINK: Final = re.compile(r"(</?think>)")
NO_TEXTS: Final = ("role", "id", "type", "index", "tool_call_id")
"""Keys of a turn or a call that hold nothing of the conversation; nor does a turn's own ``name``."""
CONTENT_OF: Final = {"system": "system", "tool": "tool"}
"""How the content of a turn is called in ``leave_out``, by role; that of others is ``content``."""
NAMES: Final = frozenset({*CONTENTS, *CONTENT_OF.values(), "content", "tools"})
"""What ``leave_out`` can name; where a template leaves out something else, that is only counted."""
Spans = list[tuple[int, int]]
Render = Callable[[Chat], tuple[str, Spans]]
"""A conversation as text, and the characters of it, from and to, that the assistant says."""


@dataclass(frozen=True)
class Mark:
    """Stands for one text: ``turn`` holds it (None: the tools do), and ``name`` is what ``leave_out`` calls it."""

    word: str
    turn: int | None
    name: str

    @property
    def where(self) -> str:
        """The mark's place, as a person names it."""
        if self.turn is None:
            return self.name
        is_content = self.name in ("content", *CONTENT_OF.values())
        return f"{'the content' if is_content else self.name} of turn {self.turn + 1}"


@dataclass(frozen=True)
class TemplateOutcome:
    """What became of a conversation: names of what is left out, and for each span of the assistant its turns."""

    left_out: frozenset[str]
    turns: list[frozenset[int]]


class Marks:
    """Looks at conversations through one template, and remembers the builds that it has seen."""

    def __init__(self, render: Render, accepted: Collection[str]) -> None:
        """``accepted``: NAMES of what may be left out."""
        self._render, self._accepted = render, frozenset(accepted)
        self._seen: dict[Any, TemplateOutcome] = {}

    def look(self, chat: Chat) -> TemplateOutcome:
        """Raises HalaError that names the turn and what the template leaves out, or takes for somebody else's."""
        build = _build(chat)
        if (seen := self._seen.get(build)) is None:
            seen = self._seen[build] = self._rendered(chat)
        return seen

    def learned(self, chat: Chat, spans: Spans) -> Spans:
        """Spans of turns that are to be learned, and that say something although much may be left out.

        Raises HalaError where the turns cannot be separated.
        """
        if not chat.unlearned and not self._accepted:
            return spans
        turns, unlearned = self.look(chat).turns, chat.unlearned
        if len(turns) != len(spans) or not all(whose <= unlearned or not whose & unlearned for whose in turns):
            raise HalaError(
                "the chat template marks turns that are to be learned together with others that are not",
                "it should have {% generation %} once for each turn of the assistant",
            )
        return [span for span, whose in zip(spans, turns, strict=True) if whose and not whose <= unlearned]

    def _rendered(self, chat: Chat) -> TemplateOutcome:
        marking = _Marking()
        text, spans = self._render(marking.chat(chat))
        missing = [mark for mark in marking.marks if mark.word not in text]
        for mark in missing:
            if mark.name in NAMES - self._accepted:
                raise HalaError(
                    f"the chat template leaves out {mark.where}",
                    f"give another with task.chat_template, or do without: leave_out: [{mark.name}]",
                )
        spoken = [text[begin:end] for begin, end in spans]
        of_turns = [(mark, mark.turn) for mark in marking.marks if mark.turn is not None and mark.name in NAMES]
        for mark, turn in of_turns:
            if mark not in missing:
                _refuse_wrong_spans(mark, chat.messages[turn]["role"], spoken)
        turns = [frozenset(turn for mark, turn in of_turns if mark.word in span) for span in spoken]
        return TemplateOutcome(frozenset(mark.name for mark in missing), turns)


def _refuse_wrong_spans(mark: Mark, role: str, spoken: list[str]) -> None:
    hint = "what the assistant says, and nothing else, stands between {% generation %} and {% endgeneration %}"
    is_spoken = any(mark.word in span for span in spoken)
    if role == "assistant" and not is_spoken:
        raise HalaError(f"the chat template does not mark {mark.where} as the assistant's", hint)
    if role != "assistant" and is_spoken:
        raise HalaError(f"the chat template marks {mark.where} as the assistant's, and it is the {role}'s", hint)


class _Marking:
    """Puts marks in place of texts. ``marks`` are all of one conversation."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def chat(self, chat: Chat) -> Chat:
        messages = [self._message(turn, message) for turn, message in enumerate(chat.messages)]
        return Chat(messages, None if chat.tools is None else [self._tool(tool) for tool in chat.tools])

    def _message(self, turn: int, message: Turn) -> Turn:
        content = self._text(message["content"], turn, CONTENT_OF.get(message["role"], "content"))
        skipped = (*NO_TEXTS, "name", "content")
        others = {key: self._deep(value, turn, key) for key, value in message.items() if key not in skipped}
        return message | others | {"content": content}

    def _tool(self, tool: Row) -> Row:
        """What a model has to know to call it: its name, what it does, and the names of its parameters."""
        if isinstance(function := tool.get("function"), dict):
            return tool | {"function": self._tool(function)}
        marked = tool | {key: self._mark(None, "tools") for key in ("name", "description") if tool.get(key)}
        parameters = tool.get("parameters")
        if isinstance(parameters, dict) and isinstance(properties := parameters.get("properties"), dict):
            named = {self._mark(None, "tools"): value for value in properties.values()}
            marked["parameters"] = parameters | {"properties": named}
        return marked

    def _mark(self, turn: int | None, name: str) -> str:
        self.marks.append(Mark(f"hm{len(self.marks)}x", turn, name))
        return self.marks[-1].word

    def _text(self, text: str, turn: int, name: str) -> str:
        """A thought within a text is marked by itself: templates take it out of earlier turns."""
        parts = THINK.split(text)  # text, tag, text, …
        for at in range(0, len(parts), 2):
            if parts[at].strip():
                is_thought = "<think>" in parts[at - 1 : at] or "</think>" in parts[at + 1 : at + 2]
                parts[at] = self._mark(turn, "thinking" if is_thought else name)
        return "".join(parts)

    def _deep(self, value: Any, turn: int, name: str, key: str = "") -> Any:
        """All texts of a value that stands under ``key``, and the names of arguments."""
        if key in NO_TEXTS:
            return value
        if key == "arguments" and (whole := _object(value)) is not None:
            marked = {self._mark(turn, name): argument for argument in whole.values()}  # values need not be texts
            return json.dumps(marked) if isinstance(value, str) else marked
        if isinstance(value, str):
            return self._text(value, turn, name)
        if isinstance(value, list):
            return [self._deep(item, turn, name) for item in value]
        if isinstance(value, dict):
            return {key: self._deep(item, turn, name, key) for key, item in value.items()}
        return value


def _build(chat: Chat) -> Any:
    """What a template can tell conversations apart by: roles, keys, and which of them hold something."""
    turns = tuple((message["role"], *_content(message["content"]), *_others(message)) for message in chat.messages)
    return turns, tuple(map(_shape, chat.tools or ()))


def _content(content: str) -> Iterator[Any]:
    yield bool(content.strip())
    if "think>" in content:
        yield from ((THINK.fullmatch(part) and part) or bool(part.strip()) for part in THINK.split(content))


def _others(message: Turn) -> Iterator[Any]:
    for key, value in message.items():
        if key in CONTENTS:
            yield key, _shape(value)
        elif key not in ("role", "content"):
            yield key, bool(value)


def _shape(value: Any) -> Any:
    """Keys and kinds of a value without what it says; of arguments and parameters only whether there are any."""
    if isinstance(value, dict):
        names = ("arguments", "properties")
        return tuple((k, type(inner), bool(inner)) if k in names else (k, _shape(inner)) for k, inner in value.items())
    return tuple(map(_shape, value)) if isinstance(value, list) else (type(value), bool(value))


def _object(value: Any) -> Row | None:
    """An object, or the one that a JSON text holds."""
    with contextlib.suppress(ValueError):
        value = json.loads(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else None
