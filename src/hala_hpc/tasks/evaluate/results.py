"""Results of evaluations as files: a row a question and a summary, so that every score can be computed again."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.tasks.evaluate.harness import Sample

SAMPLES: Final = "samples.parquet"
RESULT: Final = "result.json"
TOLERANCE: Final = 1e-9
"""Between a score that is told and the one that its samples give."""


@dataclass(frozen=True)
class TaskScore:
    """Mean of the samples' scores; ``stderr`` is their standard deviation (n - 1) by the root of n.

    NaN where a task has a single question, of which nothing is known; null in ``result.json``.
    """

    score: float
    stderr: float
    questions: int
    metric: str


@dataclass(frozen=True)
class Result:
    """One benchmark of one model, as ``result.json`` says it.

    ``score`` is the unweighted mean over ``tasks``, as the papers of these benchmarks do. ``weights`` is the digest of
    the model's files. ``missing`` names the benchmark's tasks that the data lacks. ``folder`` is where the samples are.
    ``questions_per_second`` leaves out those whose answers an earlier attempt had kept.
    """

    folder: Path
    model: str
    path: str
    weights: str
    benchmark: str
    harness: str
    versions: dict[str, str]
    few_shot: int | None
    limit: int | None
    questions: int
    tasks: dict[str, TaskScore]
    score: float
    seconds: float
    questions_per_second: float
    engine: dict[str, Any]
    chat_template: bool = False
    missing: tuple[str, ...] = ()
    truncated: int = 0


def read(run: Path) -> list[Result]:
    """The published results of an evaluation run, by model and benchmark in the order of the plan.

    Raises HalaError where the run is no evaluation, or a result cannot be read.
    """
    plan = manifest.read(run / "manifest.parquet")
    if plan.facts.unit != "benchmarks":
        raise HalaError(f"{run}: not a run of benchmarks", "a run with task.kind evaluate")
    outputs = RunDirectory(run, plan.facts.suffix)
    found = [outputs.shard_output(shard) for shard in range(len(plan))]
    return [read_one(folder) for folder in found if (folder / RESULT).is_file()]


def read_one(folder: Path) -> Result:
    """The result in a shard's folder. Raises HalaError."""
    try:
        told = json.loads((folder / RESULT).read_text("utf-8"))
        tasks = {name: _task_score(**score) for name, score in told.pop("tasks").items()}
        missing = tuple(told.pop("missing", ()))
        return Result(folder, tasks=tasks, missing=missing, **told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise HalaError(f"{folder / RESULT} cannot be read: {type(error).__name__}: {error}") from error


def samples(folder: Path) -> Any:
    """The questions of a result, a ``pyarrow.Table`` with the columns of ``schema``. Raises HalaError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(folder / SAMPLES).read()
    except (OSError, pa.ArrowException) as error:
        raise HalaError(f"{folder / SAMPLES} cannot be read: {error}") from error


def schema() -> Any:
    """Columns of ``samples.parquet``: those of ``Sample`` with its benchmark; ``metrics`` is a JSON object."""
    import pyarrow as pa

    text, number, count = pa.string(), pa.float64(), pa.int64()
    fields: list[tuple[str, pa.DataType]] = [
        ("benchmark", text),
        ("task", text),
        ("index", count),
        ("question", text),
        ("choices", pa.list_(text)),
        ("gold", pa.list_(count)),
        ("answer", count),
        ("text", text),
        ("log_probabilities", pa.list_(number)),
        ("normalised", pa.list_(number)),
        ("score", number),
        ("metric", text),
        ("metrics", text),
    ]
    return pa.schema(fields)


def write(folder: Path, found: Sequence[Sample], told: dict[str, Any]) -> Result:
    """Make ``folder`` with samples and summary; ``told`` are the fields of ``Result`` that samples do not tell.

    Raises HalaError where there are no samples, two of the same question, or log-probabilities that are no numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not found:
        raise HalaError(f"{told['benchmark']}: no questions", "is its data empty?")
    tasks = scores((sample.task, sample.score, sample.metric) for sample in found)
    if len({(sample.task, sample.index) for sample in found}) != len(found):
        raise HalaError(f"{told['benchmark']}: a question was answered twice")
    if any(math.isnan(number) for sample in found for number in sample.log_probabilities):
        raise HalaError(f"{told['model']}: its log-probabilities are no numbers", "are its weights sound?")
    rows = [asdict(each) | {"benchmark": told["benchmark"], "metrics": json.dumps(each.metrics)} for each in found]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), folder / SAMPLES)
    summary = told | {
        "questions": len(found),
        "tasks": {name: _written(score) for name, score in tasks.items()},
        "score": mean(score.score for score in tasks.values()),
    }
    (folder / RESULT).write_text(json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False), "utf-8")
    return read_one(folder)


