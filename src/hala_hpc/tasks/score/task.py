"""Score the translations of several systems against references. A shard is one system.

The texts of all sides are brought together while the run is planned and kept in it, so what is scored cannot change.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast

import pyarrow as pa

from hala_hpc.config.errors import HalaError, did_you_mean, refuse_odd_name, within
from hala_hpc.config.schema import Data, Recipe, TaskOptions
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.models.folder import item_report, write_json
from hala_hpc.run import digests, files
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Manifest, Shard
from hala_hpc.run.verify import CheckShard, ShardReport
from hala_hpc.tasks.score import scores, speed, texts
from hala_hpc.tasks.score.scores import ROWS, Scores, System
from hala_hpc.tasks.score.texts import Column
from hala_hpc.text import metrics
from hala_hpc.text.metrics import DEFAULT, KINDS, RESAMPLES
from hala_hpc.worker.items import Item, ItemTask, ItemWork, PlannedItem, cut_items

INPUT: Final = "input/texts.parquet"
"""In the run: the texts of all sides, a column each (``key``, ``reference``, ``source``, ``system.LABEL``)."""
OWN: Final = ("key", "reference", "source")
"""Columns of the scored rows beside those of the systems."""
REPORT: Final = "report.md"
NOW_AND_THEN: Final = 100
"""Texts between two looks whether to stop: seconds, for long ones."""


class ScoreItem(TypedDict):
    """A shard's entry in the plan: a system by its label, the digest of its texts and of what they are held against.

    ``missing`` and ``empty`` count its texts; ``run`` is how fast they were made (see ``speed.of_run``), where a run
    made them.
    """

    name: str
    digest: str
    rows: int
    missing: int
    empty: int
    run: dict[str, Any] | None


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: score``."""

    kind: str = "score"
    systems: dict[str, Column] = field(default_factory=dict)  # a label for each
    references: Column = field(default_factory=Column)
    sources: Column = field(default_factory=Column)  # what was translated: TreeSim is to its structure then
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT))
    key: str | None = None  # the column by which rows belong together; null: their order
    missing: Literal["refuse", "leave_out", "empty"] = "refuse"  # rows that a system lacks
    baseline: str | None = None  # label of the system that others are tested against; null: the first
    resamples: int = RESAMPLES  # choices of rows for intervals and tests; sacrebleu's own number. 0: neither


class ScoreTask(ItemTask):
    """See the module. Raises HalaError for options that cannot be."""

    environment = "serve"

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        options: Options = recipe.task
        for name, side in (("references", options.references), *options.systems.items()):
            if not side.path and not side.hub:
                raise HalaError(f"task: nothing says where {name} are", "path: FILE or run:NAME, and column: NAME")
        if not options.systems:
            raise HalaError("task.systems is missing", "task.systems.LABEL: {path: FILE or run:NAME, column: NAME}")
        for label in options.systems:
            refuse_odd_name("task.systems", label, "a label")
            if label in OWN:
                raise HalaError(f"task.systems: '{label}' is a column of the scored rows", "choose another label")
        if not options.metrics:
            raise HalaError("task.metrics: is empty", f"one or more of {', '.join(KINDS)}")
        if odd := next((name for name in options.metrics if name not in KINDS), None):
            raise HalaError(f"task.metrics: no metric '{odd}'", did_you_mean(odd, KINDS))
        if options.baseline is not None and options.baseline not in options.systems:
            raise HalaError(
                f"task.baseline: no system '{options.baseline}'", did_you_mean(options.baseline, options.systems)
            )
        if options.resamples < 0:
            raise HalaError("task.resamples: must be 0 or more")

    def plan(self, folder: Path, watch: PlanWatch) -> Cut:
        """Raises HalaError for texts that cannot be read or brought together."""
        options: Options = self._recipe.task
        notes: Counter[str] = Counter()
        copies = folder / "copies"
        has_sources = bool(options.sources.path or options.sources.hub)
        wanted = {"references": options.references} | ({"sources": options.sources} if has_sources else {})
        sides = {}
        for number, (name, side) in enumerate((wanted | options.systems).items()):
            with within(f"task.{name}" if name in wanted else f"task.systems.{name}"):
                sides[name] = texts.read(side, options.key, copies / str(number), watch, notes)
        files.remove_tree(copies)
        systems = {label: sides[label] for label in options.systems}
        rows = texts.together(sides["references"], sides.get("sources"), systems, options.key, options.missing)
        columns = {"key": list(map(str, rows.keys)), "reference": rows.references}
        columns |= {"source": rows.sources} if rows.sources is not None else {}
        (folder / INPUT).parent.mkdir(exist_ok=True)
        whole = pa.table(columns | {f"system.{label}": own for label, own in rows.systems.items()})
        digests.write_table(whole, folder / INPUT)
        held = _digest([rows.references, rows.sources, options.metrics, options.resamples])
        items = []
        for label, own in rows.systems.items():
            run = systems[label].run
            item = ScoreItem(
                name=label,
                digest=_digest([held, own]),
                rows=len(own),
                missing=rows.missing[label],
                empty=rows.empty(label),
                run=speed.of_run(run) if run is not None else None,
            )
            items.append(PlannedItem(dict(item), Path(INPUT), sum(map(len, own)), item["digest"]))
        read = [
            {"path": INPUT, "original": side.origin, "rows": len(side.values), "bytes": side.bytes}
            for side in sides.values()
        ]
        return cut_items(
            "score", "systems", items, read, texts=len(rows.keys), assembled=True, notes=notes + rows.notes
        )

    def hub_needs(self) -> list[Data]:
        options: Options = self._recipe.task
        return [options.references, options.sources, *options.systems.values()]

    def checker(self, facts: Facts) -> CheckShard:
        def check(shard: Shard, path: Path) -> ShardReport:
            item = cast(ScoreItem, facts.items[shard.id])
            return item_report(scores.faults(path, item["digest"], item["rows"], self._recipe.task.resamples))

        return check

    def open(self, run: RunDirectory, plan: Manifest) -> "Scoring":
        del plan
        return Scoring(self._recipe.task, run)

    def finish(self, run: RunDirectory, plan: Manifest) -> None:
        """Write RUN/final: the scores with their tests, a table of them for people, and every row with its scores."""
        options: Options = self._recipe.task
        items = [cast(ScoreItem, item) for item in plan.facts.items]
        outputs = {item["name"]: run.shard_output(shard) for shard, item in enumerate(items)}
        has_tests = bool(options.resamples) and len(items) > 1
        baseline = (options.baseline or items[0]["name"]) if has_tests else None
        tested = scores.tested({name: scores.read(output) for name, output in outputs.items()}, baseline)
        result = Scores(
            rows=items[0]["rows"],
            resamples=options.resamples,
            baseline=baseline,
            signatures=scores.signatures_of(outputs[items[0]["name"]]),
            systems={
                item["name"]: System(item["missing"], item["empty"], tested[item["name"]], item["run"])
                for item in items
            },
            notes=dict(plan.facts.notes),
        )
        with suppress(FileExistsError), files.whole_directory(run.final) as folder:
            write_json(folder / scores.SCORES, result.as_json())
            (folder / REPORT).write_text(scores.markdown(result), "utf-8")
            digests.write_table(_with_scores(_texts(run), outputs), folder / ROWS)
            digests.write(folder)


