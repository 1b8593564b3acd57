"""Any endpoint that speaks OpenAI's protocol: a vLLM server that runs already, or somebody's service."""

import json
import math
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import EngineOptions, Recipe
from hala_hpc.engines.base import Abilities, Completion, EngineUnreachable, Request, ambiguous

SHARED = ("temperature", "top_p", "frequency_penalty", "seed")
"""What requests and the protocol call by one name."""
LISTED = 20
"""Tokens whose log-probabilities are asked for, to find choices among them: the most that OpenAI and vLLM give."""
NEVER = (400, 413, 422)
"""HTTP states with which this very request will never succeed."""
MOMENTARY = (408, 409, 425, 429, 502, 503, 504)
"""HTTP states of a server that is busy or away. Others below 500 (a wrong key, no such model) hold for all requests
until a person mends it; 500 and the like may be the request's own."""
HINTS = {
    401: "the key is read from the environment variable that engine.key_variable names",
    403: "may this key use this model? (engine.key_variable, model.name)",
    404: "is engine.url complete (…/v1), and model.name as the endpoint's /v1/models has it?",
}

ABILITIES = Abilities(weighs_choices=True)


@dataclass
class Options(EngineOptions):
    """The recipe's ``engine:`` section for ``kind: openai``. The key itself is never written down."""

    kind: str = "openai"
    url: str = "http://127.0.0.1:8000/v1"
    key_variable: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key, if one is needed
    concurrency: int = 64
    timeout_seconds: float = 600.0
    retries: int = 8  # of one request to a busy, broken or absent server, waiting longer each time
    patience_seconds: float = 1800.0  # that the worker then waits for it to come back, before it ends


