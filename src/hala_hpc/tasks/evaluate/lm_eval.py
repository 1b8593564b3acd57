"""lm-evaluation-harness with an engine of ours: its tasks, prompts and metrics, and log-probabilities from vLLM.

``python -m hala_hpc.tasks.evaluate.lm_eval NAME… [--task-files DIR]`` downloads what tasks read.
"""

import argparse
import difflib
import logging
import math
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.config.imports import heavy_imports
from hala_hpc.tasks.evaluate.benchmarks import BenchmarkItem, require_task_files
from hala_hpc.tasks.evaluate.results import Sample
from hala_hpc.tasks.evaluate.scorer import Attempt, Scorer

PACKAGES: Final = ("lm_eval", "transformers", "datasets")
FORMATS: Final = ("csv", "json", "parquet", "text", "arrow")
"""Readers of ``datasets`` that a task names instead of a dataset."""
MEANS: Final = ("mean", "nanmean")
"""Aggregations after which a task's score is the mean of its questions' scores, as our results have it."""
LENGTHS: Final[dict[str, Callable[[str], int]]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}
"""Metrics that choose by log-probability per character or byte."""
RANDOM_SEED: Final = 0
FEWSHOT_SEED: Final = 1234
"""The harness's own seeds, so that a recipe's seed 0 draws the examples that its command line draws."""

Config = Mapping[str, Any]
"""A task file, read."""


class HarnessRecord(TypedDict):
    """What is used of the harness's record of one question under one filter; the scores stand beside, by metric."""

    doc_id: int
    doc: Mapping[str, Any]
    target: Any
    arguments: list[tuple[Any, ...]]
    resps: list[Any]
    filtered_resps: list[Any]
    filter: str
    metrics: list[str]


def evaluate(scorer: Scorer, item: BenchmarkItem, attempt: Attempt) -> list[Sample]:
    """See ``benchmarks.Harness``.

    An item's ``options`` may name a ``metric`` and a ``filter`` of the tasks, and ``task_files``, folders with task
    files. Worked examples are turns of the conversation where a chat template is used.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: a log is no place for its bars
    with heavy_imports():
        from lm_eval import evaluator

        from hala_hpc.tasks.evaluate.lm_eval_model import LmEvalScorer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each of a thousand tasks
    options, seed, chat = item["options"], item.get("seed", 0), bool(item["chat_template"])
    attempt.check_stop()
    attempt.tell("reading tasks")
    tasks = load(item["tasks"], options.get("task_files", ()), item["data"])
    attempt.check_stop()
    prepare(tasks, item["few_shot"], seed)
    attempt.tell("making prompts")
    try:
        records = evaluator.evaluate(
            lm=LmEvalScorer(scorer, attempt, seed),
            task_dict={"tasks": tasks, "groups": {}},
            limit=item["limit"],
            bootstrap_iters=0,
            system_instruction=item.get("system_prompt"),
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )["samples"]
    except (ValueError, AssertionError) as error:  # images, code to run, more examples than there are
        raise HalaError(f"{item['benchmark']}: the harness refuses: {error}") from error
    metric, chosen = options.get("metric", ""), options.get("filter", "")
    return [
        sample
        for name, task in tasks.items()  # a group's member is named ``group::member``
        for sample in samples_of(name.replace("::", ":"), task, records[name], metric, chosen)
    ]


def load(names: Sequence[str], folders: Sequence[str], data: str | None) -> dict[str, Any]:
    """The harness's task objects by name, those of groups and tags each on its own, their data read.

    ``folders`` hold task files; one of a name that the harness knows takes its place. ``data`` is a folder to read
    instead of what the tasks name. Raises HalaError for unknown names and for data that is not there.
    """
    manager = _manager_of(names, folders)
    tasks: dict[str, Any] = {}
    for name in names:
        require_task_files(name, folders)
        overrides = _local(_config(manager, name), Path(data)) if data else {}
        try:
            tasks |= _built(manager, name, overrides)
        except Exception as error:
            if isinstance(error, ConnectionError | TimeoutError) and os.environ.get("HF_DATASETS_OFFLINE") != "1":
                raise  # the next attempt may reach the hub
            hint = "is it in the folder?" if data else "`hala prefetch RECIPE` where there is a network, or `data`"
            raise HalaError(f"{name}: cannot be prepared: {type(error).__name__}: {error}", hint) from error
    return tasks


def _manager_of(names: Sequence[str], folders: Sequence[str]) -> Any:
    """A task manager that knows all names: from our files if they suffice, else from the harness's 14,000 as well."""
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        raise HalaError(f"{missing[0]}: no folder with task files")
    ours = _manager(False, *folders)
    manager = ours if all(name in ours.task_index for name in names) else _manager(True, *folders)
    if unknown := [name for name in names if name not in manager.task_index]:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, 3)
        raise HalaError(
            f"lm-evaluation-harness has no task '{unknown[0]}', and no task file names it",
            f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists its own",
        )
    return manager


