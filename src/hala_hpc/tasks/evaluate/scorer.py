"""One engine for all harnesses: log-probabilities of given texts, and generated texts, for tokens."""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.engines.base import TokenRequest, outputs_of
from hala_hpc.run.appending import Answers

MOST_BRANCHES: Final = 128
"""Tokens whose log-probabilities vLLM returns at one place (its ``MAX_LOGPROB_TOKEN_IDS``)."""
WRITTEN: Final = -1
"""Stands for a position in the prompt where the answer comes after it."""
TELL_SECONDS: Final = 5.0

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, which has at least one, and of what may follow it."""


@dataclass(frozen=True)
class Scored:
    """Sum of a continuation's log-probabilities (natural), and whether each of its tokens is the likeliest there.

    ``truncated`` tokens were cut from the context's beginning, for the whole did not fit the model.
    """

    sum: float
    is_greedy: bool
    truncated: int = 0


@dataclass(frozen=True)
class Attempt:
    """How one attempt at a benchmark is run.

    ``kept`` is the folder of its answers, where the next attempt finds them; None: they stay in memory. ``check_stop``
    raises where the attempt must end, ``tell`` is called with its progress.
    """

    kept: Path | None = None
    check_stop: Callable[[], None] = lambda: None
    tell: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Decoding:
    """How texts are generated: up to and without the first of ``stop``, ``max_tokens`` at most.

    ``params`` are further ones of vLLM's ``SamplingParams`` (top_p, min_tokens …); ``seed`` counts above temperature 0.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)

    def of_vllm(self) -> dict[str, Any]:
        """All of it as vLLM's ``SamplingParams`` names it."""
        seed = {"seed": self.seed} if self.temperature > 0 else {}
        given = {"max_tokens": self.max_tokens, "stop": list(self.stop), "temperature": self.temperature}
        return given | dict(self.params) | seed


@dataclass
class Counts:
    """What a scorer did: requests to the engine, answers that an earlier attempt had kept, tokens, contexts cut."""

    requests: int = 0
    remembered: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    truncated: int = 0

    @property
    def fresh(self) -> float:
        """Share of the answers that the engine gave just now."""
        return self.requests / max(1, self.requests + self.remembered)


@dataclass(frozen=True)
class _Request:
    """What vLLM is asked: ``tokens`` and its own ``params``. The tokens from ``after`` on are the answer."""

    tokens: tuple[int, ...]
    params: dict[str, Any]
    after: int = WRITTEN

    @property
    def key(self) -> str:
        """Equal for requests with the same answer."""
        text = json.dumps([self.tokens, self.params, self.after], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


_Answers = dict[tuple[tuple[int, ...], int], Any]
"""Answers to the requests of ONE context, by their ``tokens`` and ``after``. Another context may ask for other tokens
at the same place: where it is this context and the beginning of an answer."""
_Fitted = tuple[tuple[int, ...], tuple[int, ...], int]
"""A pair that fits the model, and how many tokens were cut from its context."""


class Scorer:
    """The engine of a recipe, with its model; ``counts`` is what it did since somebody set them anew.

    One that answers nothing for ``run.stall_seconds`` counts as dead.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._engine = engines.start_for_tokens(recipe)
        self.tokenizer: Any = self._engine.tokenizer  # of transformers
        self.max_length = self._engine.context - 1
        """Most tokens of a context with what follows it; one more is left for vLLM to write."""
        self.counts = Counts()

    def about(self) -> dict[str, Any]:
        """How the engine was started, for the record of a result."""
        options = asdict(self._recipe.engine)
        start = {"kind": options.pop("kind"), "version": self._engine.version, "max_length": self.max_length}
        return start | {key: value for key, value in options.items() if key != "arguments" and value is not None}

    def close(self) -> None:
        """Free the device, so that another model's engine may start in this process."""
        self._engine.close()

    def log_probabilities(self, pairs: Sequence[Pair], attempt: Attempt = Attempt()) -> list[Scored]:
        """How likely each continuation is after its context, in the order of ``pairs``.

        Contexts that do not fit lose their beginning.

        Raises
        ------
        HalaError : a continuation that does not fit even alone.
        ValueError : an empty context.
        EngineDied : the engine is gone; the answers so far are kept.
        """
        fitted = [self._fitted(*pair) for pair in pairs]
        self.counts.truncated += sum(over > 0 for _, _, over in fitted)
        return _scored(fitted, lambda requests: self._answers(requests, attempt))

    def generate(self, prompts: Sequence[tuple[Sequence[int], Decoding]], attempt: Attempt = Attempt()) -> list[str]:
        """What the model writes after each prompt. Prompts that leave no room lose their beginning.

        Raises as ``log_probabilities``.
        """
        requests = []
        for prompt, decoding in prompts:
            room = self._engine.context - decoding.max_tokens
            if room < 1:
                raise HalaError(f"{decoding.max_tokens} tokens to write do not fit a context of {self._engine.context}")
            self.counts.truncated += len(prompt) > room
            requests.append(_Request(tuple(prompt[-room:]), decoding.of_vllm()))
        return [str(text) for text in self._answers(requests, attempt)]

    def _fitted(self, context: Sequence[int], continuation: Sequence[int]) -> _Fitted:
        if not context:
            raise ValueError("a continuation's first token has no probability without a context")
        over = max(0, len(context) + len(continuation) - self.max_length)
        if over >= len(context):
            raise HalaError(
                f"an answer of {len(continuation)} tokens does not fit a context of {self._engine.context}",
                "a larger engine.max_model_len, if the model has it",
            )
        return tuple(context[over:]), tuple(continuation), over

    def _answers(self, requests: Sequence[_Request], attempt: Attempt) -> list[Any]:
        """Answers in the order of ``requests``; equal ones are asked once. The engine is kept full throughout."""
        keys, kept = [request.key for request in requests], Answers(attempt.kept, self._recipe.run.flush_seconds)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in kept}
        self.counts.remembered += len(set(keys)) - len(missing)
        handed_in = (TokenRequest(key, list(request.tokens), request.params) for key, request in missing.items())
        answered = outputs_of(self._engine, handed_in, attempt.check_stop, self._recipe.run.stall_seconds)
        last_told = time.monotonic()
        with closing(kept), closing(answered) as outputs:
            for number, output in enumerate(outputs, 1):
                kept.add(output.request_id, _answer(missing[output.request_id], output))
                self.counts.requests += 1
                self.counts.prompt_tokens += len(output.prompt_token_ids or ())
                self.counts.output_tokens += sum(len(written.token_ids) for written in output.outputs)
                if time.monotonic() - last_told > TELL_SECONDS:
                    last_told = time.monotonic()
                    attempt.tell(f"{number:,} of {len(missing):,} requests")
        return [kept[key] for key in keys]