class OpenAI:
    """See the module. Each request waits in a thread of its own; ``concurrency`` of them at once."""

    def __init__(self, recipe: Recipe) -> None:
        import openai

        options: Options = recipe.engine
        self._errors = openai
        self._template = dict(recipe.model.chat_template_kwargs)
        self._model, self._url, self._patience = recipe.model.name, options.url, options.patience_seconds
        self._client = openai.OpenAI(
            base_url=options.url,
            api_key=os.environ.get(options.key_variable) or "none",
            timeout=options.timeout_seconds,
            max_retries=options.retries,
        )
        self._waiting: queue.SimpleQueue[tuple[str, Request] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        self._closed = False
        self.capacity = options.concurrency
        # Not a ThreadPoolExecutor: Python would wait at exit for what a silent server still owes us.
        for _ in range(options.concurrency):
            threading.Thread(target=self._serve, name="openai", daemon=True).start()

    def add(self, id: str, request: Request) -> None:
        self._waiting.put((id, request))

    def poll(self, seconds: float) -> list[Completion]:
        done: list[Completion] = []
        try:
            item = self._done.get(timeout=seconds)
            while True:
                if isinstance(item, Exception):
                    if done:  # these are paid for; the next call raises
                        self._done.put(item)
                        return done
                    raise item
                done.append(item)
                item = self._done.get_nowait()
        except queue.Empty:
            return done

    def close(self) -> None:
        self._closed = True
        for _ in range(self.capacity):
            self._waiting.put(None)
        self._client.close()

    def _serve(self) -> None:
        """Put completions, and what the main thread is to raise, into the queue."""
        while (item := self._waiting.get()) is not None and not self._closed:
            try:
                self._done.put(self._answer(*item))
            except Exception as error:  # noqa: BLE001 (also answers of no known form: a gateway's page, for example)
                self._done.put(self._judged(item[0], error))

    def _judged(self, id: str, error: Any) -> Completion | Exception:
        """What an error means: of HTTP, of the connection, or anything else."""
        if isinstance(error, HalaError):
            return error
        if not isinstance(error, self._errors.APIStatusError):
            is_away = isinstance(error, self._errors.APIConnectionError)
            is_own = not is_away or isinstance(error, self._errors.APITimeoutError)
            return self._unreachable(error, id if is_own else None)
        status: int = error.status_code
        if status in NEVER:
            return Completion(id, error=f"bad request: {error.message}")
        if status in MOMENTARY or status >= 500:
            return self._unreachable(error, None if status in MOMENTARY else id)
        message = f"engine.url: {self._url} refuses every request ({status}): {error.message}"
        return HalaError(message, HINTS.get(status, ""))

    def _unreachable(self, error: Exception, request: str | None) -> EngineUnreachable:
        message = " ".join(f"{self._url}: {type(error).__name__}: {error}".split())[:500]
        return EngineUnreachable(message, self._patience, request)

    def _answer(self, id: str, request: Request) -> Completion:
        params: Any = {name: getattr(request, name) for name in SHARED} | {"model": self._model}
        params |= {"max_tokens": request.max_tokens} if request.max_tokens is not None else {}
        params |= {"stop": list(request.stop)} if request.stop else {}
        extra: dict[str, object] = {}  # vLLM's own; others may refuse them
        if request.top_k or request.repetition_penalty != 1.0:
            extra |= {"top_k": request.top_k or -1, "repetition_penalty": request.repetition_penalty}
        thought = None
        is_bare = isinstance(request.prompt, str)
        if request.choices:
            params |= {"max_tokens": 1}
            params |= {"logprobs": LISTED} if is_bare else {"logprobs": True, "top_logprobs": LISTED}
        if request.schema:  # beside ``stop``: not every endpoint enforces it, and such an answer has no other end
            schema = {"name": "answer", "schema": json.loads(request.schema), "strict": True}
            extra |= {"response_format": {"type": "json_schema", "json_schema": schema}}
        if isinstance(request.prompt, str):
            answer: Any = self._client.completions.create(prompt=request.prompt, extra_body=extra or None, **params)
            text = answer.choices[0].text
        else:
            messages: Any = [asdict(message) for message in request.prompt]
            extra |= {"chat_template_kwargs": self._template} if self._template else {}
            answer = self._client.chat.completions.create(messages=messages, extra_body=extra or None, **params)
            message = answer.choices[0].message
            text = message.content
            # Servers with a reasoning parser have taken the thought off by themselves.
            thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
        usage = answer.usage
        read, wrote = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        if request.choices:
            return _chosen(Completion(id, "", "stop", read, wrote, thought=bool(thought)), answer.choices[0], request)
        error = "thinking: the model thought and wrote nothing else" if thought and not text else None
        finish = answer.choices[0].finish_reason or ""
        return Completion(id, text or "", finish, read, wrote, error=error, thought=bool(thought))


def _chosen(completion: Completion, answer: Any, request: Request) -> Completion:
    """The likeliest choice, by the first token of an answer; with an error where the endpoint lists none of them.

    Tokens count with a space around them, too. Raises HalaError where one choice begins another.
    """
    listed = _listed(answer.logprobs)
    if listed is None:
        problem = "no log-probabilities: the endpoint gives none (logprobs)"
        return replace(completion, error=problem)
    found: dict[str, list[float]] = {choice: [] for choice in request.choices}
    for token, logprob in listed.items():
        begun = [choice for choice in request.choices if token.strip() and choice.startswith(token.strip())]
        if len(begun) > 1 and token.strip() in begun:
            raise ambiguous(request.choices, token)
        if len(begun) == 1:  # a first letter of several says nothing
            found[begun[0]].append(logprob)
    weights = tuple(math.log(sum(map(math.exp, own))) if own else -math.inf for own in found.values())
    if max(weights) == -math.inf:
        problem = f"no choice: none of the {len(request.choices)} answers is among the {len(listed)} likeliest tokens"
        return replace(completion, error=problem)
    return replace(completion, text=request.choices[weights.index(max(weights))], weights=weights)


def _listed(logprobs: Any) -> Mapping[str, float] | None:
    """The likeliest first tokens with their log-probabilities, of either endpoint; None where it gives none."""
    if content := getattr(logprobs, "content", None):
        return {entry.token: entry.logprob for entry in content[0].top_logprobs} or None
    listed: Any = getattr(logprobs, "top_logprobs", None)
    return listed[0] if listed else None


def check(recipe: Recipe) -> None:
    """Refuse a recipe without a model's name or with no URL, and bare prompts without a limit. Raises HalaError."""
    if not recipe.model.name:
        raise HalaError("model.name: which model does the endpoint serve?")
    if recipe.engine.concurrency < 1:
        raise HalaError(f"engine.concurrency: {recipe.engine.concurrency}: must be at least 1")
    if not recipe.engine.url.startswith(("http://", "https://")):
        raise HalaError(f"engine.url: '{recipe.engine.url}' is not an http address")
    if recipe.sampling.max_tokens is None and not getattr(recipe.task, "chat", True):
        raise HalaError(
            "sampling.max_tokens: null, with bare prompts (task.chat: false): endpoints then write 16 tokens at most",
            "set sampling.max_tokens to what the longest answer may have, for example 2048",
        )
    if recipe.engine.patience_seconds < 0:
        raise HalaError(f"engine.patience_seconds: {recipe.engine.patience_seconds}: must be at least 0")


start = OpenAI
"""Connects; nothing is sent yet."""
