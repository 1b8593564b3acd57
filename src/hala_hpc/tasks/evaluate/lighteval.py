"""LightEval with an engine of ours: its tasks, prompts, tokens and metrics, and log-probabilities from vLLM.

Imported only where LightEval is, in the serve environment.
"""

import copy
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lighteval.metrics import apply_metric
from lighteval.metrics.metrics_sample import LoglikelihoodAcc
from lighteval.metrics.normalizations import normalize_log_probs
from lighteval.models.abstract_model import LightevalModel
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTask
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc, SamplingMethod
from lighteval.utils.utils import as_list

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.tasks.evaluate import local
from hala_hpc.tasks.evaluate.benchmarks import ARABIC, LIGHTEVAL_MODULE, Benchmark, BenchmarkItem
from hala_hpc.tasks.evaluate.results import Sample
from hala_hpc.tasks.evaluate.scorer import Attempt, Decoding, Scorer

PACKAGES: Final = ("lighteval", "transformers")
MAX_TOKENS: Final = 256
"""Tokens to write where a question does not say."""


class LightevalScorer(LightevalModel):  # type: ignore[misc]  # LightEval is not there where mypy runs
    """A model of LightEval that asks ``scorer``.

    A chat template writes the beginning-of-text token itself, so none is added to it; LightEval's own backends add a
    second one unless ``add_special_tokens=False``.
    """

    tokenizer: Any = None  # abstract properties of LightEval's, as the next two
    add_special_tokens = True
    max_length = 0

    def __init__(self, scorer: Scorer, chat_template: bool, system_prompt: str | None, attempt: Attempt) -> None:
        self.tokenizer, self.max_length = scorer.tokenizer, scorer.max_length
        self.add_special_tokens = not chat_template
        self._scorer, self._attempt = scorer, attempt
        self._prompts = PromptManager(chat_template, scorer.tokenizer, system_prompt)

    def loglikelihood(self, docs: Sequence[Doc]) -> list[ModelResponse]:
        """Context and choices are encoded apart, as LightEval's transformers backend does."""
        texts = [self._prompts.prepare_prompt(doc) for doc in docs]
        encoded = [
            self.tok_encode_pair(text, doc.choices, pairwise=True) for text, doc in zip(texts, docs, strict=True)
        ]
        pairs = [pair for contexts, follow in encoded for pair in zip(contexts, follow, strict=True)]
        scored = iter(self._scorer.log_probabilities(pairs, self._attempt))
        responses = []
        for text, (contexts, follow) in zip(texts, encoded, strict=True):
            choices = [next(scored) for _ in follow]
            responses.append(
                ModelResponse(
                    input=text,
                    input_tokens=contexts,
                    output_tokens=follow,
                    logprobs=[choice.sum for choice in choices],
                    argmax_logits_eq_gold=[choice.is_greedy for choice in choices],
                    truncated_tokens_count=max((choice.truncated for choice in choices), default=0),
                )
            )
        return responses

    def greedy_until(self, docs: Sequence[Doc]) -> list[ModelResponse]:
        """Each question may have a length and stops of its own."""
        texts, prompts = [self._prompts.prepare_prompt(doc) for doc in docs], []
        for text, doc in zip(texts, docs, strict=True):
            stops = tuple(doc.stop_sequences or ()) if self.add_special_tokens else ()  # a chat has its own end
            prompts.append((self.tok_encode(text), Decoding(doc.generation_size or MAX_TOKENS, stops)))
        written = self._scorer.generate(prompts, self._attempt)
        return [ModelResponse(input=text, text=[answer]) for text, answer in zip(texts, written, strict=True)]

    def loglikelihood_rolling(self, docs: Sequence[Doc]) -> list[ModelResponse]:
        del docs
        raise HalaError("LightEval's perplexity tasks are not supported", "lm-eval has such tasks")


def evaluate(scorer: Scorer, item: BenchmarkItem, attempt: Attempt) -> list[Sample]:
    """See ``benchmarks.Harness``. ``options.module`` of an item names LightEval's module with the tasks."""
    logging.getLogger("lighteval").setLevel(logging.ERROR)  # warns of examples that are not used
    questions: list[tuple[LightevalTask, Doc]] = []
    for task in tasks_of(item):
        attempt.check_stop()
        attempt.tell(f"reading {task.name}")
        questions += ((task, doc) for doc in _docs_of(task, item["limit"]))
    model = LightevalScorer(scorer, bool(item["chat_template"]), item.get("system_prompt"), attempt)
    responses = _ask(model, [doc for _, doc in questions])
    return [_sample(task, doc, response) for (task, doc), response in zip(questions, responses, strict=True)]


