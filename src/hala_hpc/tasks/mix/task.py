"""Make a training set of runs and files. A shard is a chunk of a source; the last step chooses, orders and writes."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypedDict, cast

import pyarrow as pa

from hala_hpc.config.errors import HalaError, within
from hala_hpc.config.schema import Data, Recipe
from hala_hpc.data import cut as cutting
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.data.schema import Row
from hala_hpc.data.spoken import Dropped
from hala_hpc.run import files
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import FINAL, CheckShard, ShardReport
from hala_hpc.tasks.mix import assemble, chunk, examples, near
from hala_hpc.tasks.mix.card import Made
from hala_hpc.tasks.mix.options import Options as Options
from hala_hpc.tasks.mix.options import Source, check
from hala_hpc.worker.items import Item, ItemTask, ItemWork

SHARD_TOKENS: Final = 2_500_000
"""Estimated tokens of a chunk (ours): some ten megabytes of text, and some ten seconds of one core."""
LOOK_ROWS: Final = 200
"""Rows between two looks whether to stop."""


class ChunkItem(TypedDict):
    """A shard's entry in the plan: rows of a source, counted from its ``first`` one."""

    name: str
    source: str
    first: int


class SourceFacts(TypedDict):
    """What the plan knows of a source, in ``Facts.expected``: its rows as ``shards.read_input`` reads them."""

    rows: int
    left: dict[str, int]
    schema: str


class Mix(ItemTask):
    """See the module. Raises HalaError for options that cannot be."""

    environment = "serve"
    one_per_core = True

    def __init__(self, recipe: Recipe) -> None:
        check(recipe)
        self._recipe = recipe

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for conditions and columns that do not fit, and for a source that gives no row."""
        options: Options = self._recipe.task
        tally, planned, cuts = _Tally(), dict[str, SourceFacts](), dict[str, Cut]()
        run = replace(self._recipe.run, shard_tokens=max(self._recipe.run.shard_tokens, SHARD_TOKENS))
        for name in options.sources:
            root = folder / inputs(name)
            root.mkdir(parents=True)
            tally.left = Counter()
            with within(f"task.sources.{name}"):
                source = options.of(name)
                whole = replace(source, where=None)  # which the worker does, and counts by source
                cuts[name] = cutting.cut(whole, run, "mix", root, tally.measuring(source), watch, tally.notes)
                facts = cuts[name].facts
                if tally.left.total() == facts.rows:
                    reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.left.most_common())
                    raise HalaError(f"none of its {facts.rows:,} rows is taken ({reasons})", "see where and columns")
            planned[name] = SourceFacts(rows=facts.rows, left=dict(tally.left), schema=facts.schema)
        expected = {"sources": planned, "is_plain": tally.is_plain, "has_tools": tally.has_tools, "form": tally.form}
        return _joined(cuts, expected, tally.notes)

    def hub_needs(self) -> list[Data]:
        return list(self._recipe.task.sources.values())

    def checker(self, facts: Facts) -> CheckShard:
        def check_shard(shard: Shard, path: Path) -> ShardReport:
            report = chunk.check(shard, path, cast(ChunkItem, facts.items[shard.id])["first"])
            final = path.parents[2] / "final"
            if shard.id == 0 and final.is_dir():
                problems = (f"{FINAL}{problem}" for problem in assemble.faults(final, facts.rows))
                report = replace(report, problems=(*report.problems, *problems))
            return report

        return check_shard

    def open(self, run: RunDirectory, plan: Manifest) -> "Mixing":
        return Mixing(run, plan.facts, self._recipe.task)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Write RUN/final: the training set, its card and the table of sources."""
        sources = [cast(ChunkItem, item)["source"] for item in plan.facts.items]
        chunks = [assemble.Chunk(source, run.shard_output(shard)) for shard, source in enumerate(sources)]
        rows = {name: known["rows"] for name, known in sources_in(plan.facts).items()}
        with suppress(FileExistsError), files.whole_directory(run.final) as folder:
            fields = _fields(plan.facts)
            made = Made(run.name, plan.facts.made_by, plan.facts.notes, _form(plan.facts))
            assemble.assemble(chunks, rows, self._recipe.task, fields, folder, made)


