"""A LightEval model of our own: LightEval makes prompts and tokens, the scorer answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
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
