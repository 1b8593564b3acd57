"""The contract between a worker and whatever generates text."""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Sampling

POLL_SECONDS: Final = 0.5
"""How long an engine is waited for before the worker checks whether to stop."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat prompt."""

    role: str
    content: str


Speaker = Literal["assistant", "user"]
SEEDS: Final = 1 << 31
"""How many seeds there are: engines take a signed 32-bit one."""
STRIDE: Final = 2_654_435_761
"""Between the seeds of two numbers: odd, so that none comes twice, and far (2 ** 32 by the golden ratio; Knuth)."""


@dataclass(frozen=True)
class Request:
    """One text to generate. ``prompt`` is a chat (its template is the engine's business) or, as str, the bare text.

    ``span``: which characters of ``last`` are data, where names of control tokens are text; None: all of them.
    ``choices``: the answer is one of these, told apart by their first tokens. ``schema``: the answer fulfils this JSON
    schema, given as JSON text. An engine holds the model to either; at most one of the two is given.
    ``stop``: texts that end the answer, without them. An engine that itself enforces ``schema`` leaves them out: the
    answer ends with the JSON, and a stop word could only cut a text in it; one that only hands the schema on does not.
    ``attempt``: how many answers failed a check before, which is counted. ``speaker``: whose turn the model writes; the
    user's only where the engine can (``Abilities.writes_users``), and then the chat before it may be empty.
    """

    prompt: tuple[Message, ...] | str
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    span: tuple[int, int] | None = None
    choices: tuple[str, ...] = ()
    schema: str = ""
    attempt: int = 0
    speaker: Speaker = "assistant"

    @property
    def last(self) -> str:
        """The text of the last message ('' where there is none), or the bare prompt."""
        if isinstance(self.prompt, str):
            return self.prompt
        return self.prompt[-1].content if self.prompt else ""

    def digest(self) -> bytes:
        """Equal for requests that must get the same text."""
        return hashlib.blake2b(repr(self).encode(), digest_size=16).digest()


def request(
    prompt: tuple[Message, ...] | str,
    sampling: Sampling,
    span: tuple[int, int] | None = None,
    choices: tuple[str, ...] = (),
    schema: str = "",
    speaker: Speaker = "assistant",
    number: int = 0,
) -> Request:
    """A request whose random numbers depend on the recipe's seed, the prompt and ``number`` alone.

    So a resumed run, another batch, or a text taken from the worker's memory all give the text of the unbroken run.
    ``number`` is for requests of one prompt that are to have different answers: no two numbers below ``SEEDS`` give it
    the same seed.
    """
    text = prompt if isinstance(prompt, str) else json.dumps([vars(message) for message in prompt])
    seeded = hashlib.blake2b(f"{sampling.seed}\n{text}".encode(), digest_size=4)
    seed = ((int.from_bytes(seeded.digest(), "big") >> 1) + number * STRIDE) % SEEDS
    drawn = vars(sampling) | {"stop": tuple(sampling.stop), "seed": seed}
    return Request(prompt, span=span, choices=choices, schema=schema, speaker=speaker, **drawn)


@dataclass(frozen=True)
class Completion:
    """What became of a request. ``error`` (as ``reason: detail``) means that this request can never succeed.

    ``opened``: the prompt ended in an opened thought, so the text begins within it. ``escaped``: its data held names of
    control tokens. ``thought``: the model thought before the text; the worker takes that off. ``weights``: of each of
    the request's choices, the log-probability (nats) that the model gives to its first token, before it is held to the
    choices, so that they need not sum to 1; -inf for one that an endpoint does not list, as too unlikely.
    """

    id: str
    text: str = ""
    finish_reason: str = ""  # stop, or length where max_tokens or the context cut it off
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    opened: bool = False
    escaped: bool = False
    thought: bool = False
    weights: tuple[float, ...] = ()


class EngineDied(Exception):
    """The engine is gone with all requests it held, and one of them may have done it; a new one has to be started."""


