"""Any endpoint that speaks OpenAI's protocol: a vLLM server that runs already, or somebody's service."""

import os
import queue
import threading
from dataclasses import asdict, dataclass
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import EngineOptions, Recipe
from hala_hpc.engines.base import Completion, EngineDied, Request

NEVER = (400, 413, 422)
"""HTTP states by which this very request will never succeed. Others (a wrong key, no such model) hold for them all."""


@dataclass
class Options(EngineOptions):
    """The recipe's ``engine:`` section for ``kind: openai``. The key itself is never written down."""

    kind: str = "openai"
    url: str = "http://127.0.0.1:8000/v1"
    key_variable: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key, if one is needed
    concurrency: int = 64
    timeout_seconds: float = 600.0
    retries: int = 8  # of busy, broken or absent servers, waiting longer each time; then the worker stops


class OpenAI:
    """See the module. Each request waits in a thread of its own; ``concurrency`` of them at once."""

    def __init__(self, recipe: Recipe) -> None:
        import openai

        options: Options = recipe.engine
        self._errors = openai
        self._model = recipe.model.name
        self._client = openai.OpenAI(
            base_url=options.url,
            api_key=os.environ.get(options.key_variable) or "none",
            timeout=options.timeout_seconds,
            max_retries=options.retries,
        )
        self._asked: queue.SimpleQueue[tuple[str, Request] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        self._closed = False
        self.capacity = options.concurrency
        # Not a ThreadPoolExecutor: Python would wait at exit for what a silent server still owes us.
        for _ in range(options.concurrency):
            threading.Thread(target=self._serve, name="openai", daemon=True).start()

    def add(self, id: str, request: Request) -> None:
        self._asked.put((id, request))

    def poll(self, seconds: float) -> list[Completion]:
        done: list[Completion] = []
        try:
            item = self._done.get(timeout=seconds)
            while True:
                if isinstance(item, Exception):
                    if done:  # these are paid for; the end is told by the next call
                        self._done.put(item)
                        return done
                    raise EngineDied(f"{type(item).__name__}: {item}") from item
                done.append(item)
                item = self._done.get_nowait()
        except queue.Empty:
            return done

    def close(self) -> None:
        self._closed = True
        for _ in range(self.capacity):
            self._asked.put(None)
        self._client.close()

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None and not self._closed:
            self._send(*asked)

    def _send(self, id: str, request: Request) -> None:
        """Put a completion, or the exception that ends the engine, into the queue."""
        try:
            self._done.put(self._answer(id, request))
        except self._errors.APIStatusError as error:
            if error.status_code in NEVER:
                self._done.put(Completion(id, error=f"bad request: {error.message}"))
            else:
                self._done.put(error)
        except Exception as error:  # noqa: BLE001 (a thread has nobody above it: the main thread raises it)
            self._done.put(error)

    def _answer(self, id: str, request: Request) -> Completion:
        common: dict[str, Any] = {
            "model": self._model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "frequency_penalty": request.frequency_penalty,
            "max_tokens": request.max_tokens,
            "stop": list(request.stop) or None,
            "seed": request.seed,
        }
        common = {key: value for key, value in common.items() if value is not None}
        if request.top_k or request.repetition_penalty != 1.0:  # vLLM's own; others may refuse them
            common["extra_body"] = {"top_k": request.top_k or -1, "repetition_penalty": request.repetition_penalty}
        answer: Any
        if isinstance(request.prompt, str):
            answer = self._client.completions.create(prompt=request.prompt, **common)
            text = answer.choices[0].text
        else:
            messages: Any = [asdict(message) for message in request.prompt]
            answer = self._client.chat.completions.create(messages=messages, **common)
            text = answer.choices[0].message.content
        usage = answer.usage
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Completion(id, text or "", answer.choices[0].finish_reason or "", *counts)


def check(recipe: Recipe) -> None:
    """Refuse a recipe without a model's name or with no URL. Raises HalaError."""
    if not recipe.model.name:
        raise HalaError("model.name: which model does the endpoint serve?")
    if recipe.engine.concurrency < 1:
        raise HalaError("engine.concurrency: at least 1")
    if not recipe.engine.url.startswith(("http://", "https://")):
        raise HalaError(f"engine.url: '{recipe.engine.url}' is no http address")


def start(recipe: Recipe) -> OpenAI:
    """Connect; nothing is sent yet."""
    return OpenAI(recipe)
