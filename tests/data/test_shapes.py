"""Shapes of datasets: which texts they find, and that a row is never changed."""

import copy
from typing import Any

import pyarrow as pa
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.digest import Row
from hala_hpc.data.infer import infer
from hala_hpc.data.shapes import Shape, shape_of

BOTH = ("user", "assistant")
TURNS = [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}, {"from": "GPT", "value": "g"}]
PARTS = [{"type": "image"}, {"type": "text", "text": "p"}, {"type": "text", "text": ""}]
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


def test_roles() -> None:
    row = {"conversations": TURNS}
    for roles, texts in [(("system",), ["s"]), (("user",), ["h"]), (("system", *BOTH), ["s", "h", "g"]), ((), [])]:
        assert [text for _, text in shape(row, roles).texts(row)] == texts


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": 5}, "column 'text' holds a number, not text"),
        ({"text": True}, "column 'text' holds true or false, not text"),
        ({"messages": 5}, "column 'messages' holds a number, not a list of turns"),
        ({"messages": [5]}, "column 'messages' holds a list, not a list of turns"),
        ({"messages": [{"content": "x"}]}, "turn 0 of 'messages' has no 'role'"),
        ({"messages": [{"role": None, "content": "x"}]}, "turn 0 of 'messages' has no 'role'"),
        ({"messages": [{"role": "user", "content": 5}]}, "turn 0 of 'messages' holds a number, not text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "turn 0 of 'messages' has a part that holds a text"),
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
    for column in ("b", "s.u", "a.t", "s.t.x"):
        with pytest.raises(HalaError, match=rf"no column '{column}' \(columns: a, s\)"):
            shape_of(Data(columns=[column]), BOTH, schema)
    with pytest.raises(HalaError, match="shape 'columns' needs the names"):
        shape_of(Data(shape="columns"), BOTH, schema)
    with pytest.raises(HalaError, match="no column 'instruction'"):
        shape_of(Data(shape="alpaca"), BOTH, schema)
