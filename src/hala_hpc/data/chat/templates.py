"""Tokenizers and chat templates: loaded the same everywhere, and refused early where they would spoil a training."""

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, first_line
from hala_hpc.config.schema import Model
from hala_hpc.data.arrow.schema import Row
from hala_hpc.data.chat.documents import Chat
from hala_hpc.data.files import hub

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


def expect_no_torch() -> None:
    """To be called before transformers is imported: else it says on standard error that torch is absent."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load_tokenizer(model: Model, chat_template: str | None = None) -> Any:
    """The tokenizer of a model, with the template of the file ``chat_template`` where one is given.

    Raises HalaError where there is none, or only a slow one, which does not know where a token is in its text.
    """
    expect_no_torch()
    from transformers import AutoTokenizer

    name = model.tokenizer or model.name
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

            try:
                path = Path(hf_hub_download(model.name, "config.json", revision=model.revision))
            except HFValidationError as error:
                raise places.no_model(model.name, "model.name: ") from error
        config: Row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = first_line(error)
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
        raise HalaError("the tokenizer adds BOS even where it is asked not to", "mend its tokenizer.json")
    if "chat" in kinds:
        _check_template(tokenizer)


def _check_template(tokenizer: Any) -> None:
    if not GENERATION.search(template_of(tokenizer)):
        raise HalaError(
            "the chat template has no {% generation %} marks, so what the assistant says cannot be told from the rest",
            HOW_TO_MARK,
        )
    turns = zip(("user", "assistant") * 2, PROBE, strict=True)
    rendered = render(tokenizer, Chat([{"role": role, "content": text} for role, text in turns]))
    marked = "".join(rendered.text[begin:end] for begin, end in rendered.spans)
    for text in (USER, USER_2):
        if text in marked:
            raise HalaError("the chat template marks what the user says as the assistant's", HOW_TO_MARK)
    for text in (ANSWER, ANSWER_2):
        if text not in marked:
            raise HalaError("the chat template does not mark all that the assistant says", HOW_TO_MARK)
    encoding = tokenizer.backend_tokenizer.encode(rendered.text, add_special_tokens=False)
    _check_bos(tokenizer, encoding.ids, "the chat template puts BOS before a conversation twice")
    _check_ends(tokenizer, encoding, rendered)


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
            raise HalaError(
                "the chat template ends the assistant's turn with no special token, so the model would never stop",
                HOW_TO_MARK,
            )
        if not any(start <= ends[0][0] < stop for start, stop in rendered.spans):
            token = rendered.text[slice(*ends[0])]
            raise HalaError(
                f"the chat template's marks leave {token!r} out, so the model would never stop", HOW_TO_MARK
            )
