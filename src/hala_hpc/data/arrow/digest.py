"""What makes two rows the same row: a canonical form that survives the way through Parquet, and its digest."""

import base64
import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson

Row = dict[str, Any]
Hash = hashlib.blake2b

EXACT_INTEGERS = 2**53
"""Floats up to this that are whole numbers are written as integers: a column of 1 and 2.5 is all floats in Parquet."""


def canonical(value: Any) -> Any:
    """``value`` without absent keys (None in a mapping) and without the difference between 1 and 1.0."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INTEGERS:
        return int(value)
    return value


def row_bytes(row: Row) -> bytes:
    """The canonical bytes of a row. Raises TypeError for what is no data (an object, an integer over 64 bits)."""
    return orjson.dumps(canonical(row), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=plain) + b"\n"


def new_hash() -> Hash:
    """The hash that all digests of ours use: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(digest_size=16)


def digest_of(rows: Iterable[Row]) -> str:
    """Digest of rows in order, as a shard's line of the manifest holds it."""
    hashed = new_hash()
    for row in rows:
        hashed.update(row_bytes(row))
    return hashed.hexdigest()


def plain(value: Any) -> Any:
    """Values that Parquet holds and JSON has no word for."""
    if isinstance(value, datetime):  # pandas' own, where it is installed: as orjson writes others
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (set, frozenset, type)) or callable(value):
        raise TypeError(f"a {type(value).__name__} is no data")
    return str(value)