class EngineUnreachable(Exception):
    """The engine does not answer, by nobody's fault, and may come back within ``patience`` seconds.

    ``request`` is the id of the one that failed, where the failure might still be its own (an endpoint's error 500).
    """

    def __init__(self, message: str, patience: float, request: str | None = None) -> None:
        super().__init__(message)
        self.patience = patience
        self.request = request


class NoEngine(HalaError):
    """No engine can start here, whatever the request: a person has to mend that, and no row or item counts it."""


def ambiguous(choices: tuple[str, ...], token: str) -> HalaError:
    """What to raise where two choices begin with one token, which then says nothing of either."""
    return HalaError(
        f"the model's tokenizer begins two of the answers {', '.join(map(repr, choices))} with one token, {token!r}",
        "answers that differ from the first letter on, for example digits",
    )


class Engine(Protocol):
    """Takes requests at any time, hands back completions as they finish, in any order."""

    capacity: int
    """How many requests in flight keep the engine busy."""

    def add(self, id: str, request: Request) -> None:
        """Hand in a request. Never raises for a bad one: that comes back as a completion with an error.

        Raises EngineDied, and HalaError for what holds for all requests (see ``ambiguous``).
        """

    def poll(self, seconds: float) -> list[Completion]:
        """Completions since the last call; waits up to ``seconds`` for the first.

        Raises EngineDied, EngineUnreachable, and HalaError for what holds for all requests and a person has to mend.
        """

    def close(self) -> None:
        """Free the device; requests still held are dropped."""


@dataclass(frozen=True)
class TokenRequest:
    """Tokens as they are, for what is no chat. ``params`` are named as those of vLLM's ``SamplingParams``."""

    id: str
    tokens: list[int]
    params: dict[str, Any]


class TokenEngine(Engine, Protocol):
    """An engine that takes tokens too, and returns log-probabilities: what evaluating and comparing need.

    Its module says ``Abilities(takes_tokens=True)``. Outputs have what is read of vLLM's ``RequestOutput``: request_id,
    prompt_token_ids, prompt_logprobs, and in ``outputs`` the text, token_ids and logprobs.
    """

    tokenizer: Any
    """The model's own, of transformers."""
    context: int
    """Most tokens of prompt and answer together."""
    version: str
    """The version of the library that generates."""

    def ask(self, request: TokenRequest) -> None:
        """Hand in tokens. Raises EngineDied, and ValueError for what the engine does not take."""

    def outputs(self, seconds: float) -> list[Any]:
        """What is finished since the last call; waits so long for the first. Raises EngineDied."""

    def abort(self, ids: list[str]) -> None:
        """Drop requests whose answers nobody waits for any more."""


@dataclass(frozen=True)
class Abilities:
    """What an engine's module says of its kind, so that nobody need know it by its name.

    ``package`` has to be importable where the engine runs; ``loads_model``: it reads the recipe's model itself;
    ``takes_tokens``: what ``start`` gives is a ``TokenEngine``; ``weighs_choices``: its completions have the weights of
    a request's choices; ``writes_users``: the model can be given a chat that ends where a user's turn begins.
    """

    package: str | None = None
    loads_model: bool = False
    takes_tokens: bool = False
    weighs_choices: bool = False
    writes_users: bool = False


def outputs_of(
    engine: TokenEngine,
    requests: Iterable[TokenRequest],
    check_stop: Callable[[], None],
    stall_seconds: float = math.inf,
) -> Generator[Any, None, None]:
    """Outputs as they come; the engine is kept full throughout. To be closed where not all of them are taken.

    Raises EngineDied, also after ``stall_seconds`` without an output, and whatever ``check_stop`` raises.
    """
    waiting, running = deque(requests), set[str]()
    answered = time.monotonic()
    try:
        while waiting or running:
            check_stop()
            while waiting and len(running) < engine.capacity:
                request = waiting.popleft()
                engine.ask(request)
                running.add(request.id)
            outputs = engine.outputs(POLL_SECONDS)
            running.difference_update(output.request_id for output in outputs)
            yield from outputs
            now = time.monotonic()
            answered = now if outputs else answered
            if now - answered > stall_seconds:
                raise EngineDied(f"no answer for {now - answered:.0f} seconds")
    finally:
        engine.abort(list(running))
