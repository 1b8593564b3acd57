"""LightEval with an engine of ours: its tasks, prompts, tokens and metrics, and log-probabilities from vLLM."""

import copy
import importlib
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.tasks.evaluate.benchmarks import local
from hala_hpc.tasks.evaluate.benchmarks.arabic import BENCHMARKS
from hala_hpc.tasks.evaluate.harness import Benchmark, Sample
from hala_hpc.tasks.evaluate.scorer import Scorer


def make_model(
    scorer: Scorer,
    chat_template: bool,
    system_prompt: str | None,
    kept: Path | None,
    check_stop: Callable[[], None],
    tell: Callable[[str], None],
) -> Any:
    """A ``LightevalModel`` that asks ``scorer``.

    A chat template writes the beginning-of-text token itself, so none is added to it; LightEval's own backends add a
    second one unless told not to (``add_special_tokens=False``).
    """
    from lighteval.models.abstract_model import LightevalModel
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.prompt_manager import PromptManager

    prompts = PromptManager(chat_template, scorer.tokenizer, system_prompt)
    following: dict[str, Any] = {"kept": kept, "check_stop": check_stop, "tell": tell}

    class VllmModel(LightevalModel):  # type: ignore[misc]  # LightEval is not there where mypy runs
        """See ``make_model``."""

        tokenizer = scorer.tokenizer
        add_special_tokens = not chat_template
        max_length = scorer.max_length

        def loglikelihood(self, docs: list[Any]) -> list[Any]:
            """Context and choices are encoded apart, as LightEval's transformers backend does."""
            texts = [prompts.prepare_prompt(doc) for doc in docs]
            encoded = [
                self.tok_encode_pair(text, doc.choices, pairwise=True) for text, doc in zip(texts, docs, strict=True)
            ]
            pairs = [pair for contexts, follow in encoded for pair in zip(contexts, follow, strict=True)]
            scored = iter(scorer.log_probabilities(pairs, **following))
            answers = []
            for text, (contexts, follow) in zip(texts, encoded, strict=True):
                found = [next(scored) for _ in follow]
                answers.append(
                    ModelResponse(
                        input=text,
                        input_tokens=contexts,
                        output_tokens=follow,
                        logprobs=[each.sum for each in found],
                        argmax_logits_eq_gold=[each.is_greedy for each in found],
                        truncated_tokens_count=max((each.truncated for each in found), default=0),
                    )
                )
            return answers

        def greedy_until(self, docs: list[Any]) -> list[Any]:
            """Requests of one length and the same stops go together."""
            texts = [prompts.prepare_prompt(doc) for doc in docs]
            groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
            for place, doc in enumerate(docs):
                stops = () if chat_template else tuple(doc.stop_sequences or ())
                groups.setdefault((doc.generation_size or 256, stops), []).append(place)
            answers: list[Any] = [None] * len(docs)
            for (size, stops), places in groups.items():
                tokens = [self.tok_encode(texts[place]) for place in places]
                for place, text in zip(places, scorer.generate(tokens, size, stops, **following), strict=True):
                    answers[place] = ModelResponse(input=texts[place], text=[text])
            return answers

        def loglikelihood_rolling(self, docs: list[Any]) -> list[Any]:
            del docs
            raise HalaError("LightEval's tasks of perplexity cannot be asked", "lm-eval has such tasks")

    return VllmModel()


DEFAULT_MODULE: Final = "lighteval.tasks.multilingual.tasks.arabic"


class Lighteval:
    """See ``harness.Harness``. ``options.module`` of what is asked names LightEval's module with the tasks."""

    def evaluate(
        self,
        scorer: Scorer,
        asked: dict[str, Any],
        kept: Path,
        check_stop: Callable[[], None],
        tell: Callable[[str], None],
    ) -> list[Sample]:
        logging.getLogger("lighteval").setLevel(logging.ERROR)  # warns of examples where none are used
        found = tasks_of(asked)
        docs: list[Any] = []
        owner: list[Any] = []
        for task in found:
            check_stop()
            tell(f"reading {task.name}")
            some = _docs_of(task, asked["limit"])
            docs += some
            owner += [task] * len(some)
        model = make_model(scorer, asked["chat_template"], asked.get("system_prompt"), kept, check_stop, tell)
        answers = _ask(model, docs)
        return [_sample(task, doc, answer) for task, doc, answer in zip(owner, docs, answers, strict=True)]

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("lighteval", "transformers")}


def create() -> Lighteval:
    """The harness."""
    return Lighteval()


