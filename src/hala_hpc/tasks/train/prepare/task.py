"""Make tokens of one dataset, once, so that a training only maps them: its rows, their loss masks, their pieces.

The tokenizer is kept in the run, so what plans, what works and what trains see the same one, whatever becomes of the
model's folder or the template's file.
"""

import json
from collections import Counter
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Model, Recipe
from hala_hpc.data import cut as cutting
from hala_hpc.data import schema as schemas
from hala_hpc.data import shards, templates
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.data.documents import Document, Reader
from hala_hpc.data.schema import Row
from hala_hpc.data.spoken import Dropped
from hala_hpc.data.templates import NAMES
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import CheckShard, ShardReport
from hala_hpc.tasks.train.options import Dataset
from hala_hpc.tasks.train.options import PrepareOptions as Options
from hala_hpc.tasks.train.order.packing import place_of
from hala_hpc.tasks.train.prepare import tokens as token_file
from hala_hpc.tasks.train.prepare.expected import Tally
from hala_hpc.tasks.train.prepare.tokens import Done, Opened, Tokenizing
from hala_hpc.text.prompts import ControlWords
from hala_hpc.worker.items import Item, ItemTask, ItemWork

SHARD_TOKENS: Final = 1_000_000
"""Tokens in a shard of a training's dataset (ours): some seconds of one core, and few files for the training to map."""
TOKENIZER: Final = "tokenizer"
"""Folder of the run that holds the tokenizer with its chat template."""
LISTED: Final = 5
"""Rows that are named when some are too long."""
SAMPLE: Final = " 1. A sample:\n\n\tnaïve  «نصٌّ عربيّ» 12,345 \u2581 \u00a0 🙂\n"
"""Spaces, scripts, digits, a character of several tokens: where tokenizers differ."""


class Prepare(ItemTask):
    """See the module."""

    environment = "work"
    one_per_core = True
    suffix = ".arrow"

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        if options.sequence_length < 2:
            raise HalaError(f"task.sequence_length: {options.sequence_length}", "must be at least 2")
        if not (recipe.model.tokenizer or recipe.model.name):
            raise HalaError("model.name: must be given, for the tokenizer", "a folder or a name on the hub")

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for a template or a row that would spoil the training, with file and row."""
        recipe, options = self._recipe, self._recipe.task
        tokenizer = templates.load_tokenizer(recipe.model, options.chat_template)
        templates.check(tokenizer, {options.rows})
        _refuse_unknown(options, tokenizer)
        watch.say("keeping the tokenizer")
        kept = _kept(tokenizer, folder)
        measure = _Measure(kept, recipe)
        cut = cutting.cut(recipe.data, recipe.run, "prepare", folder, measure.texts_of, watch, measure.notes)
        measure.conclude(cut.facts)
        expected = asdict(measure.tally.expected())
        return Cut(cut.shards, replace(cut.facts, suffix=self.suffix, expected=expected))

    def checker(self, facts: Facts) -> CheckShard:
        del facts
        return partial(check_shard, most=self._recipe.task.sequence_length)

    def open(self, run: RunDirectory, plan: Manifest) -> "PrepareWork":
        """Raises HalaError where the tokenizer that the run keeps cannot be read."""
        tokenizer, schema = load_tokenizer(run.path), schemas.load(plan.facts.schema)
        return PrepareWork(run, plan.facts, Tokenizing(tokenizer, self._recipe.task, self._recipe.data, schema))


class PrepareWork(ItemWork):
    """Makes the tokens of one shard after the other."""

    def __init__(self, run: RunDirectory, facts: Facts, work: Tokenizing) -> None:
        self._run, self._facts, self._work = run, facts, work

    def do(self, item: Item) -> dict[str, int]:
        """Raises SourceAway where the source is out of reach, HalaError where it changed since the run was planned."""
        given = shards.read_input(self._run.path, item.shard, self._facts)
        done: list[tuple[int, Done]] = []
        for number, row in given.numbered():
            item.check_stop()
            done.append((number, _done(self._work, row)))
        made_by = json.dumps(self._facts.made_by | {"worker": item.worker, "shard": item.shard.id}).encode()
        token_file.write(item.place, done, made_by, item.shard.digest)
        kept = [row for _, row in done if not isinstance(row, str)]
        tokens = sum(len(piece.ids) for pieces in kept for piece in pieces)
        return {"done": len(kept), "errors": len(done) - len(kept), "prompt_tokens": tokens}


create = Prepare


def recipe_for(recipe: Recipe, name: str, dataset: Dataset) -> Recipe:
    """The recipe of the run that prepares one dataset of a training's mixture. It runs where no GPU is needed."""
    options = recipe.task
    task = Options(
        rows=dataset.kind,
        chat_template=options.chat_template,
        sequence_length=options.sequence_length,
        too_long=options.too_long,
        leave_out=dataset.leave_out,
        control_tokens=dataset.control_tokens,
    )
    data = Data(**{field.name: getattr(dataset, field.name) for field in fields(Data)})
    run = replace(recipe.run, shard_tokens=max(recipe.run.shard_tokens, SHARD_TOKENS))
    # A training is its owner's, and its launcher may prepare its data: what it makes then must not be open to a group.
    site = replace(recipe.site, slurm=recipe.site.slurm_cpu, shared_with=None)
    return replace(recipe, name=f"{recipe.name}-{name}", task=task, data=data, run=run, site=site)