class Mixing(ItemWork):
    """One worker's work: conditions, prompts, digests and signatures of one chunk after the other."""

    def __init__(self, run: RunDirectory, facts: Facts, options: Options) -> None:
        self._run, self._facts, self._options = run, facts, options
        self._fields = _fields(facts)

    def do(self, item: Item) -> dict[str, int]:
        """Raises SourceAway where the source is out of reach, HalaError where it changed since the run was planned."""
        entry = cast(ChunkItem, item.entry)
        name, known = entry["source"], sources_in(self._facts)[entry["source"]]
        own = [source for source in self._facts.sources if source["dataset"] == name]
        facts = replace(self._facts, sources=own, schema=known["schema"])
        shard = replace(item.shard, start=entry["first"])
        given = shards.read_input(self._run.path / inputs(name), shard, facts)
        read = examples.reader(self._options.of(name), schemas.load(known["schema"]))
        texts: list[tuple[str, bytes]] = []
        lines: list[Row] = []
        for number, row in given.numbered():
            if number % LOOK_ROWS == 0:
                item.check_stop()
            lines += self._lines(number, row, read, texts)
        if self._options.duplicates.near is not None:
            first = (line for line in lines if line.get(chunk.DIGEST) is not None)
            for line, signature in zip(first, near.signatures(texts, self._options.duplicates), strict=True):
                line[chunk.SIGNATURE] = signature
        chunk.write(item.place, lines, self._fields, item.shard.digest)
        return {"examples": len(texts)}

    def _lines(self, number: int, row: Row, read: examples.Read, texts: list[tuple[str, bytes]]) -> list[Row]:
        """The lines of a row; what it is compared by is added to ``texts``."""
        try:
            example = read(row)
        except Dropped as dropped:
            return [{chunk.ROW: number, chunk.DIRECTION: 0, chunk.REASON: examples.reason(dropped)}]
        if example.form != (planned := _form(self._facts)):  # an older commit took both sides for turns of one
            raise HalaError(f"its rows are {example.form}, and {planned} were planned", "plan the mix anew")
        by = self._options.duplicates.by
        parts = near.parts_of(example, by)
        beside = example.beside() if by == "whole" else b""
        texts.append((" ".join(parts), beside))
        lines = [
            {chunk.ROW: number, chunk.DIRECTION: chunk.DIRECTIONS.index(direction), **chunk.said(chat)}
            for direction, chat in example.chats.items()
        ]
        lines[0][chunk.DIGEST] = near.digest_of(parts, beside)
        return lines


create = Mix


def inputs(source: str) -> Path:
    """The folder in a run that is to a source what RUN is to the rows of other tasks: copies, rows set aside."""
    return Path("input") / source


def sources_in(facts: Facts) -> dict[str, SourceFacts]:
    """What the plan knows of each source, in their order."""
    return cast("dict[str, SourceFacts]", facts.expected["sources"])


@dataclass
class _Tally:
    """What the plan counts while it reads; ``left`` is of one source."""

    left: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    is_plain: bool = True
    has_tools: bool = False
    form: str = ""

    def measuring(self, source: Source) -> cutting.Finder:
        def finder(schema: pa.Schema) -> cutting.TextsOf:
            read = examples.reader(source, schema)

            def texts(row: Row) -> list[str]:
                try:
                    example = read(row)
                except Dropped as dropped:
                    self.left[examples.reason(dropped)] += 1
                    return []
                self._take_form(example.form)
                self.is_plain &= example.is_plain
                for chat in example.chats.values():
                    self.has_tools |= chat.tools is not None
                    self.notes.update(chat.notes)
                return example.texts

            return texts

        return finder

    def _take_form(self, form: str) -> None:
        """Raises HalaError for rows of another form than those before them."""
        self.form = self.form or form
        if form != self.form:
            raise HalaError(
                f"{form} among {self.form}: no set of both can be trained on",
                "make two mixes; or name what is to be learned of preferences: columns: [PROMPT, CHOSEN]",
            )


def _fields(facts: Facts) -> list["pa.Field[Any]"]:
    return chunk.said_fields(_form(facts), facts.expected["is_plain"], facts.expected["has_tools"])


def _form(facts: Facts) -> str:
    """What the rows of the mix are; runs that were planned before there were others do not say it."""
    return str(facts.expected.get("form", examples.MESSAGES))


def _joined(cuts: dict[str, Cut], expected: dict[str, Any], notes: Counter[str]) -> Cut:
    """The plans of all sources as one, in their order."""
    planned: list[Shard] = []
    items: list[ChunkItem] = []
    for name, cut in cuts.items():
        before = sum(shard.rows for shard in planned)
        for number, shard in enumerate(cut.shards):
            items.append(ChunkItem(name=f"{name}-{number:04d}", source=name, first=shard.start))
            planned.append(replace(shard, id=len(planned), start=before + shard.start))
    facts = [cut.facts for cut in cuts.values()]
    sums = {key: sum(getattr(each, key) for each in facts) for key in ("rows", "texts", "characters", "tokens")}
    sources = [source | {"dataset": name} for name, cut in cuts.items() for source in cut.facts.sources]
    whole = Facts("", **sums, sources=sources, items=[dict(item) for item in items], expected=expected)
    return Cut(planned, replace(whole, notes=dict(notes), assembled=True))
