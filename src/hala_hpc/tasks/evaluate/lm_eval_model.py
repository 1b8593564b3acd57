"""A language model for lm-evaluation-harness: the harness makes prompts, the scorer answers.

Imported only where the harness is, in the serve environment.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from jinja2.exceptions import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hala_hpc.tasks.evaluate.scorer import Attempt, Decoding, Scorer

SLICE: Final = 8192
"""Requests whose tokens are held at once: a prompt with examples is kilobytes of text, but tens of them as numbers."""
MAX_TOKENS: Final = 256
"""Tokens to write where a task does not say: the harness's own default."""
AS_WRITTEN: Final = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
"""The harness's vLLM model asks for control tokens in the text."""

Item = TypeVar("Item")
Answer = tuple[float, bool]
"""Log-probability of a continuation, and whether it is the greedy one."""


class HarnessRequest(Protocol):
    """What is used of the harness's ``Instance``: ``args`` are texts, of a generation the prompt and its settings."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class LmEvalScorer(TemplateLM):  # type: ignore[misc]  # the harness is not there where mypy runs
    """A model of the harness that asks ``scorer``. Tokens are made as by the harness's own ``hf`` model."""

    def __init__(self, scorer: Scorer, attempt: Attempt, seed: int = 0) -> None:
        super().__init__()
        self.tokenizer, self.max_length = scorer.tokenizer, scorer.max_length
        self._scorer, self._attempt, self._seed = scorer, attempt, seed
        self._encoded: dict[str, list[int]] = {}  # the texts of a slice
        self._done = ""  # how far a long list of choices is

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Templates that have no place for a system turn (Gemma's) get the others, as in the harness."""
        self._attempt.check_stop()
        ending = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            text = self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ending)
        except TemplateError:
            others = [turn for turn in chat_history if turn["role"] != "system"]
            text = self.tokenizer.apply_chat_template(others, tokenize=False, **ending)
        return str(text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        encoded = self._encoded.get(string) if add_special_tokens is None else None
        return encoded or self._encode([string], add_special_tokens)[string]

    def loglikelihood(self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False) -> list[Answer]:
        """The harness's own, but with each text encoded once and all of a slice together."""
        del disable_tqdm
        answers: list[Answer] = []
        for part in _slices(requests):
            pairs = [request.args[:2] for request in part]
            # What the harness encodes: it takes spaces at a context's end for the beginning of what follows.
            texts = [text for context, follow in pairs if context for text in (context.rstrip(), context + follow)]
            self._encoded = self._encode(dict.fromkeys(texts))
            self._done = f"{len(answers):,} of {len(requests):,} choices, " if len(requests) > SLICE else ""
            answers += super().loglikelihood(part, disable_tqdm=True)
        self._encoded, self._done = {}, ""
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
    ) -> list[Answer]:
        return self._scored([(context, follow) for _, context, follow in requests])

    def loglikelihood_rolling(self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False) -> list[float]:
        """A text longer than the model's context is read in windows, each token predicted once."""
        del disable_tqdm
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,  # and one token of context
                context_len=1,
            )
            totals.append(sum(logprob for logprob, _ in self._scored([make_disjoint_window(pair) for pair in windows])))
        return totals

    def generate_until(self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False) -> list[str]:
        """Each request has settings of its own."""
        del disable_tqdm
        end, texts = self.tokenizer.decode(self.eot_token_id), list[str]()
        for part in _slices(requests):
            encoded = self._encode(dict.fromkeys(request.args[0] for request in part))
            prompts = [
                (encoded[text], decoding_of(settings, end, self._seed))
                for text, settings in (request.args for request in part)
            ]
            written = self._scorer.generate(prompts, self._attempt)
            for text, (_, decoding) in zip(written, prompts, strict=True):
                texts.append(postprocess_generated_text(text, list(decoding.stop), None))
        return texts

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Answer]:
        attempt = replace(self._attempt, tell=lambda text: self._attempt.tell(self._done + text))
        return [(scored.sum, scored.is_greedy) for scored in self._scorer.log_probabilities(pairs, attempt)]

    def _encode(self, texts: Iterable[str], special: bool | None = None) -> dict[str, list[int]]:
        """A chat template has written the text's first token: then the tokenizer must not add it once more."""
        first = self.tokenizer.decode(self.prefix_token_id)
        by_setting: dict[bool | None, list[str]] = {}
        for text in texts:
            has_first = special is None and text.startswith(first)
            by_setting.setdefault(False if has_first else special, []).append(text)
        tokens: dict[str, list[int]] = {}
        for add, some in by_setting.items():
            setting = {} if add is None else {"add_special_tokens": add}
            tokens |= zip(some, self.tokenizer(some, return_attention_mask=False, **setting).input_ids, strict=True)
        return tokens


def decoding_of(settings: Mapping[str, Any], end: str, seed: int) -> Decoding:
    """A task's ``generation_kwargs`` as the harness's vLLM model reads them; ``end`` is the end-of-text token."""
    params = dict(normalize_gen_kwargs(settings, default_max_gen_toks=MAX_TOKENS))
    stop = handle_stop_sequences(params.pop("until", None), eos=end or None)
    max_tokens, temperature = int(params.pop("max_gen_toks")), params.pop("temperature", 0.0)
    del params["do_sample"]  # the temperature says it
    return Decoding(max_tokens, tuple(stop), temperature, seed, AS_WRITTEN | params)


def _slices(items: Sequence[Item]) -> Iterable[Sequence[Item]]:
    return (items[at : at + SLICE] for at in range(0, len(items), SLICE))