@lru_cache(maxsize=4)
def _manager(has_defaults: bool, *folders: str) -> Any:
    """It is kept for the worker's life: listing the harness's own tasks takes ten seconds and more."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=has_defaults)


def _built(manager: Any, name: str, overrides: Config) -> Mapping[str, Any]:
    """Tasks of a name. ``TaskManager.load`` itself takes overrides only for tasks that no file names."""
    index = manager.task_index
    built = manager._factory.build(index[name], overrides=overrides, registry=index)
    tasks: Mapping[str, Any] = manager.load(built if isinstance(built, list) else [built])["tasks"]
    return tasks


def _config(manager: Any, name: str) -> Config:
    """What a task's file says; of a tag, the file of its first task. Raises HalaError for groups of other tasks."""
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        return _config(manager, min(entry.tags))
    members = (entry.cfg or {}).get("task")
    if isinstance(members, list) and any(
        (member if isinstance(member, str) else member.get("task")) in manager.task_index for member in members
    ):
        raise HalaError(f"{name} is a group of tasks: local data is given to one task at a time", "name its tasks")
    return entry.cfg or {}


def _local(config: Config, folder: Path) -> Config:
    """What to change in a task's configuration so that it reads a folder. Raises HalaError where there is none."""
    if not folder.is_dir():
        raise HalaError(f"{folder}: no such folder")
    if "custom_dataset" in config:
        return {"metadata": {**config.get("metadata", {}), "data_dir": str(folder)}}
    if config.get("dataset_path") in FORMATS:
        return {"dataset_kwargs": {**(config.get("dataset_kwargs") or {}), "data_dir": str(folder)}}
    own = folder / str(config.get("dataset_name") or "")
    if not own.is_dir():
        raise HalaError(f"{folder}: has no folder {own.name}", "the dataset's configuration that the task asks for")
    return {"dataset_path": str(own), "dataset_name": None}


def prepare(tasks: Mapping[str, Any], few_shot: int | None, seed: int) -> None:
    """Seeds and examples as the harness's own command sets them: a task that says 0 stays without."""
    import numpy as np

    random.seed(RANDOM_SEED + seed)
    np.random.seed(FEWSHOT_SEED + seed)
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        is_own = few_shot is None or own == 0
        task.set_config(key="num_fewshot", value=(own or 0) if is_own else few_shot)
        task.set_fewshot_seed(seed=FEWSHOT_SEED + seed)


def samples_of(name: str, task: Any, records: Sequence[HarnessRecord], metric: str, wanted: str) -> list[Sample]:
    """Samples of one task by index.

    ``metric`` and ``wanted`` name a metric and a filter, '' the task's first. Raises HalaError where the task has no
    such one, or no metric that is a mean over questions.
    """
    filters = list(dict.fromkeys(record["filter"] for record in records))
    chosen = wanted or filters[0]
    if chosen not in filters:
        raise HalaError(f"{name} has no filter '{chosen}'", f"it has {', '.join(filters)}")
    counted = [record for record in records if record["filter"] == chosen]
    metric = _metric(name, task, counted, metric)
    metrics: dict[int, dict[str, float]] = {}
    for record in records:
        suffix = "" if record["filter"] == chosen else f",{record['filter']}"
        numbers = {key: number for key in record["metrics"] if (number := _number(record, key)) is not None}
        metrics.setdefault(record["doc_id"], {}).update({f"{key}{suffix}": value for key, value in numbers.items()})
    samples = [_sample(task, record, name, metric, metrics[record["doc_id"]]) for record in counted]
    if any(sample.normalised and sample.score != float(sample.answer in sample.gold) for sample in samples):
        samples = [replace(sample, answer=-1, normalised=[]) for sample in samples]  # this metric asks something else
    return sorted(samples, key=lambda sample: sample.index)