class Scoring(ItemWork):
    """One worker's work: the statistics of each row of a system, and what they add up to."""

    def __init__(self, options: Options, run: RunDirectory) -> None:
        self._options, self._run = options, run
        self._metrics: dict[str, Any] = {}  # they keep what is computed of the references, for all systems

    def do(self, item: Item) -> dict[str, Any]:
        """Raises HalaError where the texts are not those of the plan."""
        planned, options = cast(ScoreItem, item.entry), self._options
        table = _texts(self._run)
        columns: dict[str, Any] = {name: table[name].to_pylist() for name in table.column_names if "." not in name}
        own: Any = table[f"system.{planned['name']}"].to_pylist()
        references, sources = columns["reference"], columns.get("source")
        held = _digest([references, sources, options.metrics, options.resamples])
        if _digest([held, own]) != planned["digest"]:
            raise HalaError(f"{self._run.path / INPUT} changed since the run was planned", "plan a new run")
        scored: dict[str, metrics.Scored] = {}
        rows, signatures = {}, {}
        for number, name in enumerate(options.metrics, 1):
            item.tell(f"{KINDS[name].label}, {number} of {len(options.metrics)}")
            watched = Watched(own, item.check_stop)
            if name not in self._metrics:
                self._metrics[name] = metrics.KINDS[name].make(Watched(references, item.check_stop), sources)
            metric = self._metrics[name]
            rows[name] = metrics.statistics(metric, watched)
            scored[name] = metrics.scored(metric, rows[name], options.resamples, item.check_stop)
            signatures[name] = metrics.signature(metric, options.resamples)
        item.place.mkdir()
        scores.write(item.place, planned["digest"], scored, rows, signatures)
        return {"texts": len(own)}


class Watched(Sequence[str]):
    """Texts that are taken one after the other; ``between`` them, now and then, may raise."""

    def __init__(self, texts: Sequence[str], between: Callable[[], None]) -> None:
        self._texts, self._between = texts, between

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, place: Any) -> Any:
        return self._texts[place]

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self._texts):
            if number % NOW_AND_THEN == 0:
                self._between()
            yield text


create = ScoreTask


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, ensure_ascii=False).encode(), digest_size=16).hexdigest()


def _texts(run: RunDirectory) -> pa.Table:
    """The texts that were planned. Raises HalaError where a byte of them changed."""
    try:
        return digests.read(run.path / INPUT, must_be_sealed=True)[0]
    except digests.Damaged as error:
        raise HalaError(f"{run.path / INPUT} {error}", "plan a new run") from error


def _with_scores(table: pa.Table, outputs: Mapping[str, Path]) -> pa.Table:
    """Every row: its texts, and of each system a struct of its text and its scores, so that conditions reach them."""
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if "." not in name}
    for label, folder in outputs.items():
        own, _ = digests.read(folder / ROWS, must_be_sealed=True)
        names = [name for name in own.column_names if name in KINDS]
        parts = [table[f"system.{label}"], *(own[name] for name in names)]
        columns[label] = pa.StructArray.from_arrays([part.combine_chunks() for part in parts], ["text", *names])
    return pa.table(columns)
