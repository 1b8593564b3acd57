"""Shapes of datasets: which texts they find, and that a row is never changed."""

import copy
import json
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import ASIDE, Shape, shape_of, turns_of
from hala_hpc.data.unify import infer

BOTH = ("user", "assistant")
TURNS = [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}, {"from": "GPT", "value": "g"}]
PARTS = [{"type": "image"}, {"type": "text", "text": "p"}, {"type": "text", "text": ""}]
OPENAI = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
ROWS: list[tuple[Row, dict[str, Any], list[str]]] = [
    ({"instruction": "a", "input": "", "output": "b"}, {}, ["a", "b"]),
    ({"instruction": "a", "output": None}, {}, ["a"]),
    ({"text": " \n"}, {}, []),
    ({"q": "a", "r": {"s": {"t": "b"}}}, {"columns": ["q", "r.s.t"]}, ["a", "b"]),
    ({"r.s": "a"}, {"columns": ["r.s"]}, ["a"]),
    ({"en": "a", "ar": "b"}, {"shape": "pairs", "columns": ["en", "ar"]}, ["a"]),
    ({"body": "a"}, {"shape": "text", "columns": ["body"]}, ["a"]),
    ({"conversations": TURNS}, {}, ["h", "g"]),
    ({"talk": TURNS}, {"shape": "conversations", "columns": ["talk"]}, ["h", "g"]),
    ({"messages": [{"role": "user", "content": PARTS}, {"role": "tool", "content": "x"}]}, {}, ["p"]),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]}, {}, []),
    ({"messages": []}, {}, []),
    # lists of texts, and paths into lists
    ({"q": "a", "choices": ["b", "", None, "c"]}, {"columns": ["q", "choices"]}, ["a", "b", "c"]),
    ({"choices": ["b", "c"]}, {"columns": ["choices[]"]}, ["b", "c"]),
    ({"history": [["a", "b"], ["c", "d"]]}, {"columns": ["history"]}, ["a", "b", "c", "d"]),
    ({"faq": [{"q": "a", "a": "b", "id": "x"}]}, {"columns": ["faq[].q", "faq[].a"]}, ["a", "b"]),
    ({"s": {"l": [{"t": ["a"]}, {"t": None}]}}, {"columns": ["s.l[].t"]}, ["a"]),
    # conversations in one column and in several, a single turn, and all the forms of turns
    ({"chosen": TURNS, "rejected": TURNS[:2]}, {"columns": ["chosen", "rejected"]}, ["h", "g", "h"]),
    ({"a": TURNS, "b": TURNS[1:]}, {"shape": "conversations", "columns": ["a", "b"]}, ["h", "g", "h", "g"]),
    ({"conversations": OPENAI, "chosen": OPENAI[1]}, {"columns": ["conversations", "chosen"]}, ["u", "a", "a"]),
    ({"conversations": OPENAI}, {}, ["u", "a"]),
    ({"messages": TURNS}, {}, ["h", "g"]),
    ({"messages": [{"speaker": "human", "text": "a"}]}, {}, ["a"]),
    ({"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}, {}, ["a", "b"]),
    ({"messages": {"role": ["user", "system"], "content": ["a", "b"]}}, {}, ["a"]),
    ({"turns": {"role": ["user"], "content": ["a"]}}, {"columns": ["turns"]}, ["a"]),
    ({"messages": json.dumps(OPENAI)}, {}, ["u", "a"]),
    ({"conversations": json.dumps({"from": ["human"], "value": ["é"]}, ensure_ascii=False)}, {}, ["é"]),
    ({"messages": ""}, {}, []),
    # parts are known by their type
    ({"messages": [{"role": "user", "content": [{"type": "text", "value": "a"}, "b"]}]}, {}, ["a", "b"]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": {"value": "a"}}]}]}, {}, ["a"]),
    ({"messages": [{"role": "user", "content": [{"type": "reasoning", "text": "a"}, {"text": "b"}]}]}, {}, ["b"]),
    # a shape with columns of its own
    ({"instruction": "a", "output": "b", "q": "c"}, {"shape": "alpaca", "columns": ["q"]}, ["c"]),
]


def shape(row: Row, roles: tuple[str, ...] = BOTH, **data: Any) -> Shape:
    return shape_of(Data(**data), roles, infer([row]))


@pytest.mark.parametrize(("row", "data", "texts"), ROWS)
def test_texts_are_found_and_put_back(row: Row, data: dict[str, Any], texts: list[str]) -> None:
    before = copy.deepcopy(row)
    found = shape(row, **data)
    places = found.texts(row)
    assert [text for _, text in places] == texts
    same = found.rebuild(row, {})
    assert same == found.rebuild(row, dict(places))
    assert all(same[column] == row.get(column, same[column]) for column in found.columns)
    again = found.rebuild(row, {place: f"«{text}»" for place, text in places})
    assert (again != same) == bool(texts)
    assert row == before


@pytest.mark.parametrize(
    ("row", "data", "expected"),
    [
        ({"choices": ["a", ""]}, {"columns": ["choices"]}, {"choices": ["«a»", ""]}),
        (
            {"faq": [{"q": "a", "a": "b"}]},
            {"columns": ["faq[].q"]},
            {"faq": [{"q": "«a»", "a": "b"}]},
        ),
        ({"r": {"s": ["a"]}}, {"columns": ["r.s"]}, {"r.s": ["«a»"]}),
        (
            {"conversations": {"from": ["human", "tool"], "value": ["a", "b"]}},
            {},
            {"conversations": {"from": ["human", "tool"], "value": ["«a»", "b"]}},
        ),
        (
            {"messages": '[{"role":  "user", "content": "é", "id": 12345678901234567890}]'},
            {},
            {"messages": '[{"role": "user", "content": "«é»", "id": 12345678901234567890}]'},
        ),
        (
            {"messages": '[{"role":  "system", "content": "as written"}]'},
            {},
            {"messages": '[{"role":  "system", "content": "as written"}]'},
        ),
        (
            {"chosen": {"role": "assistant", "content": "a"}, "text": "b"},
            {"columns": ["chosen", "text"]},
            {"chosen": {"role": "assistant", "content": "«a»"}, "text": "«b»"},
        ),
    ],
)
def test_a_translation_has_the_form_of_its_original(row: Row, data: dict[str, Any], expected: Row) -> None:
    found = shape(row, **data)
    assert found.rebuild(row, {place: f"«{text}»" for place, text in found.texts(row)}) == expected


@pytest.mark.parametrize(
    ("row", "data", "told"),
    [
        ({"messages": [{"role": "agent", "content": "x"}, *OPENAI]}, {}, ["turns of 'agent' are left as they are"]),
        (
            {"messages": [{"role": "assistant", "content": "a", "reasoning_content": "r", "weight": 1}]},
            {},
            ["turns hold 'reasoning_content' beside their text, which is left as it is"],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "text": "x"}, {"image": "y"}]}]},
            {},
            ["parts of type 'tool_use' are left as they are", "parts without text are left as they are"],
        ),
        (
            {"instruction": "a", "output": "b", "history": [["q", "a"]], "system": "s", "id": "12", "n": 5},
            {},
            [f"{ASIDE}'history'", f"{ASIDE}'system'"],
        ),
        ({"instruction": "a", "output": None}, {}, ["rows lack 'output'"]),
        ({"t": {"en": "a", "es": "b"}, "hala_note": "c"}, {"columns": ["t.en"]}, [f"{ASIDE}'t.es'"]),
        ({"en": "a", "ar": "b"}, {"shape": "pairs", "columns": ["en", "ar"]}, []),
        (
            {"talk": json.dumps(OPENAI).replace(": ", ":")},
            {"columns": ["talk"]},
            ["texts of 'talk' look like turns in JSON and are taken as one text (data.shape=messages reads them)"],
        ),
    ],
)
def test_what_is_passed_over_is_told(row: Row, data: dict[str, Any], told: list[str]) -> None:
    assert shape(row, **data).left(row) == told


