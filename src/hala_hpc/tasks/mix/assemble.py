"""The last step of a mix: which examples stay, how often each is taken, in which order, and the files they go to.

Memory holds of each example its digest, row number and place (some 100 bytes), and in the index of near duplicates its
signature (2.2 KB for each that stays); of texts no more than one chunk and one file's worth.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError
from hala_hpc.data.outputs import collect
from hala_hpc.data.shards import ROW
from hala_hpc.run import digests
from hala_hpc.run.files import read_json, remove_tree
from hala_hpc.tasks.mix import chunk
from hala_hpc.tasks.mix.card import Made, card
from hala_hpc.tasks.mix.chunk import Lines
from hala_hpc.tasks.mix.counts import REPORT, Counts
from hala_hpc.tasks.mix.near import Flags, NearDuplicates, first_of_each
from hala_hpc.tasks.mix.options import Duplicates, Options, Source

FILE_BYTES: Final = 256 * 1024 * 1024
"""About so much Arrow data goes into one file (ours): it is sorted in memory."""
ROW_GROUP: Final = 10_000
PARTS: Final = ".parts"
LINEAGE: Final[list["pa.Field[Any]"]] = [
    pa.field("hala_source", pa.string()),
    pa.field("hala_source_row", pa.int64()),
    pa.field("hala_direction", pa.string()),
]
Whole = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Chunk:
    """The published output of a shard, and the source that it is of."""

    source: str
    folder: Path


@dataclass(frozen=True)
class Written:
    """The rows of the mix, in the order of their chunks: which line of which chunk stands at which ``place``."""

    chunk: Whole
    line: Whole
    place: Whole


def assemble(
    chunks: Sequence[Chunk],
    rows: Mapping[str, int],
    options: Options,
    fields: Sequence["pa.Field[Any]"],
    folder: Path,
    made: Made,
) -> None:
    """Fill ``folder``: data/, card, table and digests. ``rows`` counts those of each source."""
    lines = [chunk.read_lines(each.folder) for each in chunks]
    keys = np.concatenate([each.keys for each in lines])
    is_first = first_of_each(keys) if options.duplicates.exact else np.ones(len(keys), bool)
    stays = is_first & _kept(chunks, is_first, options.duplicates)
    written, counts = _chosen(chunks, lines, rows, options, is_first, stays)
    files = _write(chunks, lines, written, fields, folder)
    report = {"kind": "mix", "sources": [each.line() for each in counts]}
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / digests.CARD).write_text(card(made, counts, options, files), "utf-8")
    digests.write(folder)


def _kept(chunks: Sequence[Chunk], is_first: Flags, options: Duplicates) -> Flags:
    """Which of the examples that are the first of their digest are like none before them."""
    kept = np.ones(len(is_first), bool)
    if options.near is None:
        return kept
    index, at = NearDuplicates(options), 0
    for each in chunks:
        signatures = list(chunk.read_signatures(each.folder))
        here = at + np.flatnonzero(is_first[at : at + len(signatures)])
        kept[here] = index.kept(signatures[place - at] for place in here)
        at += len(signatures)
    return kept


def _chosen(
    chunks: Sequence[Chunk],
    lines: Sequence[Lines],
    rows: Mapping[str, int],
    options: Options,
    is_first: Flags,
    stays: Flags,
) -> tuple[Written, list[Counts]]:
    """The rows of the mix, and the counts of each source."""
    bounds = np.concatenate([[0], np.cumsum([each.is_example.sum() for each in lines])]).astype(np.int64)
    counts: list[Counts] = []
    parts: list[tuple[Whole, Whole, Numbers]] = []
    for name, count in rows.items():
        own = [at for at, each in enumerate(chunks) if each.source == name]
        examples = slice(bounds[own[0]], bounds[own[-1] + 1])
        row = np.concatenate([lines[at].rows[lines[at].is_example] for at in own])
        times = np.zeros(len(row), np.int64)
        times[stays[examples]] = copies(row[stays[examples]], count, options.seed, name, options.sources[name])
        outputs = list(_outputs(own, lines, times, count, options.seed, name))
        exact, remain, taken = (int(some.sum()) for some in (~is_first[examples], stays[examples], times > 0))
        gone = (exact, len(row) - exact - remain, remain - taken, taken)
        left = dict(sum((lines[at].left for at in own), Counter()))
        counts.append(Counts(name, count, left, *gone, sum(len(of_chunk) for of_chunk, _, _ in outputs)))
        parts += outputs
    if not any(len(of_chunk) for of_chunk, _, _ in parts):
        raise HalaError("nothing is left of all sources", "see task.sources.NAME.weight")
    of_chunk, line, order = (np.concatenate(column) for column in zip(*parts, strict=True))
    place = np.empty(len(order), np.int64)
    place[np.argsort(order, kind="stable")] = np.arange(len(order))
    by_chunk = np.lexsort((place, of_chunk))
    return Written(of_chunk[by_chunk], line[by_chunk], place[by_chunk]), counts


def copies(row: Whole, rows: int, seed: int, name: str, source: Source) -> Whole:
    """How often each of a source's examples is taken; ``row`` has their numbers among the ``rows`` of the source.

    Rows are ranked by a number that seed, source and row number give alone. ``sample`` takes the first so many in that
    order; ``weight`` takes each of them as often as its whole part says, and once more the first of them as far as its
    fraction reaches (0.5 of 7: four).
    """
    ranked = np.lexsort((row, drawn(rows, seed, name, "sample")[row]))[: source.sample]
    whole = int(source.weight)
    times = np.zeros(len(row), np.int64)
    times[ranked] = whole
    times[ranked[: int((source.weight - whole) * len(ranked) + 0.5)]] += 1
    return times


def drawn(count: int, *words: object) -> Numbers:
    """A number for each of so many rows, by Philox (a generator that counts): the same whatever else is drawn."""
    text = "\0".join(map(str, words)).encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Philox(key=key).random_raw(count)


def _outputs(
    own: Sequence[int], lines: Sequence[Lines], times: Whole, rows: int, seed: int, name: str
) -> Iterator[tuple[Whole, Whole, Numbers]]:
    """Chunk, line and order of each row that is written of a source: for each direction and copy some."""
    of_chunk = np.concatenate([np.full(len(lines[at].rows), at) for at in own])
    line = np.concatenate([np.arange(len(lines[at].rows)) for at in own])
    row, direction, is_example, is_left = (
        np.concatenate([getattr(lines[at], key) for at in own])
        for key in ("rows", "directions", "is_example", "is_left")
    )
    wanted = np.zeros(len(row), np.int64)
    wanted[~is_left] = times[np.cumsum(is_example)[~is_left] - 1]  # an example's lines follow each other
    for copy in range(int(wanted.max(initial=0))):
        for code, word in enumerate(chunk.DIRECTIONS):
            some = np.flatnonzero((wanted > copy) & (direction == code))
            if len(some):
                yield of_chunk[some], line[some], drawn(rows, seed, name, "order", word, copy)[row[some]]


def _write(
    chunks: Sequence[Chunk], lines: Sequence[Lines], written: Written, fields: Sequence["pa.Field[Any]"], folder: Path
) -> int:
    """Write the files in their order; how many there are. Each chunk is read once, and goes in parts to those files."""
    names = [field.name for field in fields]
    schema = pa.schema([*fields, *LINEAGE, pa.field(ROW, pa.int64())])
    bounds = np.searchsorted(written.chunk, np.arange(len(chunks) + 1))
    size = sum(
        _bytes(each.folder, names) * (bounds[at + 1] - bounds[at]) / max(1, len(lines[at].rows))
        for at, each in enumerate(chunks)
    )
    per_file = max(1, -(-len(written.place) // max(1, -(-int(size) // FILE_BYTES))))
    count = -(-len(written.place) // per_file)
    parts, data = folder / PARTS, folder / "data"
    parts.mkdir()
    data.mkdir()
    writers = [pa.ipc.new_stream(str(parts / f"{part:05d}"), schema) for part in range(count)]
    for at, each in enumerate(chunks):
        here = slice(bounds[at], bounds[at + 1])
        table = _table(each, lines[at], written.line[here], written.place[here], names).cast(schema)
        borders = np.searchsorted(written.place[here], np.arange(count + 1) * per_file)
        for part, writer in enumerate(writers):
            writer.write_table(table.slice(borders[part], borders[part + 1] - borders[part]))
    for part, writer in enumerate(writers):
        writer.close()
        with pa.memory_map(str(parts / f"{part:05d}")) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        path = data / f"train-{part:05d}-of-{count:05d}.parquet"
        with digests.open_writer(path, schema) as file:
            file.write_table(table.take(np.argsort(table[ROW].to_numpy())), row_group_size=ROW_GROUP)
        digests.seal(path)
    remove_tree(parts)
    return count


def _table(each: Chunk, lines: Lines, line: Whole, place: Whole, names: Sequence[str]) -> pa.Table:
    """The rows of one chunk that are written, in their order."""
    table = chunk.read_said(each.folder, names).take(line).replace_schema_metadata(None)
    words = pa.array([word or None for word in chunk.DIRECTIONS], pa.string())
    table = table.append_column(LINEAGE[0], pa.array([each.source] * len(line), pa.string()))
    table = table.append_column(LINEAGE[1], pa.array(lines.rows[line], pa.int64()))
    table = table.append_column(LINEAGE[2], words.take(lines.directions[line]))
    return table.append_column(ROW, pa.array(place, pa.int64()))


def _bytes(folder: Path, names: Sequence[str]) -> int:
    """What the columns take in memory, about."""
    footer = pq.read_metadata(folder / chunk.FILE)
    groups = map(footer.row_group, range(footer.num_row_groups))
    pieces = (group.column(at) for group in groups for at in range(group.num_columns))
    return sum(piece.total_uncompressed_size for piece in pieces if piece.path_in_schema.split(".")[0] in names)


def faults(final: Path, rows: int) -> list[str]:
    """What is wrong with a finished mix: its bytes, the order of its rows, a table that does not add up to ``rows``."""
    verdict = collect.verify(final)
    problems = list(verdict.problems)
    lines = read_json(final / REPORT).get("sources", [])
    if sum(line["rows"] for line in lines) != rows:
        problems.append(f"{REPORT}: {sum(line['rows'] for line in lines):,} rows, and {rows:,} were planned")
    for line in lines:
        apart = sum(count for name, count in line.items() if name not in ("source", "rows", "written"))
        if apart != line["rows"]:
            problems.append(f"{REPORT}: the counts of {line['source']} do not add up to its {line['rows']:,} rows")
    if (count := sum(line["written"] for line in lines)) != verdict.rows:
        problems.append(f"data/: {verdict.rows:,} rows, and {REPORT} says {count:,}")
    return problems
