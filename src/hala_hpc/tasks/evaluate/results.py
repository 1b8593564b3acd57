"""Results of evaluations as files: a row a question and a summary, so that every score can be computed again."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hala_hpc.config.errors import HalaError, known
from hala_hpc.run import manifest
from hala_hpc.tasks.evaluate import statistics
from hala_hpc.tasks.evaluate.statistics import Mean

SAMPLES: Final = "samples.parquet"
RESULT: Final = "result.json"
TOLERANCE: Final = 1e-9
"""Between a score in the summary and the one that its samples give."""
_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
_COLUMNS: Final[dict[str, pa.DataType]] = {
    "benchmark": _TEXT,
    "task": _TEXT,
    "index": _COUNT,
    "question": _TEXT,
    "choices": pa.list_(_TEXT),
    "gold": pa.list_(_COUNT),
    "answer": _COUNT,
    "text": _TEXT,
    "log_probabilities": pa.list_(_NUMBER),
    "normalised": pa.list_(_NUMBER),
    "score": _NUMBER,
    "metric": _TEXT,
    "metrics": _TEXT,
}
SCHEMA: Final = pa.schema(_COLUMNS)
"""Columns of ``samples.parquet``: those of ``Sample`` with its benchmark; ``metrics`` is a JSON object."""


@dataclass(frozen=True)
class Sample:
    """One question and what a model answered.

    ``index`` is the question's place in its task's data, so that models can be compared question by question.
    For a choice question ``gold`` holds the right choices and ``answer`` the model's (both count from 0), and
    ``log_probabilities`` and ``normalised`` hold one number a choice, natural logarithms: the answer is the choice
    with the largest ``normalised`` (the first of equals). Where there is nothing to choose ``answer`` is -1 and
    ``text`` what the model wrote; ``choices`` may then hold the references. ``score`` is that of ``metric``; the mean
    over a task's samples is the task's score. ``metrics`` holds further ones by name.
    """

    task: str
    index: int
    question: str
    choices: list[str]
    gold: list[int]
    score: float
    metric: str
    answer: int = -1
    text: str = ""
    log_probabilities: list[float] = field(default_factory=list)
    normalised: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """Mean of the samples' scores with its standard error: NaN for a single question, null in ``result.json``."""

    score: float
    stderr: float
    questions: int
    metric: str

    @property
    def mean(self) -> Mean:
        return Mean(self.score, self.stderr, self.questions)


@dataclass(frozen=True)
class Result:
    """One benchmark of one model, as ``result.json`` says it.

    ``score`` is the unweighted mean over ``tasks``, as the papers of these benchmarks do. ``weights`` is the digest of
    the model's files. ``missing`` names the benchmark's tasks that the data lacks. ``folder`` holds the samples.
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

    @property
    def mean(self) -> Mean:
        return _mean(self.tasks)


def read(run: Path) -> list[Result]:
    """The published results of an evaluation run, by model and benchmark in the order of the plan.

    Raises HalaError where the run is not an evaluation, or a result cannot be read.
    """
    outputs, plan = manifest.open_run(run)
    if plan.facts.unit != "benchmarks":
        raise HalaError(f"{run}: not a run of benchmarks", "a run with task.kind evaluate")
    folders = [outputs.shard_output(shard) for shard in range(len(plan))]
    return [read_one(folder) for folder in folders if (folder / RESULT).is_file()]


def read_one(folder: Path) -> Result:
    """The result in a shard's folder. Raises HalaError."""
    try:
        summary = json.loads((folder / RESULT).read_text("utf-8"))
        tasks = {name: _task_score(**score) for name, score in summary.pop("tasks").items()}
        return Result(folder, tasks=tasks, missing=tuple(summary.pop("missing", ())), **summary)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise HalaError(f"{folder / RESULT} cannot be read: {type(error).__name__}: {error}") from error


def samples(folder: Path) -> pa.Table:
    """The questions of a result, with the columns of ``SCHEMA``. Raises HalaError."""
    try:
        return pq.ParquetFile(folder / SAMPLES).read()
    except (OSError, pa.ArrowException) as error:
        raise HalaError(f"{folder / SAMPLES} cannot be read: {error}") from error