SPOKEN = st.fixed_dictionaries({"role": st.sampled_from(["user", "Assistant", "agent"]), "content": st.text()})


@settings(max_examples=60, deadline=None)
@given(st.lists(SPOKEN, min_size=1), st.sampled_from(["list", "columns", "json", "json of columns"]))
def test_a_conversation_is_translated_alike_in_all_forms(turns: list[Row], form: str) -> None:
    columns = {key: [turn[key] for turn in turns] for key in ("role", "content")}
    written: Any = columns if "columns" in form else turns
    row = {"messages": json.dumps(written) if "json" in form else written}
    found = shape(row)
    new = found.rebuild(row, {place: f"«{text}»" for place, text in found.texts(row)})["messages"]
    assert type(new) is type(row["messages"])
    is_done = [turn["role"] != "agent" and bool(turn["content"].strip()) for turn in turns]
    texts = [f"«{turn['content']}»" if done else turn["content"] for turn, done in zip(turns, is_done, strict=True)]
    assert turns_of(new, "messages") == [turn | {"content": text} for turn, text in zip(turns, texts, strict=True)]
    assert len(found.texts(row)) == sum(is_done)


@pytest.mark.parametrize(
    ("row", "data", "keys"),
    [
        ({"conversations": OPENAI}, {}, ("role", "content")),
        ({"conversations": {"from": ["human"], "value": ["a"]}}, {}, ("from", "value")),
        ({"messages": [{"speaker": "human", "utterance": "a"}]}, {}, ("speaker", "utterance")),
        ({"messages": json.dumps(OPENAI)}, {}, ("role", "content")),
    ],
)
def test_keys_of_turns_are_told_by_their_type(row: Row, data: dict[str, Any], keys: tuple[str, str]) -> None:
    found = shape(row, **data)
    assert found.turn_keys == keys


