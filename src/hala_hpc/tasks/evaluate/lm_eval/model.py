"""A language model for lm-evaluation-harness: the harness makes prompts, the scorer answers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from hala_hpc.tasks.evaluate.scorer import Scorer

SLICE: Final = 8192
"""Requests whose tokens are held at once: a prompt with examples is kilobytes of text, but tens of them as numbers."""
MAX_TOKENS: Final = 256
"""Tokens to write where a task does not say: the harness's own default."""

Item = TypeVar("Item")


def make_model(
    scorer: Scorer, kept: Path | None, check_stop: Callable[[], None], tell: Callable[[str], None], seed: int = 0
) -> Any:
    """An ``lm_eval.api.model.LM`` that asks ``scorer``. Tokens are made as by the harness's own ``hf`` model."""
    from lm_eval.api.model import TemplateLM

    asking: dict[str, Any] = {"kept": kept, "check_stop": check_stop, "tell": tell}

    class ScorerModel(TemplateLM):  # type: ignore[misc]  # the harness is not there where mypy runs
        """See ``make_model``."""

        tokenizer = scorer.tokenizer

        @property
        def max_length(self) -> int:
            return scorer.max_length

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
            from jinja2.exceptions import TemplateError

            check_stop()
            how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
            try:
                text = self.tokenizer.apply_chat_template(chat_history, tokenize=False, **how)
            except TemplateError:
                others = [turn for turn in chat_history if turn["role"] != "system"]
                text = self.tokenizer.apply_chat_template(others, tokenize=False, **how)
            return str(text)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return self._encode([string], add_special_tokens)[string]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            """The harness's own, but with each text encoded once and all of a slice together."""
            del disable_tqdm
            answers: list[tuple[float, bool]] = []
            for some in _slices([request.args[:2] for request in requests]):
                split = [_moved(context, continuation) for context, continuation in some]
                texts = [text for context, follow in split if context for text in (context, context + follow)]
                tokens = self._encode(dict.fromkeys(texts))
                alone = self._encode(dict.fromkeys(follow for context, follow in split if not context), False)
                pairs = []
                for context, follow in split:
                    if context:
                        pairs.append((tokens[context], tokens[context + follow][len(tokens[context]) :]))
                    elif alone[follow][:1] == [self.prefix_token_id]:
                        pairs.append((alone[follow][:1], alone[follow][1:]))
                    else:
                        pairs.append(([self.prefix_token_id], alone[follow]))
                done = f"{len(answers):,} of {len(requests):,} choices, "
                answers += self._scored(pairs, done if len(requests) > SLICE else "")
            return answers

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return self._scored([(context, follow) for _, context, follow in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            """A text longer than the model's context is read in windows, each token predicted once."""
            from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

            del disable_tqdm
            totals = []
            for request in requests:
                (text,) = request.args
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=scorer.max_length - 1,  # and one token of context
                    context_len=1,
                )
                pairs = [make_disjoint_window(window) for window in windows]
                totals.append(sum(total for total, _ in self._scored(pairs)))
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            """Requests with the same way of writing go together."""
            from lm_eval.models.utils import postprocess_generated_text

            del disable_tqdm
            groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
            for place, request in enumerate(requests):
                wanted = _wanted(request.args[1], self.tokenizer.decode(self.eot_token_id))
                groups.setdefault(repr(sorted(wanted.items())), (wanted, []))[1].append(place)
            texts = [""] * len(requests)
            for wanted, group in groups.values():
                for places in _slices(group):
                    prompts = self._encode(dict.fromkeys(requests[place].args[0] for place in places))
                    tokens = [prompts[requests[place].args[0]] for place in places]
                    for place, text in zip(places, scorer.generate(tokens, seed=seed, **wanted, **asking), strict=True):
                        texts[place] = postprocess_generated_text(text, wanted["stop"], None)
            return texts

        def _scored(self, pairs: Sequence[tuple[list[int], list[int]]], done: str = "") -> list[tuple[float, bool]]:
            found = scorer.log_probabilities(pairs, kept, check_stop, lambda text: tell(done + text))
            return [(scored.sum, scored.is_greedy) for scored in found]

        def _encode(self, texts: Iterable[str], special: bool | None = None) -> dict[str, list[int]]:
            """A chat template has written the text's first token: then the tokenizer must not add it once more."""
            first = self.tokenizer.decode(self.prefix_token_id)
            kinds: dict[bool | None, list[str]] = {}
            for text in texts:
                begun = special is None and text.startswith(first)
                kinds.setdefault(False if begun else special, []).append(text)
            found: dict[str, list[int]] = {}
            for add, some in kinds.items():
                how = {} if add is None else {"add_special_tokens": add}
                found |= zip(some, self.tokenizer(some, return_attention_mask=False, **how).input_ids, strict=True)
            return found

    return ScorerModel()


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at a context's end go to what follows, where they are part of a token (the harness's rule)."""
    bare = context.rstrip()
    return (bare, context[len(bare) :] + continuation) if context else (context, continuation)


def _wanted(given: dict[str, Any], end: str) -> dict[str, Any]:
    """A task's ``generation_kwargs`` as arguments of ``Scorer.generate``, read as by the harness's vLLM model."""
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    wanted: dict[str, Any] = dict(normalize_gen_kwargs(given, default_max_gen_toks=MAX_TOKENS))
    wanted["stop"] = handle_stop_sequences(wanted.pop("until", None), eos=end or None)
    wanted["max_tokens"] = int(wanted.pop("max_gen_toks"))
    del wanted["do_sample"]  # the temperature says it
    return {"skip_special_tokens": False, "spaces_between_special_tokens": False} | wanted


def _slices(items: Sequence[Item]) -> Iterable[Sequence[Item]]:
    return (items[at : at + SLICE] for at in range(0, len(items), SLICE))
