"""The texts of a row beside their translations, each by its place, as a person compares them."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hala_hpc.data.columns import Place, reach, shown, translations
from hala_hpc.data.schema import Row
from hala_hpc.data.shapes import ROLE_KEYS, TEXT_KEYS


@dataclass(frozen=True)
class Pair:
    """A text at the place ``of``, its translation at the place ``label``, and the ``role`` of its turn, if any.

    ``target`` is None where there is no translation.
    """

    of: str
    label: str
    source: str
    target: str | None
    role: str = ""


def pairs(row: Row, whole: pa.Schema, suffix: str = "") -> Iterator[Pair]:
    """All texts of a row that some column translates. Where none does, all texts of its columns.

    ``suffix``: ends the names of translations where their columns do not say what they translate, as older runs' do.
    """
    named = translations(whole) or {
        name: original
        for name in whole.names
        if suffix and name.endswith(suffix) and (original := name.removesuffix(suffix)) in whole.names
    }
    for name, original in named.items():
        yield from _pairs(reach(row, original), row.get(name), (original,), (name,), "")
    for name in () if named else whole.names:
        if not name.startswith("hala_"):
            yield from _pairs(row.get(name), None, (name,), (name,), "")


def _pairs(source: Any, target: Any, of: Place, label: Place, role: str) -> Iterator[Pair]:
    source, target = _loaded(source), _loaded(target)
    if isinstance(source, str):
        yield Pair(shown(of), shown(label), source, target if isinstance(target, str) else None, role)
    elif isinstance(source, list):
        for number, item in enumerate(source):
            other = target[number] if isinstance(target, list) and number < len(target) else None
            yield from _pairs(item, other, (*of, number), (*label, number), role)
    elif isinstance(source, dict):
        speaks = next((key for key in ROLE_KEYS if isinstance(source.get(key), str)), None)
        for key, item in source.items():
            other = target.get(key) if isinstance(target, dict) else None
            if key != speaks and not (item == other and key not in TEXT_KEYS):
                role = source[speaks] if speaks else role
                yield from _pairs(item, other, (*of, key), (*label, key), role)


def _loaded(value: Any) -> Any:
    """What JSON text of a list or an object stands for; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with suppress(ValueError):
            return json.loads(value)
    return value
