"""lm-evaluation-harness with an engine of ours: its tasks, prompts and metrics, and log-probabilities from vLLM."""

import logging
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate.harness import Sample
from hala_hpc.tasks.evaluate.lm_eval import tasks as lm_eval_tasks
from hala_hpc.tasks.evaluate.lm_eval.model import make_model
from hala_hpc.tasks.evaluate.scorer import Scorer

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


RANDOM_SEED: Final = 0
FEWSHOT_SEED: Final = 1234
"""The harness's own seeds, so that a recipe's seed 0 draws the examples that its command line draws."""


class LmEval:
    """See ``harness.Harness``.

    ``asked["options"]`` may name a ``metric`` and a ``filter`` of the tasks, and ``task_files``, folders with task
    files. Worked examples are turns of the conversation where a chat template is used.
    """

    def evaluate(
        self,
        scorer: Scorer,
        asked: dict[str, Any],
        kept: Path,
        check_stop: Callable[[], None],
        tell: Callable[[str], None],
    ) -> list[Sample]:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: a log is no place for its bars
        from lm_eval import evaluator

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each of a thousand tasks

        options = asked.get("options") or {}
        check_stop()
        tell("reading tasks")
        tasks = lm_eval_tasks.load(asked["tasks"], options.get("task_files") or [], asked.get("data"))
        check_stop()
        seed = int(asked.get("seed") or 0)
        _prepare(tasks, asked.get("few_shot"), seed)
        tell("making prompts")
        chat = bool(asked.get("chat_template"))
        try:
            found = evaluator.evaluate(
                lm=make_model(scorer, kept, check_stop, tell, seed),
                task_dict={"tasks": tasks, "groups": {}},
                limit=asked.get("limit"),
                bootstrap_iters=0,
                system_instruction=asked.get("system_prompt"),
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        except (ValueError, AssertionError) as error:  # images, code to run, more examples than there are
            raise HalaError(f"{asked['benchmark']}: the harness refuses: {error}") from error
        metric, chosen = str(options.get("metric") or ""), str(options.get("filter") or "")
        return [
            sample
            for name, task in tasks.items()
            for sample in samples_of(_short(name), task, found["samples"][name], metric, chosen)
        ]

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("lm_eval", "transformers", "datasets")}


def create() -> LmEval:
    """The harness."""
    return LmEval()


def _prepare(tasks: dict[str, Any], few_shot: int | None, seed: int) -> None:
    """Seeds and examples as the harness's own command sets them: a task that says 0 stays without."""
    import numpy as np

    random.seed(RANDOM_SEED + seed)
    np.random.seed(FEWSHOT_SEED + seed)
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if few_shot is not None and own != 0:
            task.set_config(key="num_fewshot", value=few_shot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED + seed)


def _short(name: str) -> str:
    """A group's member is named ``group::member`` by the harness."""
    return name.replace("::", ":")