def _scored(pairs: Sequence[_Fitted], ask: Callable[[list[_Request]], list[Any]]) -> list[Scored]:
    """Each pair's score; ``ask`` answers requests in their order."""
    groups: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for context, continuation, _ in pairs:
        groups.setdefault(context, set()).add(continuation)
    requests = [(context, request) for context, follow in groups.items() for request in _requests(context, follow)]
    answers: dict[tuple[int, ...], _Answers] = {context: {} for context in groups}
    for (context, request), answer in zip(requests, ask([request for _, request in requests]), strict=True):
        answers[context][request.tokens, request.after] = answer
    return [Scored(*_score(context, follow, answers[context]), truncated) for context, follow, truncated in pairs]


def _requests(context: tuple[int, ...], continuations: Collection[tuple[int, ...]]) -> list[_Request]:
    """What to ask to know each continuation after one context: a tree of next tokens, or each as a prompt."""
    branches: dict[tuple[int, ...], set[int]] = {}
    for continuation in continuations:
        for at, token in enumerate(continuation):
            branches.setdefault(continuation[:at], set()).add(token)
    one_token = {"max_tokens": 1, "detokenize": False}
    if len(branches) <= len(continuations) and max(map(len, branches.values()), default=0) <= MOST_BRANCHES:
        return [
            _Request(context + before, one_token | {"logprob_token_ids": sorted(tokens)})
            for before, tokens in branches.items()
        ]
    return [
        _Request(context + continuation, one_token | {"prompt_logprobs": 0}, len(context))
        for continuation in continuations
        if continuation
    ]


def _score(context: tuple[int, ...], continuation: tuple[int, ...], answers: _Answers) -> tuple[float, bool]:
    """Sum of log-probabilities and whether it is greedy, from the answers to this context's ``_requests``."""
    if (whole := answers.get((context + continuation, len(context)))) is not None:
        return whole[0], whole[1]
    total, is_greedy = 0.0, True
    for at, token in enumerate(continuation):
        likeliest, logprobs = answers[context + continuation[:at], WRITTEN]
        total += logprobs[str(token)]
        is_greedy &= likeliest == token
    return total, is_greedy


def _answer(request: _Request, output: Any) -> Any:
    """What is kept of vLLM's output, in JSON.

    Of a prompt's own tokens: the sum of their log-probabilities, and whether each is the likeliest (rank 1). Of next
    tokens: the likeliest, and the log-probabilities of those asked for, by token (as text: JSON has no other keys).
    Else the text.
    """
    written = output.outputs[0]
    if request.after != WRITTEN:
        places = zip(request.tokens[request.after :], output.prompt_logprobs[request.after :], strict=True)
        logprobs = [place[token] for token, place in places]
        return sum(token.logprob for token in logprobs), all(token.rank == 1 for token in logprobs)
    if tokens := request.params.get("logprob_token_ids"):
        return written.token_ids[0], {str(token): written.logprobs[0][token].logprob for token in tokens}
    return written.text
