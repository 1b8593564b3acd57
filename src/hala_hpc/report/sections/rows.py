"""Rows that were made, of a translation for example: how many, what is in quarantine and why, and a few to look at."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.data.outputs.pairs import Pair, pairs
from hala_hpc.data.outputs.quarantine import quarantine_of
from hala_hpc.data.schema import to_rows
from hala_hpc.data.shards import ERROR, ROW
from hala_hpc.report import table
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.table import Example, Section, isolated
from hala_hpc.run.digests import Damaged

EXAMPLES_EACH: Final = 3
"""Rows shown for each example that is wanted: texts are shorter than questions with all their choices."""
MOST_TEXTS: Final = 12
MOST_CHARACTERS: Final = 600


def section(run: ReportedRun, examples: int) -> Section | None:
    """The rows of a run; None for a run whose shards are not rows."""
    if run.facts.unit != "rows" or run.facts.suffix != ".parquet":
        return None
    done = [path for shard in range(run.status.shards) if (path := run.directory.shard_output(shard)).is_file()]
    tables = (_counts(run), *([_quarantine(run, done)] if run.status.quarantined and done else []))
    shown = tuple(islice(_examples(run, done[0]), examples * EXAMPLES_EACH)) if done else ()
    return Section(f"rows-{run.name}", f"Rows of {isolated(run.name)}", tables=tables, examples=shown)


def _counts(run: ReportedRun) -> table.Table:
    state, work = run.status, run.work
    columns = ["rows", "done", "in quarantine", "left", "texts", "prompt tokens", "output tokens"]
    done, left = state.rows_done - state.quarantined, state.rows - state.rows_done
    row = [state.rows, done, state.quarantined, left, run.facts.texts, work.prompt_tokens, work.output_tokens]
    note = "Quarantine counts finished shards only; tokens include repeated work."
    return table.of(f"rows-{run.name}", "Rows", columns, [row], note)


def _quarantine(run: ReportedRun, done: Sequence[Path]) -> table.Table:
    reasons: Counter[str] = Counter()
    damaged = 0
    for path in done:
        try:
            reasons += quarantine_of(path)
        except Damaged:
            damaged += 1
    note = "Of finished shards." + (f" {damaged} of them are damaged and not counted (hala verify)." if damaged else "")
    return table.of(f"quarantine-{run.name}", "Quarantine", ["reason", "rows"], reasons.most_common(), note)


def _examples(run: ReportedRun, output: Path) -> Iterator[Example]:
    """The rows of a shard that were done: what went in beside what came out."""
    suffix = str(run.recipe["task"].get("suffix", ""))
    with suppress(pa.ArrowException, OSError, ValueError):  # damaged, which `hala verify` says
        file = pq.ParquetFile(output)
        for batch in file.iter_batches(batch_size=64):
            for row in to_rows(pa.Table.from_batches([batch])):
                texts = tuple(shortened(_texts(pairs(row, file.schema_arrow, suffix))))
                if texts and row.get(ERROR) is None:
                    yield Example(f"row {row[ROW]:,}", texts)


def _texts(texts: Iterator[Pair]) -> Iterator[tuple[str, str]]:
    """Each text, and its translation where that is another."""
    for pair in texts:
        if pair.source != pair.target:
            yield pair.of, pair.source
            if pair.target is not None:
                yield pair.label, pair.target


def shortened(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The first of some named texts, and of each its beginning."""
    for name, text in islice(texts, MOST_TEXTS):
        yield name, text[:MOST_CHARACTERS] + "…" * (len(text) > MOST_CHARACTERS)
