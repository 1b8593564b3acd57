"""One engine for all harnesses: log-probabilities of given texts, and generated texts, for tokens."""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import EngineOptions, Model, Recipe, Site
from hala_hpc.engines.base import TokenRequest, outputs_of
from hala_hpc.models import location
from hala_hpc.run.appending import Answers

MOST_BRANCHES: Final = 128
"""Tokens whose log-probabilities vLLM tells at one place (its ``MAX_LOGPROB_TOKEN_IDS``)."""
WRITTEN: Final = -1
"""In place of a position in the prompt: what is asked for comes after it."""
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
class Counts:
    """What a scorer did: requests to the engine, answers that an earlier attempt had kept, tokens, contexts cut."""

    requests: int
    remembered: int
    prompt_tokens: int
    output_tokens: int
    truncated: int

    def since(self, before: "Counts") -> "Counts":
        """The difference."""
        return Counts(**{name: getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__})

    @property
    def fresh(self) -> float:
        """Share of the answers that the engine gave just now."""
        return self.requests / max(1, self.requests + self.remembered)


@dataclass(frozen=True)
class _Request:
    """What vLLM is asked: ``tokens`` and its own ``params``. ``after``: the token from which on they are the answer."""

    tokens: tuple[int, ...]
    params: dict[str, Any]
    read: Callable[["_Request", Any], Any]
    after: int = WRITTEN

    @property
    def key(self) -> str:
        """Equal for requests with the same answer."""
        text = json.dumps([self.tokens, self.params, self.after], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


_Answers = dict[tuple[tuple[int, ...], int], Any]
"""Answers to the requests of ONE context, by their ``tokens`` and ``after``. Another context may ask at the same place
for other tokens: where it is this one and the beginning of an answer."""
_Fitted = tuple[tuple[int, ...], tuple[int, ...], int]
"""A pair that fits the model, and how many tokens were cut from its context."""


def _pass() -> None:
    """Nobody asks to stop."""


class Scorer:
    """An engine with one model.

    Parameters
    ----------
    model : the model's folder.
    options : the engine's, as in the recipe's ``engine:`` section.
    scratch : for compile caches; None: the system's temporary folder.
    stall_seconds : an engine that answers nothing for so long is taken for dead.
    """

    def __init__(
        self, model: Path, options: EngineOptions, scratch: str | None = None, stall_seconds: float = 1800.0
    ) -> None:
        self._options = options
        recipe = Recipe(name="evaluate", task=None, model=Model(str(model)), engine=options, site=Site(scratch=scratch))
        self._engine = engines.start_for_tokens(recipe)
        self._stall_seconds = stall_seconds
        self.requests = self.remembered = self.prompt_tokens = self.output_tokens = self.truncated = 0

    @property
    def tokenizer(self) -> Any:
        """The model's, a transformers tokenizer."""
        return self._engine.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens of a context and what follows it together; one is left for vLLM to write."""
        return self._engine.context - 1

    def about(self) -> dict[str, Any]:
        """How the engine was started, for the record of a result."""
        kind, version = self._options.kind, self._engine.version
        return {"kind": kind, "version": version, "max_length": self.max_length} | {
            key: value
            for key, value in asdict(self._options).items()
            if key not in ("kind", "arguments") and value is not None
        }

    def counts(self) -> Counts:
        """What was done so far."""
        return Counts(**{name: getattr(self, name) for name in Counts.__dataclass_fields__})

    def close(self) -> None:
        """Free the device, so that another model's engine may start in this process."""
        self._engine.close()

    def log_probabilities(
        self,
        pairs: Sequence[Pair],
        kept: Path | None = None,
        check_stop: Callable[[], None] = _pass,
        tell: Callable[[str], None] = lambda _: None,
    ) -> list[Scored]:
        """How likely each continuation is after its context, in the order of ``pairs``.

        Contexts that do not fit lose their beginning. Answers are kept in the folder ``kept``, and taken from there.

        Raises
        ------
        HalaError : a continuation that does not fit even alone.
        ValueError : an empty context.
        EngineDied : the engine is gone; the answers so far are kept.
        """
        cut = [self._fitted(*pair) for pair in pairs]
        self.truncated += sum(over > 0 for _, _, over in cut)
        return _scored(cut, lambda requests: self._answers(requests, kept, check_stop, tell))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
        kept: Path | None = None,
        check_stop: Callable[[], None] = _pass,
        tell: Callable[[str], None] = lambda _: None,
        **params: Any,
    ) -> list[str]:
        """What the model writes after each prompt, up to and without the first of ``stop``.

        Prompts that leave no room for ``max_tokens`` lose their beginning. ``params`` are further ones of vLLM's
        ``SamplingParams`` (top_p, min_tokens …). Raises as ``log_probabilities``.
        """
        room = self._engine.context - max_tokens
        if room < 1:
            raise HalaError(f"{max_tokens} tokens to write do not fit a context of {self._engine.context}")
        asked = {"max_tokens": max_tokens, "stop": list(stop), "temperature": temperature} | params
        if temperature > 0:
            asked["seed"] = seed
        self.truncated += sum(len(prompt) > room for prompt in prompts)
        requests = [_Request(tuple(prompt[-room:]), asked, _text) for prompt in prompts]
        return [str(answer) for answer in self._answers(requests, kept, check_stop, tell)]

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

    def _answers(
        self,
        requests: Sequence[_Request],
        folder: Path | None,
        check_stop: Callable[[], None],
        tell: Callable[[str], None],
    ) -> list[Any]:
        """Answers in the order of ``requests``; equal ones are asked once. The engine is kept full throughout."""
        keys, kept = [request.key for request in requests], Answers(folder)
        wanted = {key: request for key, request in zip(keys, requests, strict=True) if key not in kept}
        self.remembered += len(set(keys)) - len(wanted)
        asked = (TokenRequest(key, list(request.tokens), request.params) for key, request in wanted.items())
        told = time.monotonic()
        with closing(kept), closing(outputs_of(self._engine, asked, check_stop, self._stall_seconds)) as outputs:
            for number, output in enumerate(outputs, 1):
                request = wanted[output.request_id]
                kept.add(output.request_id, request.read(request, output))
                self._count(output)
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    tell(f"{number:,} of {len(wanted):,} requests")
        return [kept[key] for key in keys]

    def _count(self, output: Any) -> None:
        self.requests += 1
        self.prompt_tokens += len(output.prompt_token_ids or ())
        self.output_tokens += sum(len(each.token_ids) for each in output.outputs)


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
    one = {"max_tokens": 1, "detokenize": False}
    if len(branches) <= len(continuations) and max(map(len, branches.values()), default=0) <= MOST_BRANCHES:
        return [
            _Request(context + before, one | {"logprob_token_ids": sorted(tokens)}, _branches)
            for before, tokens in branches.items()
        ]
    return [
        _Request(context + continuation, one | {"prompt_logprobs": 0}, _continuation, len(context))
        for continuation in continuations
        if continuation
    ]


