"""What a row is to a training, in whatever form its conversation is written."""

import json
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.documents import Chat, reader_of
from hala_hpc.data.schema import Row
from hala_hpc.data.spoken import Dropped
from hala_hpc.data.unify import infer

USER = {"role": "user", "content": "u"}
ANSWER = {"role": "assistant", "content": "a"}


def read(row: Row, **data: Any) -> Any:
    return reader_of("chat", Data(**data), infer([row])).read(row)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"from": "human", "value": "u"}, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {"conversations": {"from": ["human", "gpt"], "value": ["u", "a"]}},
        {"messages": {"role": ["user", "assistant"], "content": ["u", "a"]}},
        {"messages": [{"speaker": "human", "text": "u"}, {"speaker": "bot", "text": "a"}]},
    ],
)
def test_conversations_of_every_form_are_the_same_to_a_training(row: Row) -> None:
    assert read(row) == Chat([USER, ANSWER])


def test_a_call_without_text_stays_a_call() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}], "weight": 1}
    row = {"messages": [USER, call, {"role": "tool", "content": "x"}, ANSWER]}
    given = {key: value for key, value in call.items() if key != "weight"} | {"content": ""}
    assert read(row) == Chat([USER, given, {"role": "tool", "content": "x"}, ANSWER])


@pytest.mark.parametrize(
    ("row", "messages", "unlearned"),
    [
        ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER], set()),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, [USER, ANSWER, USER, ANSWER], {1}),
        ({"prompt": "u", "completion": ANSWER}, [USER, ANSWER], set()),
        ({"prompt": [USER], "completion": "a"}, [USER, ANSWER], set()),
        ({"prompt": [USER], "completion": [ANSWER | {"weight": 0}, ANSWER]}, [USER, ANSWER, ANSWER], {1}),
    ],
)
def test_a_prompt_of_turns_is_not_learned_and_its_completion_is(
    row: Row, messages: list[dict[str, Any]], unlearned: set[int]
) -> None:
    for data in ({}, {"shape": "messages"}):
        assert read(row, columns=["prompt", "completion"], **data) == Chat(messages, None, frozenset(unlearned))


def test_columns_of_turns_that_teach_nothing() -> None:
    for completion in ([], None, [USER], [ANSWER | {"content": " "}], [ANSWER | {"weight": 0}]):
        with pytest.raises(Dropped, match="empty: 'completion' says nothing"):
            read({"prompt": [USER], "completion": completion}, columns=["prompt", "completion"])
    with pytest.raises(HalaError, match="column 'prompt' holds a list, not a list of turns"):
        read({"prompt": ["u"], "completion": "a"}, columns=["prompt", "completion"])
    with pytest.raises(HalaError, match="turn 1 of 'messages' has the role 'agent'"):
        read({"messages": [{"role": "agent", "content": "x"}]})