def tasks_of(asked: dict[str, Any]) -> list[Any]:
    """LightEval's tasks of a shard, with their local data where there is some. Raises HalaError for unknown ones."""
    from lighteval.tasks.lighteval_task import LightevalTask

    name = asked.get("options", {}).get("module") or DEFAULT_MODULE
    try:
        table = {config.name: config for config in importlib.import_module(name).TASKS_TABLE}
    except (ImportError, AttributeError) as error:
        raise HalaError(f"{name}: not a module of LightEval's with tasks", str(error)) from error
    found = []
    for wanted in asked["tasks"]:
        if wanted not in table:
            raise HalaError(f"LightEval has no task '{wanted}' in {name}", did_you_mean(wanted, list(table)[:200]))
        config = copy.deepcopy(table[wanted])
        config.num_fewshots = asked["few_shot"] or 0
        config.full_name = f"{wanted}|{config.num_fewshots}"
        if isinstance(config.few_shots_split, list):  # ["dev"] is one of its own; it then fails to find that split
            config.few_shots_split = config.few_shots_split[0]
        found.append(LightevalTask(config))
    if asked["data"]:
        split = found[0].evaluation_split[0]
        known = BENCHMARKS.get(asked["benchmark"])  # whose columns say where the right answer is
        columns = known.columns if known is not None else ()
        benchmark = Benchmark(asked["benchmark"], "lighteval", tuple(asked["tasks"]), split=split, columns=columns)
        rows = local.read(benchmark, asked["tasks"], Path(asked["data"])).tasks
        for task in found:
            if task.name not in rows:
                raise HalaError(f"{task.name} is no longer in {asked['data']}")
            task.dataset = rows[task.name]
    return found


def _docs_of(task: Any, limit: int | None) -> list[Any]:
    """A task's questions, shuffled as LightEval does, so that a limit takes the questions that its own would.

    Raises HalaError for a question that LightEval cannot read, or where its data is not there.
    """
    try:
        docs: list[Any] = task.get_docs(limit)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise HalaError(f"{task.name}: LightEval cannot read its questions: {error!r}") from error
    except OSError as error:  # not in the cache, and no network
        raise HalaError(f"{task.name}: {error}", "`hala prefetch RECIPE`, or a local folder") from error
    return docs


def _ask(model: Any, docs: Sequence[Any]) -> list[Any]:
    """Responses in the order of the questions, all of a kind in one go."""
    from lighteval.tasks.requests import SamplingMethod

    answers: dict[int, Any] = {}
    for method, ask in (
        (SamplingMethod.LOGPROBS, model.loglikelihood),
        (SamplingMethod.GENERATIVE, model.greedy_until),
    ):
        places = [place for place, doc in enumerate(docs) if doc.sampling_methods == [method]]
        if places:
            answers |= zip(places, ask([docs[place] for place in places]), strict=True)
    if lacking := [doc.task_name for place, doc in enumerate(docs) if place not in answers]:
        raise HalaError(f"{lacking[0]}: asked neither for log-probabilities alone nor for a text alone")
    return [answers[place] for place in range(len(docs))]


def _sample(task: Any, doc: Any, answer: Any) -> Sample:
    """One question's score by the task's first metric, and those of the others."""
    from lighteval.metrics import apply_metric
    from lighteval.metrics.metrics_sample import LoglikelihoodAcc
    from lighteval.utils.utils import as_list

    metric = task.metrics[0]
    given = apply_metric([answer], [doc], list(task.metrics))[0]
    named = {_name(each): given[each.metric_name] for each in task.metrics if isinstance(each.metric_name, str)}
    try:
        numbers = {name: float(value) for name, value in named.items()}
        score = numbers[_name(metric)]
    except (TypeError, ValueError, KeyError) as error:
        raise HalaError(f"{task.name}: its metric is no mean over questions", "LightEval's own command") from error
    if isinstance(metric.sample_level_fn, LoglikelihoodAcc):
        normalised = _normalised(metric, doc, answer)
        best = normalised.index(max(normalised))
        chosen: dict[str, Any] = {"answer": best, "log_probabilities": list(answer.logprobs), "normalised": normalised}
    else:
        chosen = {"text": "".join(answer.text[:1])}
    return Sample(
        task=task.name,
        index=int(doc.id),
        question=doc.query,
        choices=list(doc.choices),
        gold=[int(place) for place in as_list(doc.gold_index)],
        score=score,
        metric=_name(metric),
        metrics=numbers,
        **chosen,
    )


def _normalised(metric: Any, doc: Any, answer: Any) -> list[float]:
    from lighteval.metrics.normalizations import normalize_log_probs

    how = metric.sample_level_fn.logprob_normalization
    if how is None:
        return list(answer.logprobs)
    return [float(each) for each in normalize_log_probs(how, answer.logprobs, None, doc.choices, answer.output_tokens)]


def _name(metric: Any) -> str:
    """LightEval appends a metric's parameters to its name; normalised accuracy has a name of its own elsewhere."""
    name: str = metric.metric_name.partition(":")[0]
    return f"{name}_norm" if getattr(metric.sample_level_fn, "logprob_normalization", None) else name