def tasks_of(item: BenchmarkItem) -> list[LightevalTask]:
    """LightEval's tasks of a shard, with their local data where there is some. Raises HalaError for unknown ones."""
    name = item["options"].get("module") or LIGHTEVAL_MODULE
    try:
        table = {config.name: config for config in importlib.import_module(name).TASKS_TABLE}
    except (ImportError, AttributeError) as error:
        raise HalaError(f"{name}: not a module of LightEval's with tasks", str(error)) from error
    tasks = []
    for wanted in item["tasks"]:
        if wanted not in table:
            raise HalaError(f"LightEval has no task '{wanted}' in {name}", did_you_mean(wanted, list(table)[:200]))
        config = copy.deepcopy(table[wanted])
        config.num_fewshots = item["few_shot"] or 0
        config.full_name = f"{wanted}|{config.num_fewshots}"
        if isinstance(config.few_shots_split, list):  # ["dev"] is one of its own; it then fails to find that split
            config.few_shots_split = config.few_shots_split[0]
        tasks.append(LightevalTask(config))
    if item["data"]:
        name = item["benchmark"]
        known = ARABIC.get(name, Benchmark(name, "lighteval", ()))  # its columns say where the right answer is
        benchmark = replace(known, split=tasks[0].evaluation_split[0])
        rows = local.read(benchmark, item["tasks"], Path(item["data"]))
        for task in tasks:
            if task.name not in rows:
                raise HalaError(f"{task.name} is no longer in {item['data']}")
            task.dataset = rows[task.name]
    return tasks


def _docs_of(task: LightevalTask, limit: int | None) -> list[Doc]:
    """A task's questions, shuffled as LightEval does, so that a limit takes the questions that its own would.

    Raises HalaError for a question that LightEval cannot read, or where its data is not there.
    """
    try:
        return list(task.get_docs(limit))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise HalaError(f"{task.name}: LightEval cannot read its questions: {error!r}") from error
    except OSError as error:  # not in the cache, and no network
        raise HalaError(f"{task.name}: {error}", "`hala prefetch RECIPE`, or a local folder") from error


def _ask(model: LightevalScorer, docs: Sequence[Doc]) -> list[ModelResponse]:
    """Responses in the order of the questions, all of a kind in one go."""
    methods: dict[SamplingMethod, Callable[[list[Doc]], list[ModelResponse]]] = {
        SamplingMethod.LOGPROBS: model.loglikelihood,
        SamplingMethod.GENERATIVE: model.greedy_until,
    }
    responses: dict[int, ModelResponse] = {}
    for method, ask in methods.items():
        if places := [place for place, doc in enumerate(docs) if doc.sampling_methods == [method]]:
            responses |= zip(places, ask([docs[place] for place in places]), strict=True)
    if lacking := [doc.task_name for place, doc in enumerate(docs) if place not in responses]:
        raise HalaError(f"{lacking[0]}: asks neither for log-probabilities alone nor for a text alone")
    return [responses[place] for place in range(len(docs))]


def _sample(task: LightevalTask, doc: Doc, response: ModelResponse) -> Sample:
    """One question's score by the task's first metric, and those of the others."""
    metric = task.metrics[0]
    values = apply_metric([response], [doc], list(task.metrics))[0]
    try:
        metrics = {
            _name(other): float(values[other.metric_name])
            for other in task.metrics
            if isinstance(other.metric_name, str)
        }
        score = metrics[_name(metric)]
    except (TypeError, ValueError, KeyError) as error:
        raise HalaError(f"{task.name}: its metric is not a mean over questions", "LightEval's own command") from error
    sample = Sample(
        task=task.name,
        index=int(doc.id),
        question=doc.query,
        choices=list(doc.choices),
        gold=[int(place) for place in as_list(doc.gold_index)],
        score=score,
        metric=_name(metric),
        metrics=metrics,
    )
    if not isinstance(metric.sample_level_fn, LoglikelihoodAcc):
        return replace(sample, text="".join(response.text[:1]))
    logprobs, normalisation = list(response.logprobs), metric.sample_level_fn.logprob_normalization
    normalised = logprobs
    if normalisation is not None:
        numbers = normalize_log_probs(normalisation, logprobs, None, doc.choices, response.output_tokens)
        normalised = list(map(float, numbers))
    answer = normalised.index(max(normalised))
    return replace(sample, answer=answer, log_probabilities=logprobs, normalised=normalised)


def _name(metric: Any) -> str:
    """LightEval appends a metric's parameters to its name; normalised accuracy has a name of its own elsewhere."""
    name: str = metric.metric_name.partition(":")[0]
    return f"{name}_norm" if getattr(metric.sample_level_fn, "logprob_normalization", None) else name
