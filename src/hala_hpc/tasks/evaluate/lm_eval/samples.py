"""What lm-evaluation-harness logs of each question, as samples of ours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate.harness import Sample

Record = dict[str, Any]
MEANS: Final = ("mean", "nanmean")
"""Aggregations after which a task's score is the mean of its questions' scores, as our results have it."""
LENGTHS: Final[dict[str, Callable[[str], int]]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}
"""Metrics that choose by log-probability per character or byte."""


def samples_of(name: str, task: Any, records: Sequence[Record], metric: str, wanted: str) -> list[Sample]:
    """Samples of one task by index.

    ``metric`` and ``wanted`` name a metric and a filter, '' the task's first. Raises HalaError where the task has none
    of that name, or none that is a mean over questions.
    """
    filters = list(dict.fromkeys(record["filter"] for record in records))
    chosen = wanted or filters[0]
    if chosen not in filters:
        raise HalaError(f"{name} has no filter '{chosen}'", f"it has {', '.join(filters)}")
    mine = [record for record in records if record["filter"] == chosen]
    metric = _metric(name, task, mine, metric)
    others: dict[int, dict[str, float]] = {}
    for record in records:
        suffix = "" if record["filter"] == chosen else f",{record['filter']}"
        numbers = {f"{key}{suffix}": value for key in record["metrics"] if (value := _number(record[key])) is not None}
        others.setdefault(record["doc_id"], {}).update(numbers)
    found = [_sample(name, task, record, metric, others[record["doc_id"]]) for record in mine]
    if any(sample.normalised and sample.score != float(sample.answer in sample.gold) for sample in found):
        found = [replace(sample, answer=-1, normalised=[]) for sample in found]  # this metric asks something else
    return sorted(found, key=lambda sample: sample.index)


def _metric(name: str, task: Any, records: Sequence[Record], wanted: str) -> str:
    how = {key: getattr(function, "__name__", "") for key, function in task.aggregation().items()}
    everywhere = set(records[0]["metrics"]).intersection(*(record["metrics"] for record in records))
    listed = dict.fromkeys([*how, *records[0]["metrics"]])  # in the order in which the task names them
    usable = [key for key in listed if key in everywhere and how.get(key, MEANS[0]) in MEANS]
    usable = [key for key in usable if _number(records[0][key]) is not None]
    if wanted and wanted not in usable:
        raise HalaError(f"{name} has no metric '{wanted}' that is a mean over questions", ", ".join(usable))
    if not usable:
        told = ", ".join(f"{key} ({function})" for key, function in how.items())
        raise HalaError(f"{name}: none of its metrics is a mean over questions: {told}", "the harness's own command")
    return wanted or usable[0]


def _sample(name: str, task: Any, record: Record, metric: str, metrics: dict[str, float]) -> Sample:
    doc = record["doc"]
    text = task.doc_to_text(doc)
    plain = Sample(
        task=name,
        index=int(record["doc_id"]),
        question=text if isinstance(text, str) and text else str(record["arguments"][0][0]),
        choices=[],
        gold=[],
        score=float(record[metric]),
        metric=metric,
        metrics=metrics,
    )
    if task.OUTPUT_TYPE == "multiple_choice":
        return _of_choices(task, record, plain, text)
    target = record["target"]
    plain = replace(plain, choices=[str(each) for each in (target if isinstance(target, list) else [target])])
    if task.OUTPUT_TYPE == "generate_until":
        return replace(plain, text=str(record["resps"][0][0]))
    answer = record["filtered_resps"][0]
    return replace(plain, log_probabilities=[float(answer[0] if isinstance(answer, tuple | list) else answer)])


def _of_choices(task: Any, record: Record, plain: Sample, text: Any) -> Sample:
    choices = [str(choice) for choice in task.doc_to_choice(record["doc"])]
    likely = [float(response[0]) for response in record["filtered_resps"][: len(choices)]]
    length = LENGTHS.get(plain.metric)
    normalised = [each / length(choice) if length else each for each, choice in zip(likely, choices, strict=True)]
    target = text if task.multiple_input else record["target"]
    return replace(
        plain,
        question=plain.question if isinstance(text, str) else " / ".join(str(each[0]) for each in record["arguments"]),
        choices=choices,
        gold=[place for each in (target if isinstance(target, list) else [target]) for place in _places(each, choices)],
        answer=normalised.index(max(normalised)),
        log_probabilities=likely,
        normalised=normalised,
    )


def _places(target: Any, choices: list[str]) -> list[int]:
    if isinstance(target, str):
        return [choices.index(target)] if target in choices else []
    return [int(target)]


def _number(value: Any) -> float | None:
    """Of a metric that is one number; null for pairs, lists and what is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
