"""Some rows of a finished run done again, as a run of its own that keeps all others: which, and how it is planned."""

import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema, shards
from hala_hpc.data.bad_rows import SET_ASIDE
from hala_hpc.data.cut import TextsOf, estimated_tokens
from hala_hpc.data.outputs.chosen import Choice
from hala_hpc.data.outputs.collect import checked
from hala_hpc.data.schema import Fields
from hala_hpc.data.shards import ERROR, ROW, Progress
from hala_hpc.run import digests, files
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.lineage import Redo
from hala_hpc.run.manifest import Facts, Manifest, Shard


@dataclass
class Chosen:
    """The numbers of the rows to be done again, by shard, and what they hold; ``held`` counts the rows in quarantine
    of every shard, ``reasons`` those of all by reason.
    """

    numbers: dict[int, list[int]] = field(default_factory=dict)
    texts: int = 0
    characters: int = 0
    tokens: int = 0
    held: dict[int, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return sum(map(len, self.numbers.values()))


def choose(
    run: RunDirectory, plan: Manifest, choice: Choice, fields: Fields, texts_of: TextsOf, progress: Progress = iter
) -> Chosen:
    """Read all outputs of a finished run, and see which rows are chosen.

    Parameters
    ----------
    fields : the columns that are added to rows now.
    texts_of : finds the texts of a row.

    Raises HalaError where no row is chosen, an output is damaged, or its columns are not ``fields``.
    """
    inputs, chosen = schema.load(plan.facts.schema), Chosen()
    for shard in progress(iter(plan)):
        table = checked(run, shard, plan.facts)
        _refuse_other_columns(run, table, fields)
        reasons = shards.reasons_in(table[ERROR])
        chosen.held[shard.id] = reasons.total()
        chosen.reasons += reasons
        if not (positions := choice.positions(table, table.schema)):
            continue
        chosen.numbers[shard.id] = [shard.start + at for at in positions]
        is_chosen = set(positions)
        some = table.filter(pa.array([at in is_chosen for at in range(len(table))]))
        for row in schema.to_rows(shards.given_in(some, inputs)):
            texts = texts_of(row)
            chosen.texts += len(texts)
            chosen.characters += sum(map(len, texts))
            chosen.tokens += sum(map(estimated_tokens, texts))
    held = ", ".join(f"{reason} ({count:,})" for reason, count in sorted(chosen.reasons.items())) or "none"
    if choice.quarantine and not chosen.reasons[choice.quarantine]:
        raise HalaError(f"no row is in quarantine for '{choice.quarantine}'", f"there are: {held}")
    if not chosen.numbers:
        raise HalaError(f"{run.path}: none of its {plan.facts.rows:,} rows is chosen", f"in quarantine: {held}")
    return chosen


def _refuse_other_columns(run: RunDirectory, table: pa.Table, fields: Fields) -> None:
    there = {column.name: column.type for column in table.schema}
    if odd := next((column for column in fields if there.get(column.name) != column.type), None):
        was = f"is {there[odd.name]}" if odd.name in there else "has none"
        raise HalaError(
            f"'{odd.name}' would be {odd.type}, and in {run.name} {was}: rows side by side must have the same columns",
            "leave out what adds or changes columns (task.suffix, task.truncated, task.segments.tokens); or plan anew",
        )


def fill(folder: Path, run: RunDirectory, plan: Manifest, chosen: Chosen, redo: Redo) -> tuple[list[Shard], Facts]:
    """Put what is kept of a finished run into the folder of the one that does rows again; its shards and facts.

    Outputs without a chosen row are published at once. Files are linked where the file system can.
    """
    target = RunDirectory(folder, run.suffix)
    history = Ledger(target.ledger / "redo.jsonl", run=redo["path"])
    planned = []
    for shard in plan:
        again = chosen.numbers.get(shard.id, [])
        planned.append(replace(shard, kept=shard.rows - len(again)))
        place = target.output_before(shard.id) if again else target.shard_output(shard.id)
        place.parent.mkdir(parents=True, exist_ok=True)
        files.link_or_copy(run.shard_output(shard.id), place)
        if not again:
            held = chosen.held[shard.id]
            history.write("published", shard=shard.id, done=shard.rows - held, errors=held)
    history.close()
    numbers = [number for shard in sorted(chosen.numbers) for number in chosen.numbers[shard]]
    digests.write_table(pa.table({ROW: pa.array(numbers, pa.int64())}), target.again)
    if (run.path / SET_ASIDE).is_file():
        shutil.copyfile(run.path / SET_ASIDE, folder / SET_ASIDE)
    return planned, replace(plan.facts, redo=redo)