def test_roles() -> None:
    row = {"conversations": TURNS}
    for roles, texts in [(("system",), ["s"]), (("user",), ["h"]), (("system", *BOTH), ["s", "h", "g"]), ((), [])]:
        assert [text for _, text in shape(row, roles).texts(row)] == texts


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": 5}, "column 'text' holds a number, not text"),
        ({"text": True}, "column 'text' holds true or false, not text"),
        ({"text": ["x", 5]}, "column 'text[1]' holds a number, not text"),
        ({"text": [{"a": "x"}]}, "column 'text[0]' holds an object, not text (name what is in it: a.b, or a[].b"),
        ({"messages": 5}, "column 'messages' holds a number, not a list of turns"),
        ({"messages": [5]}, "column 'messages' holds a list, not a list of turns"),
        ({"messages": [{"content": "x"}]}, "turn 0 of 'messages' has no 'role'"),
        ({"messages": [{"role": None, "content": "x"}]}, "turn 0 of 'messages' has no 'role'"),
        ({"messages": [{"role": "user", "content": 5}]}, "turn 0 of 'messages' holds a number, not text"),
        ({"messages": "Hi"}, "column 'messages' holds a text, not a list of turns"),
        ({"messages": [{"role": "user", "content": [["x"]]}]}, "turn 0 of 'messages' has a part that holds a list"),
        ({"messages": [{"role": "user", "content": [{"text": 5}]}]}, "has a part that holds a number"),
    ],
)
def test_rows_of_another_form(row: Row, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        shape(row).texts(row)
    assert said in str(caught.value)


def test_columns_that_cannot_be() -> None:
    schema = pa.schema([("a", pa.string()), ("s", pa.struct([("t", pa.string())]))])
    with pytest.raises(HalaError, match=r"cannot tell .* \(set data\.columns to some of: a, s\)"):
        shape_of(Data(), BOTH, schema)
    with pytest.raises(HalaError, match=r"no column 'a,s' \(several are data\.columns=\[a,s\]\)"):
        shape_of(Data(columns=["a,s"]), BOTH, schema)
    with pytest.raises(HalaError, match=r"no column 'l\.t' \(in each item of a list: l\[\]\.t\)"):
        shape_of(Data(columns=["l.t"]), BOTH, pa.schema([("l", pa.list_(schema.field("s").type))]))
    faq = pa.schema([("faq", pa.list_(pa.struct([("q", pa.list_(pa.string())), ("a", pa.string())])))])
    for other in ("faq", "faq[]", "faq[].q[]"):
        with pytest.raises(HalaError, match="lead to the same texts"):
            shape_of(Data(columns=["faq[].q", "faq[].a", other]), BOTH, faq)
    for column in ("b", "s.u", "a.t", "s.t.x", "a[]", "s[].t"):
        with pytest.raises(HalaError, match=re.escape(f"no column '{column}' (columns: a, s)")):
            shape_of(Data(columns=[column]), BOTH, schema)
    with pytest.raises(HalaError, match="shape 'columns' needs the names"):
        shape_of(Data(shape="columns"), BOTH, schema)
    with pytest.raises(HalaError, match=r"data\.shape: no shape 'alpacca' \(did you mean 'alpaca'\? valid: "):
        shape_of(Data(shape="alpacca"), BOTH, schema)
    with pytest.raises(HalaError, match="no column 'instruction'"):
        shape_of(Data(shape="alpaca"), BOTH, schema)
