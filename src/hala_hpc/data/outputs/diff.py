"""What came of rows that were done again: how many changed, flags and quarantine before and after, some in full."""

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa

from hala_hpc.config import frozen
from hala_hpc.data import schema, shards
from hala_hpc.data.outputs.chosen import draw
from hala_hpc.data.outputs.pairs import Pair, pairs
from hala_hpc.data.schema import Row
from hala_hpc.data.shards import ERROR, ROW, Progress, as_stored, reason_of
from hala_hpc.data.where import CHECKS, OURS
from hala_hpc.run import digests, lineage, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lineage import Redo
from hala_hpc.run.manifest import Facts, Shard

QUARANTINE: Final = "quarantine: "
"""How a reason of quarantine stands among the flags."""
EXAMPLES: Final = 5
SAID: Final = ("task.", "model.", "sampling.")
"""Sections of a recipe whose changes a card says; the others may name hosts, people and folders."""


@dataclass(frozen=True)
class ChangedRow:
    """A row that is another now: its texts with their translations, before and after, and its flags."""

    number: int
    before: list[Pair]
    after: list[Pair]
    flags_before: list[str]
    flags_after: list[str]

    @property
    def texts(self) -> list[tuple[str, str, str]]:
        """Each text whose translation is another: the text, its translation before, and now; – where there is none."""
        old = {pair.label: pair.target for pair in self.before}
        sides = ((pair.source, old.get(pair.label), pair.target) for pair in self.after)
        return [(source, was or "–", now or "–") for source, was, now in sides if was != now]


@dataclass
class Diff:
    """``rows`` of the ``redo`` that are done, ``changed`` those whose new columns or quarantine are others.

    A row is ``worse`` (``better``) that came into (out of) quarantine, or else has more (fewer) flags than before;
    ``flags_before`` and ``flags_after`` count them, with the reasons of rows in quarantine among them. ``unreadable``
    names shards that are damaged.
    """

    redo: Redo
    rows: int = 0
    changed: int = 0
    better: int = 0
    worse: int = 0
    flags_before: Counter[str] = field(default_factory=Counter)
    flags_after: Counter[str] = field(default_factory=Counter)
    examples: list[ChangedRow] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers, in words."""
        counts = {"done again": self.rows, "changed": self.changed, "unchanged": self.rows - self.changed}
        counts |= {"better": self.better, "worse": self.worse}
        left = {"not done yet": self.redo["rows"] - self.rows, "damaged shards, not counted": len(self.unreadable)}
        return counts | {words: count for words, count in left.items() if count}

    @property
    def flags(self) -> list[tuple[str, int, int]]:
        """Each flag with the rows that had it before and have it now."""
        names = sorted(self.flags_before.keys() | self.flags_after.keys())
        return [(name, self.flags_before[name], self.flags_after[name]) for name in names]


def diff(path: Path, examples: int = EXAMPLES, progress: Progress = iter) -> Diff | None:
    """Hold the rows that a run did again against the earlier ones, as far as they are done. None for another run."""
    run, plan = manifest.open_run(path)
    if plan.facts.redo is None:
        return None
    result, suffix = Diff(plan.facts.redo), str(frozen.read(path)["task"].get("suffix", ""))
    changed: list[tuple[bytes, int, ChangedRow]] = []
    for shard in progress(iter(plan)):
        if shard.is_kept or not run.shard_output(shard.id).exists():
            continue
        try:
            sides = _sides(run, shard, plan.facts)
        except digests.Damaged:
            result.unreadable.append(shard.id)
            continue
        drawn = ((draw(0, row.number), row.number, row) for row in _count(result, *sides, plan.facts, suffix))
        changed = heapq.nsmallest(examples, [*changed, *drawn])
    result.examples = [row for _, _, row in sorted(changed, key=lambda item: item[1])]
    return result


def _sides(run: RunDirectory, shard: Shard, facts: Facts) -> tuple[pa.Table, pa.Table]:
    """The rows that were done again, before and after. Raises Damaged."""
    kept = shards.read_kept(run, shard, facts)
    table, _ = shards.read_output(shard, run.shard_output(shard.id), facts)
    chosen = pa.array([number in kept.again for number in kept.table[ROW].to_pylist()])
    return kept.table.filter(chosen), table.filter(chosen)


def _count(result: Diff, old: pa.Table, new: pa.Table, facts: Facts, suffix: str) -> Iterator[ChangedRow]:
    """Count the rows of a shard; yields those that changed."""
    given = as_stored(schema.load(facts.schema).names)
    added = [name for name in new.column_names if name not in given and not name.startswith(OURS)]
    for before, after in zip(schema.to_rows(old), schema.to_rows(new), strict=True):
        flags = _flags(before), _flags(after)
        result.rows += 1
        result.flags_before.update(flags[0])
        result.flags_after.update(flags[1])
        badness = _badness(before, flags[0]), _badness(after, flags[1])
        result.better += badness[1] < badness[0]
        result.worse += badness[1] > badness[0]
        if any(before.get(name) != after.get(name) for name in (*added, ERROR)):
            result.changed += 1
            texts = [list(pairs(row, new.schema, suffix)) for row in (before, after)]
            yield ChangedRow(after[ROW], texts[0], texts[1], *flags)


def _flags(row: Row) -> list[str]:
    """What speaks against a row: its checks' flags, or why it is in quarantine."""
    if row[ERROR] is not None:
        return [f"{QUARANTINE}{reason_of(row[ERROR])}"]
    flags: list[str] = (row.get(CHECKS) or {}).get("flags") or []
    return flags


def _badness(row: Row, flags: list[str]) -> tuple[bool, int]:
    return row[ERROR] is not None, len(flags)


MOST_CHARACTERS: Final = 300
"""Of a text in a card."""


def markdown(result: Diff | None) -> list[str]:
    """A card's section on the rows that were done again; nothing where none were."""
    if result is None:
        return []
    redo = result.redo
    lines = ["## Rows done again", "", f"{_cell(lineage.chosen(redo))}. The others are byte for byte that run's.", ""]
    if changes := lineage.changes(redo, SAID):
        lines += [f"Changed: {_cell(changes)}.", ""]
    lines += ["| rows | |", "|---|---|", *(f"| {words} | {count:,} |" for words, count in result.counts.items()), ""]
    if flags := result.flags:
        lines += ["| flag | rows before | rows now |", "|---|---|---|"]
        lines += [*(f"| {_cell(name)} | {before:,} | {now:,} |" for name, before, now in flags), ""]
    texts = [f"| {row.number:,} | {' | '.join(map(_cell, text))} |" for row in result.examples for text in row.texts]
    return [*lines, "| row | text | before | now |", "|---|---|---|---|", *texts, ""] if texts else lines


def _cell(text: str) -> str:
    """Text in a cell of a table, without what ends the cell, or what a browser would take for a tag."""
    shown = re.sub(r"\s+", " ", text).replace("|", "/").replace("<", "&lt;")
    return shown[:MOST_CHARACTERS] + "…" * (len(shown) > MOST_CHARACTERS)
