"""Conditions on rows: what names mean, what is missing, and that nothing else can be reached."""

from typing import Any

import pyarrow as pa
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.data.where import Where

CHECKS = pa.struct([("length", pa.float64()), ("flags", pa.list_(pa.string())), ("shape", pa.float64())])
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("length", pa.int64()),
        ("hala_judge", pa.float64()),
        ("hala_checks", CHECKS),
        ("meta", pa.struct([("items", pa.int64()), ("of", pa.struct([("id", pa.string())]))])),
    ]
)
ROW = {
    "text": "Eleven follows.",
    "length": 15,
    "hala_judge": 0.75,
    "hala_checks": {"length": -2.5, "flags": ["loops"], "shape": 1.0},
    "meta": {"items": 3, "of": {"id": "x"}},
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("judge > 0.7 and shape == 1", True),
        ("hala_judge > 0.8", False),
        ("'loops' in flags", True),
        ("not 'loops' in flags", False),
        ("length == 15", True),  # a column comes first
        ("hala_checks.length < -2", True),
        ("meta.items == 3 and meta.of.id == 'x'", True),  # `items` is a name like any other
        ("matches(lower(text), '^eleven') and len(text) == 15", True),
        ("0.5 < judge <= 0.75", True),
        ("length in [3, 15] and 'x' not in ('y', 'z')", True),
        ("matches(text(meta), 'x') and text(flags) == 'loops'", True),
        ("judge + 1 > 1.5 or length / 0 > 1", True),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    assert Where(condition, SCHEMA).holds(ROW) is holds


@pytest.mark.parametrize("missing", [{"hala_judge": None}, {"meta": None}, {"meta": {"items": None, "of": None}}])
def test_what_is_missing_compares_with_nothing(missing: dict[str, Any]) -> None:
    assert not Where("judge > 0.7 and meta.items > 1", SCHEMA).holds(ROW | missing)
    assert Where("judge is None or meta.items is None", SCHEMA).holds(ROW | missing)


def test_columns_are_those_that_are_looked_at() -> None:
    assert Where("judge > 0.7 and meta.of.id == lower(text)", SCHEMA).columns == ["hala_judge", "meta", "text"]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("judgement > 0.7", "no 'judgement'"),
        ("judge >", "no condition"),
        ("1 == 1", "looks at no column"),
        ("", "no condition"),
        ("judge = 1", "no condition"),
        ("().__class__ == 1", "__class__"),
        ("open('/etc/passwd')", "called 'open'"),
        ("text.upper() == 1", "called 'text.upper'"),
        ("[x for x in text]", "no 'x'"),
        ("judge > 'a'", "'judge > 'a''"),
        ("matches(text, '(')", "matches"),
        ("length / 0 > 1", "division"),
    ],
)
def test_what_cannot_be_is_refused(condition: str, words: str) -> None:
    with pytest.raises(HalaError, match=words.replace("(", r"\(")):
        Where(condition, SCHEMA).holds(ROW)