def _metric(name: str, task: Any, records: Sequence[HarnessRecord], wanted: str) -> str:
    aggregations = {key: getattr(function, "__name__", "") for key, function in task.aggregation().items()}
    first = records[0]
    usable = [
        key
        for key in dict.fromkeys([*aggregations, *first["metrics"]])  # in the order in which the task names them
        if all(key in record["metrics"] for record in records)
        and aggregations.get(key, MEANS[0]) in MEANS
        and _number(first, key) is not None
    ]
    if wanted and wanted not in usable:
        raise HalaError(f"{name} has no metric '{wanted}' that is a mean over questions", ", ".join(usable))
    if not usable:
        listed = ", ".join(f"{key} ({function})" for key, function in aggregations.items())
        raise HalaError(f"{name}: none of its metrics is a mean over questions: {listed}", "the harness's own command")
    return wanted or usable[0]


def _sample(task: Any, record: HarnessRecord, name: str, metric: str, metrics: dict[str, float]) -> Sample:
    text, target = task.doc_to_text(record["doc"]), record["target"]
    sample = Sample(
        task=name,
        index=int(record["doc_id"]),
        question=text if isinstance(text, str) and text else str(record["arguments"][0][0]),
        choices=[str(reference) for reference in _listed(target)],
        gold=[],
        score=float(record[metric]),  # type: ignore[literal-required]
        metric=metric,
        metrics=metrics,
    )
    if task.OUTPUT_TYPE == "multiple_choice":
        return _of_choices(task, record, sample, text)
    if task.OUTPUT_TYPE == "generate_until":
        return replace(sample, text=str(record["resps"][0][0]))
    answer = record["filtered_resps"][0]
    return replace(sample, log_probabilities=[float(answer[0] if isinstance(answer, tuple | list) else answer)])


def _of_choices(task: Any, record: HarnessRecord, sample: Sample, text: Any) -> Sample:
    choices = [str(choice) for choice in task.doc_to_choice(record["doc"])]
    logprobs = [float(response[0]) for response in record["filtered_resps"][: len(choices)]]
    length = LENGTHS.get(sample.metric)
    normalised = [
        logprob / length(choice) if length else logprob for logprob, choice in zip(logprobs, choices, strict=True)
    ]
    targets = _listed(text if task.multiple_input else record["target"])
    inputs = " / ".join(str(arguments[0]) for arguments in record["arguments"])
    return replace(
        sample,
        question=sample.question if isinstance(text, str) else inputs,
        choices=choices,
        gold=[place for target in targets for place in _places(target, choices)],
        answer=normalised.index(max(normalised)),
        log_probabilities=logprobs,
        normalised=normalised,
    )


def _listed(target: Any) -> list[Any]:
    return target if isinstance(target, list) else [target]


def _places(target: Any, choices: list[str]) -> list[int]:
    if isinstance(target, str):
        return [choices.index(target)] if target in choices else []
    return [int(target)]


def _number(record: Mapping[str, Any], metric: str) -> float | None:
    """A metric that is one finite number; None for pairs, lists and others."""
    try:
        number = float(record[metric])
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def main() -> int:
    """Fetch; 1 where a task is unknown or its data cannot be had, with the reason."""
    parser = argparse.ArgumentParser(description="Download the data of lm-evaluation-harness tasks.")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--task-files", action="append", default=[], help="a folder of task files")
    arguments = parser.parse_args()
    try:
        for name, task in load(arguments.names, arguments.task_files, None).items():
            print(f"{name}: {len(task.eval_docs)} questions", flush=True)  # noqa: T201
    except HalaError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