def write(folder: Path, answered: Sequence[Sample], header: Mapping[str, object]) -> Result:
    """Make ``folder`` with samples and summary; ``header`` has the fields of ``Result`` that samples do not give.

    Raises HalaError where there are no samples, two of the same question, or log-probabilities that are not numbers.
    """
    if not answered:
        raise HalaError(f"{header['benchmark']}: no questions", "is its data empty?")
    tasks = scores(answered)
    if len({(sample.task, sample.index) for sample in answered}) != len(answered):
        raise HalaError(f"{header['benchmark']}: a question was answered twice")
    if any(math.isnan(number) for sample in answered for number in sample.log_probabilities):
        raise HalaError(f"{header['model']}: its log-probabilities are not numbers", "are its weights sound?")
    more = {"benchmark": header["benchmark"]}
    rows = [asdict(sample) | more | {"metrics": json.dumps(sample.metrics)} for sample in answered]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / SAMPLES)
    summary = dict(header) | {
        "questions": len(answered),
        "tasks": {name: asdict(task) | {"stderr": known(task.stderr)} for name, task in tasks.items()},
        "score": _mean(tasks).value,
    }
    (folder / RESULT).write_text(json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False), "utf-8")
    return read_one(folder)


def scores(answered: Sequence[Sample]) -> dict[str, TaskScore]:
    """The scores of tasks, in the order in which they first come."""
    by_task: dict[str, list[Sample]] = {}
    for sample in answered:
        by_task.setdefault(sample.task, []).append(sample)
    means = {task: statistics.mean([sample.score for sample in some]) for task, some in by_task.items()}
    return {
        task: TaskScore(mean.value, mean.error, mean.questions, by_task[task][0].metric) for task, mean in means.items()
    }


def _mean(tasks: Mapping[str, TaskScore]) -> Mean:
    return statistics.mean_of([task.mean for task in tasks.values()])


def _task_score(score: float, stderr: float | None, questions: int, metric: str) -> TaskScore:
    """As a file has it; older ones have 0 for the unknown error of a single question."""
    return TaskScore(score, math.nan if stderr is None or questions < 2 else stderr, questions, metric)


def contradictions(folder: Path) -> list[str]:
    """Where a result does not follow from its samples, in plain words; empty for a sound one."""
    try:
        result, table = read_one(folder), samples(folder)
    except HalaError as error:
        return [str(error)]
    if table.schema != SCHEMA:
        return [f"{SAMPLES}: its columns are not those of samples"]
    answered = [Sample(**row) for row in table.drop_columns(["benchmark", "metrics"]).to_pylist()]
    problems = [f"{sample.task} {sample.index}: {fault}" for sample in answered if (fault := _fault(sample))]
    if len({(sample.task, sample.index) for sample in answered}) != len(answered):
        problems.append("a question is there twice")
    if set(table["benchmark"].to_pylist()) != {result.benchmark} or len(answered) != result.questions:
        problems.append(f"{RESULT} has {result.questions} questions of {result.benchmark}, {SAMPLES} has other ones")
    tasks = scores(answered)
    if tasks.keys() != result.tasks.keys():
        return [*problems, "tasks of the result and of its samples are not the same"]
    problems += [
        f"{name}: its samples give {task.score:.6f}, {RESULT} has {result.tasks[name].score:.6f}"
        for name, task in tasks.items()
        if not _is_same(task, result.tasks[name])
    ]
    average = _mean(tasks).value
    if abs(average - result.score) > TOLERANCE:
        problems.append(f"its tasks give {average:.6f}, {RESULT} has {result.score:.6f}")
    return problems


def _is_same(counted: TaskScore, written: TaskScore) -> bool:
    counts, said = (counted.score, counted.stderr), (written.score, written.stderr)
    is_near = np.allclose(counts, said, rtol=0, atol=TOLERANCE, equal_nan=True)
    return is_near and (counted.questions, counted.metric) == (written.questions, written.metric)


def _fault(sample: Sample) -> str:
    """What is wrong where the answer is not the likeliest choice, or the score not whether it is right."""
    normalised = sample.normalised
    if not normalised:
        return ""
    if len(normalised) != len(sample.choices) or len(sample.log_probabilities) != len(normalised):
        return f"{len(sample.choices)} choices, {len(normalised)} numbers"
    if any(map(math.isnan, normalised)):
        return "a log-probability is not a number"
    best = normalised.index(max(normalised))
    if best != sample.answer:
        return f"the likeliest choice is {best}, the answer is {sample.answer}"
    return "" if sample.score == float(best in sample.gold) else f"its score cannot be {sample.score}"
