"""Prompts as tokens, with a real tokenizer: ordinary ones as ever, control tokens in data as text."""

from typing import Any

import pytest

from hala_hpc.config.schema import Sampling
from hala_hpc.engines.base import Message, Request, request
from hala_hpc.engines.encoder import Encoder
from tests.data.tokenizer_kinds import KINDS

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)
TEXTS = ["the quick brown fox jumps over a lazy dog. it ends"] * 3


@pytest.fixture(params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = KINDS[request.param](TEXTS).tokenizer
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = TEMPLATE
    return made


def asked(text: str, span: tuple[int, int] | None = None) -> Request:
    return request((Message("user", text),), Sampling(), span)


def test_ordinary_prompts_have_the_tokens_that_the_tokenizer_gives(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, {})
    chat = [{"role": "user", "content": "the fox"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    given = encoder.encode(asked("the fox"))
    assert given.ids == tokenizer.encode(rendered, add_special_tokens=False)
    assert (given.escaped, given.opened) == (False, True)
    assert encoder.encode(Request("the fox")).ids == tokenizer.encode("the fox")


def test_a_control_token_in_a_text_does_not_end_its_turn(tokenizer: Any) -> None:
    encoder, end = Encoder(tokenizer, {}), tokenizer.convert_tokens_to_ids("<|im_end|>")
    given = encoder.encode(asked("the <|im_end|> ends it"))
    assert given.escaped
    assert given.ids.count(end) == 1, "the template's own"
    assert "ends it" in tokenizer.decode(given.ids)
    bare = encoder.encode(request("the <|im_end|> fox<|im_end|>", Sampling(), (0, 18)))
    assert bare.escaped and bare.ids.count(end) == 1, "what the recipe's own prompt has stays a control token"
    assert not encoder.encode(request("<|im_start|>the fox<|im_end|>", Sampling(), (12, 19))).escaped


def test_a_template_is_told_what_the_recipe_says(tokenizer: Any) -> None:
    quiet = Encoder(tokenizer, {"enable_thinking": False}).encode(asked("the fox"))
    assert not quiet.opened
    assert quiet.ids != Encoder(tokenizer, {}).encode(asked("the fox")).ids


def test_marks_of_thoughts_that_are_control_tokens_are_written_out_alone(tokenizer: Any) -> None:
    assert not Encoder(tokenizer, {}).marks
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|im_end|>"]})
    encoder = Encoder(tokenizer, {})
    assert encoder.marks == {"[THINK]", "[/THINK]"}
    assert encoder.without_special("[THINK]a[/THINK]b<|im_end|>") == "[THINK]a[/THINK]b"


OPENING = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("before", [(), ("system",), ("user", "assistant"), ("system", "user", "assistant")])
def test_a_user_is_asked_for_up_to_where_the_turn_begins(tokenizer: Any, before: tuple[str, ...]) -> None:
    tokenizer.chat_template = OPENING
    said = tuple(Message(role, f"the {role} fox") for role in before)
    given = Encoder(tokenizer, {}).encode(request(said, Sampling(), speaker="user"))
    turns = [*(vars(message) for message in said), {"role": "user", "content": "a lazy dog"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    wanted = whole[: whole.index("a lazy dog")]
    assert wanted.endswith("<|im_start|>user\n")
    assert given.ids == tokenizer.encode(wanted, add_special_tokens=False)
    assert (given.escaped, given.opened) == (False, False)


def test_a_template_that_shows_no_user_is_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ bos_token }}<|im_start|>"
    with pytest.raises(ValueError, match="leaves out what the user says"):
        Encoder(tokenizer, {}).encode(request((), Sampling(), speaker="user"))


def test_control_tokens_in_earlier_turns_are_text_and_in_the_recipes_own_prompt_are_not(tokenizer: Any) -> None:
    tokenizer.chat_template = OPENING
    encoder, end = Encoder(tokenizer, {}), tokenizer.convert_tokens_to_ids("<|im_end|>")
    system, asked = Message("system", "be <|im_end|> brief"), Message("user", "the <|im_end|> fox")
    chat = (system, asked, Message("assistant", "a dog"))
    given = encoder.encode(request(chat, Sampling(), speaker="user"))
    assert given.escaped and given.ids.count(end) == 3 + 1, "of three turns, and the system's own"
    answered = encoder.encode(request((*chat, Message("user", "the end")), Sampling()))
    assert answered.escaped and answered.ids.count(end) == 4 + 1
    first = encoder.encode(request((system,), Sampling(), (0, 0), speaker="user"))
    assert not first.escaped and first.ids.count(end) == 1 + 1
