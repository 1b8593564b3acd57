"""The output of one chunk of a source: a line for each row and direction, or for a row that is left out its reason."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.data import schema as schemas
from hala_hpc.data.documents import Chat
from hala_hpc.data.preferences import Preference
from hala_hpc.data.schema import Row
from hala_hpc.run.manifest import Shard
from hala_hpc.run.verify import ShardReport
from hala_hpc.tasks.mix.examples import MESSAGES, PREFERENCE, SIDES
from hala_hpc.tasks.mix.near import DIGEST_BYTES, Flags, Keys
from hala_hpc.tasks.mix.options import BACKWARD, FORWARD

FILE: Final = "rows.parquet"
KEY: Final = b"hala"
"""Parquet metadata key: the digest of the input, and what left it out how often."""
ROW, DIRECTION, REASON = "row", "direction", "reason"
DIGEST, SIGNATURE = "digest", "signature"
"""Columns of the first line of an example alone, by which duplicates are known."""
DIRECTIONS: Final = ("", FORWARD, BACKWARD)
TURN: Final = pa.struct([("role", pa.string()), ("content", pa.string())])
OWN: Final[list["pa.Field[Any]"]] = [
    pa.field(ROW, pa.int64()),
    pa.field(DIRECTION, pa.int8()),
    pa.field(REASON, pa.string()),
    pa.field(DIGEST, pa.binary(DIGEST_BYTES)),
    pa.field(SIGNATURE, pa.binary()),
]


FORMS: Final = {MESSAGES: ("messages",), PREFERENCE: ("prompt", "chosen", "rejected"), SIDES: ("chosen", "rejected")}
"""The columns of what is said, for each form of a mix: TRL's."""


def said_fields(form: str, is_plain: bool, has_tools: bool) -> list["pa.Field[Any]"]:
    """The columns of what is said: turns are objects of keys of their own, unless all have a role and a text alone."""
    turns = pa.list_(TURN if is_plain else schemas.JSON)
    fields = [pa.field(name, pa.string() if form == SIDES else turns) for name in FORMS[form]]
    return [*fields, pa.field("tools", schemas.JSON)] if has_tools else fields


def said(chat: Chat | Preference) -> Row:
    """A conversation as it is written, or a preference. A turn that is not to be learned says so, as a training reads
    it.
    """
    if isinstance(chat, Preference):
        return {name: getattr(chat, name) for name in (*FORMS[PREFERENCE], "tools")}
    messages = [turn | {"weight": 0} if at in chat.unlearned else turn for at, turn in enumerate(chat.messages)]
    return {"messages": messages, "tools": chat.tools}


def write(folder: Path, lines: Sequence[Row], fields: Sequence["pa.Field[Any]"], digest: str) -> None:
    """Write the lines of a chunk whose input has the ``digest``."""
    folder.mkdir()
    schema = pa.schema([*OWN, *fields], {KEY: json.dumps({"input": digest}).encode()})
    with pq.ParquetWriter(folder / FILE, schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(schemas.to_table(lines, schema))


@dataclass(frozen=True)
class Lines:
    """What is known of the lines of a chunk but for what they say.

    ``directions`` are places in DIRECTIONS; ``is_left``: a row that gives no example, ``left`` counts their reasons;
    ``is_example``: the first line of an example; ``keys``: the digests of those, two numbers each.
    """

    rows: "np.ndarray[Any, np.dtype[np.int64]]"
    directions: "np.ndarray[Any, np.dtype[np.int8]]"
    is_left: Flags
    is_example: Flags
    keys: Keys
    left: Counter[str]


def read_lines(folder: Path) -> Lines:
    """Raises pyarrow's errors and OSError for a file that is none."""
    with pq.ParquetFile(folder / FILE) as file:
        table = file.read(columns=[ROW, DIRECTION, REASON, DIGEST], use_threads=False)
    digest: Any = table[DIGEST].combine_chunks()
    reason: Any = table[REASON].combine_chunks()
    return Lines(
        rows=table[ROW].to_numpy(),
        directions=table[DIRECTION].to_numpy(),
        is_left=reason.is_valid().to_numpy(zero_copy_only=False),
        is_example=digest.is_valid().to_numpy(zero_copy_only=False),
        keys=np.frombuffer(b"".join(digest.drop_null().to_pylist()), np.uint64).reshape(-1, 2),
        left=Counter({pair["values"]: pair["counts"] for pair in reason.drop_null().value_counts().to_pylist()}),
    )


def read_signatures(folder: Path) -> Iterator[bytes]:
    """The signatures of a chunk's examples, in order."""
    with pq.ParquetFile(folder / FILE) as file:
        for batch in file.iter_batches(10_000, columns=[SIGNATURE], use_threads=False):
            yield from (value for value in batch.column(0).to_pylist() if value is not None)


def read_said(folder: Path, columns: Sequence[str]) -> pa.Table:
    """What the lines of a chunk say."""
    with pq.ParquetFile(folder / FILE) as file:
        return file.read(columns=list(columns), use_threads=False)


def check(shard: Shard, folder: Path, first: int) -> ShardReport:
    """Hold a chunk against its line of the plan: each row of its source from ``first`` on once, in order."""
    try:
        lines = read_lines(folder)
        with pq.ParquetFile(folder / FILE) as file:
            made_of = json.loads((file.schema_arrow.metadata or {})[KEY])["input"]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        return ShardReport(problems=(f"not readable: {type(error).__name__}: {error}",))
    problems = [] if made_of == shard.digest else ["its rows are not those of the source when the run was planned"]
    rows = lines.rows[lines.is_example | lines.is_left]
    if not np.array_equal(rows, np.arange(first, first + shard.rows)):
        problems.append(f"rows are lost, twice or out of order: {len(rows)} lines for {shard.rows} rows")
    return ShardReport(shard.rows if not problems else 0, problems=tuple(problems))