def _score(context: tuple[int, ...], continuation: tuple[int, ...], found: _Answers) -> tuple[float, bool]:
    """Sum of log-probabilities and whether it is greedy, from the answers to this context's ``_requests``."""
    if (whole := found.get((context + continuation, len(context)))) is not None:
        return whole[0], whole[1]
    total, is_greedy = 0.0, True
    for at, token in enumerate(continuation):
        likeliest, likely = found[context + continuation[:at], WRITTEN]
        total += likely[str(token)]
        is_greedy &= likeliest == token
    return total, is_greedy


def _branches(request: _Request, output: Any) -> tuple[int, dict[str, float]]:
    """The likeliest next token, and the log-probabilities of those asked for (as text: JSON has no other keys)."""
    written = output.outputs[0]
    likely = written.logprobs[0]
    return written.token_ids[0], {str(token): likely[token].logprob for token in request.params["logprob_token_ids"]}


def _continuation(request: _Request, output: Any) -> tuple[float, bool]:
    """Of the prompt's tokens from ``after`` on. vLLM's rank of a token is 1 for the likeliest."""
    places = zip(request.tokens[request.after :], output.prompt_logprobs[request.after :], strict=True)
    told = [place[token] for token, place in places]
    return sum(each.logprob for each in told), all(each.rank == 1 for each in told)


def _text(request: _Request, output: Any) -> str:
    del request
    text: str = output.outputs[0].text
    return text


KINDS: Final = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""Files that decide what a model says; a card may change at any time."""


class Loaded:
    """Keeps an engine as long as the same model is asked for."""

    def __init__(self, options: EngineOptions, scratch: str | None, stall_seconds: float) -> None:
        self._how = (options, scratch, stall_seconds)
        self._scorer: Scorer | None = None
        self._weights = ""

    def scorer(self, path: Path, weights: str, check_stop: Callable[[], None], tell: Callable[[str], None]) -> Scorer:
        """An engine with the model in ``path`` whose digest is ``weights``.

        Raises HalaError where the files are others, or were written over while they were loaded.
        """
        if self._scorer is not None and self._weights == weights:
            return self._scorer
        self.close()
        tell("reading the weights")
        before = _stamps(path)
        changed = HalaError(
            f"{path} has changed since the run was planned", "plan another run: no score fits two models"
        )
        if location.digest(path, lambda _: check_stop()) != weights:
            raise changed
        tell("starting the engine")
        began = time.monotonic()
        self._scorer = Scorer(path, *self._how)
        tell(f"the engine took {time.monotonic() - began:.0f} s to start")
        if not before.items() <= _stamps(path).items():
            raise changed
        self._weights = weights
        check_stop()
        return self._scorer

    def close(self) -> None:
        """Free the device."""
        scorer, self._scorer, self._weights = self._scorer, None, ""
        if scorer is not None:
            scorer.close()


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times by name; links of the hub's cache are followed."""
    found = {file.name: file.stat() for file in folder.iterdir() if file.suffix in KINDS}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}