def load_tokenizer(run: Path) -> Any:
    """The tokenizer that a planned run keeps. Raises HalaError."""
    return templates.load_tokenizer(Model(name=str(run / TOKENIZER)))


def check_shard(shard: Shard, path: Path, most: int) -> ShardReport:
    """Check a file of tokens against its line of the manifest: every row there once, in order, kept or dropped."""
    try:
        file = token_file.read(path)
        file.batch.validate(full=True)  # offsets that lead out of the file would end this process
    except (pa.ArrowException, OSError, ValueError) as error:
        return ShardReport(problems=(f"not readable: {error}",))
    problems = [*_row_problems(shard, file), *_token_problems(file, most)]
    if file.metadata.get(token_file.INPUT) != shard.digest.encode():
        problems.append("its rows are not those of the source when the run was planned")
    reasons = shards.reasons_in(file.error)
    return ShardReport(len(np.unique(file.row)) - reasons.total(), reasons, tuple(problems))


class _Measure:
    """Looks at each row once, while the rows are cut into shards."""

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        self._options: Options = recipe.task
        self._work = partial(Tokenizing, tokenizer, recipe.task, recipe.data)
        self._readers: set[Reader] = set()
        self.tally = Tally()
        self.notes: Counter[str] = Counter()
        self._too_long: Counter[int] = Counter()  # rows by their tokens
        self._first: list[tuple[int, int]] = []  # row, tokens

    def texts_of(self, schema: pa.Schema) -> cutting.TextsOf:
        work = self._work(schema)
        self._readers.add(work.reader)

        def texts(row: Row) -> list[str]:
            self.tally.rows += 1
            try:
                document = work.reader.read(row)
                self.notes.update(work.notes(document))
                self._measure(work, document)
            except Dropped as reason:
                self.tally.dropped[shards.reason_of(str(reason))] += 1
                return []  # its reason will stand in the output
            except HalaError:
                self.tally.rows -= 1  # it is refused, or set aside
                raise
            return document.texts

        return texts

    def _measure(self, work: Tokenizing, document: Document) -> None:
        """Tokenize the row where only that can tell whether it is dropped, and some for an estimate. Raises Dropped."""
        options, most = self._options, work.most(document)
        is_near = options.rows != "text" and most > options.sequence_length
        if not (is_near or options.leave_out or self.tally.is_sample):
            self.tally.add(most)
            return
        try:
            self.tally.add(most, work.pieces(document))
        except Dropped:
            if options.too_long == "refuse" and (length := work.length(document)) > options.sequence_length:
                self._too_long[length] += 1
                if len(self._first) < LISTED:
                    self._first.append((self.tally.rows - 1, length))
            raise

    def conclude(self, facts: Facts) -> None:
        """Raises HalaError for rows that are too long, that are read in two ways, or that teach nothing at all."""
        whole = self._work(schemas.load(facts.schema)).reader
        if strange := self._readers - {whole}:
            raise HalaError(
                f"data: rows of different shapes: some would be read by {strange.pop()}, all together by {whole}",
                "set data.shape or data.columns, or make them datasets of their own",
            )
        if not facts.texts and not self._too_long:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.tally.dropped.most_common())
            raise HalaError(
                f"data: none of the {facts.rows} rows holds anything to learn ({reasons})", "see data.columns"
            )
        if count := self._too_long.total():
            limit = self._options.sequence_length
            first = ", ".join(f"{place_of(facts, row)} ({length})" for row, length in self._first)
            others = f" and {count - len(self._first)} more" if count > len(self._first) else ""
            raise HalaError(
                f"data: {count} of {facts.rows} rows have more than the {limit} tokens of task.sequence_length: "
                f"{first}{others}",
                f"task.sequence_length={max(self._too_long)} holds all; or task.too_long=drop, or truncate",
            )


