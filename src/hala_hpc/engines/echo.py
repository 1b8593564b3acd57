"""A deterministic engine for tests and dry runs: it answers each prompt with its last message, in angle quotes.

Among choices it takes one by a digest of the last message; for a JSON schema it writes the least that fulfils it, with
the last message as every text. What a user says is the last message and the request's seed. On request it is slow,
fails or dies, so that everything around an engine can be tried without a model.
"""

import hashlib
import json
import math
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import PATH, EngineOptions, Recipe
from hala_hpc.engines.base import Abilities, Completion, EngineDied, EngineUnreachable, Request

ABILITIES = Abilities(weighs_choices=True, writes_users=True)


@dataclass
class Options(EngineOptions):
    """The recipe's ``engine:`` section for ``kind: echo``. Texts to fail on are looked for in the prompt."""

    kind: str = "echo"
    capacity: int = 64
    seconds: float = 0.0  # that each request takes; ``capacity`` of them run side by side
    start_seconds: float = 0.0
    max_characters: int = 100_000  # of a prompt; a longer one is refused, as a model's context would
    fail_on: str | None = None  # a request that holds this fails
    cut_on: str | None = None  # … is cut off, as by max_tokens; of JSON half is written
    die_on: str | None = None  # … kills the whole process
    crash_on: str | None = None  # … ends the engine, not the process
    away_on: str | None = None  # … is not answered, as if the engine were out of reach
    away: str | None = field(default=None, metadata=PATH)  # while there is such a file, it is out of reach
    broken: str | None = field(default=None, metadata=PATH)  # while there is such a file, no engine starts
    patience_seconds: float = 1800.0  # that an engine out of reach is waited for
    log: str | None = field(default=None, metadata=PATH)  # every prompt is appended to this file
    answered: str | None = field(default=None, metadata=PATH)  # … once it is answered, to this one


class Echo:
    """See the module."""

    def __init__(self, options: Options) -> None:
        time.sleep(options.start_seconds)
        if options.broken and Path(options.broken).exists():
            raise RuntimeError(f"{options.broken} is there")
        self.capacity = options.capacity
        self._options = options
        self._held: deque[tuple[float, str, Request]] = deque()

    def add(self, id: str, request: Request) -> None:
        _note(self._options.log, request)
        self._held.append((time.monotonic() + self._options.seconds, id, request))

    def poll(self, seconds: float) -> list[Completion]:
        if self._held:
            time.sleep(min(seconds, max(0.0, self._held[0][0] - time.monotonic())))
        if self._held and self._options.away and Path(self._options.away).exists():
            raise EngineUnreachable(f"{self._options.away} is there", self._options.patience_seconds)
        done = []
        while self._held and self._held[0][0] <= time.monotonic():
            _, id, request = self._held.popleft()
            done.append(self._answer(id, request))
            _note(self._options.answered, request)
        return done

    def close(self) -> None:
        self._held.clear()

    def _answer(self, id: str, request: Request) -> Completion:
        options, text = self._options, request.last
        if options.die_on and options.die_on in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.crash_on and options.crash_on in text:
            raise EngineDied(f"crash_on: {options.crash_on}")
        if options.away_on and options.away_on in text:
            raise EngineUnreachable(f"away_on: {options.away_on}", options.patience_seconds, id)
        if options.fail_on and options.fail_on in text:
            return Completion(id, error=f"failed: fail_on '{options.fail_on}'")
        if len(text) > options.max_characters:
            return Completion(id, error=f"too long: {len(text)} characters, at most {options.max_characters}")
        cut = bool(options.cut_on and options.cut_on in text)
        finish, tokens = "length" if cut else "stop", len(text.split())
        if request.choices:
            weights = _weights(text, request.choices)
            return Completion(id, request.choices[weights.index(max(weights))], finish, tokens, 1, weights=weights)
        if request.schema:
            whole = json.loads(request.schema)
            written = json.dumps(_least(whole, whole, text), ensure_ascii=False)
            return Completion(id, written[: len(written) // 2] if cut else written, finish, tokens, tokens)
        said = text if request.speaker == "assistant" else f"{text} {request.seed}".strip()
        return Completion(id, f"«{said}»", finish, tokens, tokens)


def _note(file: str | None, request: Request) -> None:
    if file:
        with Path(file).open("a") as log:
            log.write(f"{request.last!r}\n")


def _weights(text: str, choices: tuple[str, ...]) -> tuple[float, ...]:
    """Log-probabilities that sum to 1, from digests of the text with each choice."""
    digests = (hashlib.blake2b(f"{choice}\n{text}".encode(), digest_size=4).digest() for choice in choices)
    parts = [1 + int.from_bytes(digest, "big") for digest in digests]
    return tuple(math.log(part / sum(parts)) for part in parts)


def _least(schema: Any, whole: Any, text: str) -> Any:
    """The least that fulfils the usual kinds of schema; ``whole`` holds what ``$ref`` refers to."""
    if "$ref" in schema:
        inner = whole
        for name in schema["$ref"].removeprefix("#/").split("/"):
            inner = inner[name]
        return _least(inner, whole, text)
    for key in ("anyOf", "oneOf", "enum"):
        if key in schema:
            return schema[key][0] if key == "enum" else _least(schema[key][0], whole, text)
    kinds: dict[str, Any] = {
        "object": {
            name: _least(schema.get("properties", {})[name], whole, text) for name in schema.get("required", ())
        },
        "array": [_least(item, whole, text) for item in _items(schema)],
        "integer": schema.get("minimum", 0),
        "number": schema.get("minimum", 0),
        "boolean": False,
        "null": None,
    }
    return schema.get("const", kinds.get(schema.get("type"), text))


def _items(schema: Any) -> list[Any]:
    """The schemas of the fewest items that a list may have: the first ones may have their own."""
    count, own = schema.get("minItems", 0), schema.get("prefixItems", [])
    return [*own[:count], *[schema.get("items", {})] * (count - len(own))]


def check(recipe: Recipe) -> None:
    """Refuse a capacity below 1. Raises HalaError."""
    if recipe.engine.capacity < 1:
        raise HalaError(f"engine.capacity: {recipe.engine.capacity}: must be at least 1")


def start(recipe: Recipe) -> Echo:
    """The engine of a recipe."""
    return Echo(recipe.engine)