def scores(rows: Iterable[tuple[str, float, str]]) -> dict[str, TaskScore]:
    """Task, score and metric of each sample to the scores of tasks, in the order in which they first come."""
    found: dict[str, tuple[list[float], str]] = {}
    for task, score, metric in rows:
        found.setdefault(task, ([], metric))[0].append(score)
    return {
        task: TaskScore(mean(values), standard_error(values), len(values), metric)
        for task, (values, metric) in found.items()
    }


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean, summed without rounding on the way. Raises ValueError for none."""
    listed = list(values)
    if not listed:
        raise ValueError("the mean of nothing")
    return math.fsum(listed) / len(listed)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; NaN for a single one, of which nothing is known."""
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def standard_error_of_means(errors: Sequence[float]) -> float:
    """Of the unweighted mean of k independent means, √(Σ se²)/k; NaN where one of theirs is unknown."""
    return math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)


def _written(score: TaskScore) -> dict[str, Any]:
    """JSON has no word for NaN."""
    return asdict(score) | {"stderr": None if math.isnan(score.stderr) else score.stderr}


def _task_score(score: float, stderr: float | None, questions: int, metric: str) -> TaskScore:
    """As a file tells it; older ones tell 0 for the unknown error of a single question."""
    return TaskScore(score, math.nan if stderr is None or questions < 2 else stderr, questions, metric)


def contradictions(folder: Path) -> list[str]:
    """Where a result does not follow from its samples, in plain words; empty for a sound one."""
    try:
        told, table = read_one(folder), samples(folder)
    except HalaError as error:
        return [str(error)]
    if table.schema != schema():
        return [f"{SAMPLES}: its columns are not those of samples"]
    rows = table.to_pylist()
    problems = [f"{row['task']} {row['index']}: {fault}" for row in rows if (fault := _fault(row))]
    if len({(row["task"], row["index"]) for row in rows}) != len(rows):
        problems.append("a question is there twice")
    if {row["benchmark"] for row in rows} != {told.benchmark} or len(rows) != told.questions:
        problems.append(f"{RESULT} tells of {told.questions} questions of {told.benchmark}, {SAMPLES} has other ones")
    counted = scores((row["task"], row["score"], row["metric"]) for row in rows)
    if counted.keys() != told.tasks.keys():
        problems.append("tasks of the result and of its samples are not the same")
        return problems
    for name, score in counted.items():
        if not _same(score, told.tasks[name]):
            problems.append(f"{name}: its samples give {score.score:.6f}, told is {told.tasks[name].score:.6f}")
    average = mean(score.score for score in counted.values())
    if abs(average - told.score) > TOLERANCE:
        problems.append(f"its tasks give {average:.6f}, told is {told.score:.6f}")
    return problems


def _same(one: TaskScore, other: TaskScore) -> bool:
    unknown = math.isnan(one.stderr) and math.isnan(other.stderr)
    near = abs(one.score - other.score) <= TOLERANCE and (unknown or abs(one.stderr - other.stderr) <= TOLERANCE)
    return near and (one.questions, one.metric) == (other.questions, other.metric)


def _fault(row: dict[str, Any]) -> str:
    """Of a choice question: is the answer the likeliest choice, and the score whether it is right?"""
    likely = row["normalised"]
    if not likely:
        return ""
    if len(likely) != len(row["choices"]) or len(row["log_probabilities"]) != len(likely):
        return f"{len(row['choices'])} choices, {len(likely)} numbers"
    if any(map(math.isnan, likely)):
        return "a log-probability is no number"
    best = likely.index(max(likely))
    if best != row["answer"]:
        return f"the likeliest choice is {best}, told is {row['answer']}"
    return "" if row["score"] == float(best in row["gold"]) else f"its score cannot be {row['score']}"