def _refuse_unknown(options: Options, tokenizer: Any) -> None:
    """Raises HalaError for names in ``leave_out`` and ``control_tokens`` that do not exist."""
    if unknown := set(options.leave_out) - NAMES:
        raise HalaError(f"leave_out: no such part of a row: {min(unknown)!r}", f"one of {', '.join(sorted(NAMES))}")
    if unknown := set(options.control_tokens) - ControlWords(tokenizer.backend_tokenizer).words:
        raise HalaError(f"control_tokens: {min(unknown)!r} is not a control token of this tokenizer", "leave it out")


def _kept(tokenizer: Any, run: Path) -> Any:
    """Keep the tokenizer in the run and read it back. Raises HalaError where it comes back as another."""
    tokenizer.save_pretrained(run / TOKENIZER)
    kept = load_tokenizer(run)
    sample = SAMPLE + SAMPLE.join(tokenizer.special_tokens_map.values())
    before, after = (
        version.backend_tokenizer.encode(sample, add_special_tokens=False).ids for version in (tokenizer, kept)
    )
    if before != after or tokenizer.chat_template != kept.chat_template:
        raise HalaError("model: the tokenizer changes when it is saved and loaded", "is its tokenizer.json whole?")
    return kept


def _done(work: Tokenizing, row: Row) -> Done:
    try:
        return work(row)
    except Dropped as reason:
        return str(reason)
    except HalaError as error:
        return f"refused: {error.message}"


def _row_problems(shard: Shard, file: Opened) -> list[str]:
    expected = range(shard.start, shard.start + shard.rows)
    lost, strange = len(np.setdiff1d(expected, file.row)), len(np.setdiff1d(file.row, expected))
    if lost or strange:
        return [f"{lost} of its rows are lost, {strange} are of another shard"]
    is_first = np.diff(file.row, prepend=-1) != 0
    if (np.diff(file.row) < 0).any():
        return ["its rows are out of order"]
    if not ((file.piece[is_first] <= 0).all() and (np.diff(file.piece)[~is_first[1:]] == 1).all()):
        return ["pieces of a row are lost or twice"]
    return []


def _token_problems(file: Opened, most: int) -> list[str]:
    problems = []
    lengths = np.diff(file.offsets)
    is_kept = file.piece >= 0
    if not np.array_equal(file.error.is_null().to_numpy(zero_copy_only=False), is_kept):
        problems.append("a dropped row has no reason, or one that was kept has one")
    if lengths[is_kept].min(initial=1) < 1 or lengths[is_kept].max(initial=1) > most or lengths[~is_kept].any():
        problems.append(f"pieces that are empty or longer than {most} tokens")
    digest = file.metadata.get(token_file.COLUMNS)
    is_whole = digest is None or token_file.columns_digest(file.batch).encode() == digest
    if not is_whole or token_file.content_digest(file.ids, file.loss).encode() != file.metadata.get(token_file.CONTENT):
        problems.append("its tokens are not those that were written")
    running = np.concatenate([[0], np.cumsum(file.loss)])
    if not np.array_equal(np.diff(running[file.offsets]), file.loss_tokens):
        problems.append("its counts of tokens to predict are wrong")
    return problems
