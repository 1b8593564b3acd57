"""Texts beside their translations, each by its place and, in a conversation, by who speaks."""

import json
from typing import Any

import pyarrow as pa
import pytest

from hala_hpc.data.columns import OF
from hala_hpc.data.outputs.pairs import Pair, pairs


def whole(**of: str) -> pa.Schema:
    """Columns that say of which others they are the translations."""
    return pa.schema([pa.field(name, pa.string(), metadata={OF: column.encode()}) for name, column in of.items()])


TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image", "url": "u"}]},
]
TURNED = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "مرحبا"}, {"type": "image", "url": "u"}]},
]
SAME = Pair("messages[0].content", "messages_ar[0].content", "Be kind.", "Be kind.", "system")
PART = Pair("messages[1].content[0].text", "messages_ar[1].content[0].text", "Hi", "مرحبا", "user")


@pytest.mark.parametrize("as_json", [False, True])
def test_turns_are_beside_each_other(as_json: bool) -> None:
    row: dict[str, Any] = {"messages": TURNS, "messages_ar": TURNED}
    if as_json:
        row = {name: json.dumps(value) for name, value in row.items()}
    assert list(pairs(row, whole(messages_ar="messages"))) == [SAME, PART]


def test_texts_without_a_translation() -> None:
    found = list(pairs({"messages": TURNS, "messages_ar": None}, whole(messages_ar="messages")))
    assert [(pair.source, pair.target) for pair in found][:2] == [("Be kind.", None), ("text", None)]


def test_a_column_in_a_struct_and_lists() -> None:
    row = {"t": {"en": ["a", ["b"]]}, "t_en_ar": ["ا", ["ب"]]}
    assert list(pairs(row, whole(t_en_ar="t.en"))) == [
        Pair("t.en[0]", "t_en_ar[0]", "a", "ا"),
        Pair("t.en[1][0]", "t_en_ar[1][0]", "b", "ب"),
    ]


def test_columns_that_do_not_say_what_they_translate() -> None:
    names = pa.schema([(name, pa.string()) for name in ("text", "text_ar", "other_ar", "hala_error")])
    row = {"text": "a", "text_ar": "ا", "other_ar": "b", "hala_error": None}
    assert list(pairs(row, names, "_ar")) == [Pair("text", "text_ar", "a", "ا")]
    assert [pair.source for pair in pairs(row, names)] == ["a", "ا", "b"], "all texts, where no suffix is known"
