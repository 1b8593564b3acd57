"""What an engine says of a model: log-probabilities of texts, and how fast it writes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from hala_hpc.engines.base import TokenEngine, TokenRequest, outputs_of
from hala_hpc.tasks.compare.distance import TokenLogprob

WARM_TOKENS: Final = 8
"""Written before the clock starts: the first steps of an engine are slower."""


@dataclass
class Throughput:
    """How fast a model writes: so many prompts at once, each answered at full length."""

    prompts: int = 64
    prompt_tokens: int = 128
    output_tokens: int = 128


class Speed(TypedDict):
    """What was measured; ``output_tokens`` are those of all prompts."""

    prompts: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    output_tokens_per_second: float


def log_probabilities(
    engine: TokenEngine, tokens: Mapping[str, list[int]], likely: int, check_stop: Callable[[], None]
) -> list[TokenLogprob]:
    """What the model expected at each token of each text after the first."""
    settings = {"max_tokens": 1, "detokenize": False, "prompt_logprobs": likely}
    requests = [TokenRequest(name, ids, settings) for name, ids in tokens.items()]
    outputs = {output.request_id: output for output in outputs_of(engine, requests, check_stop)}
    places = []
    for name, ids in tokens.items():
        for position, logprobs in enumerate(outputs[name].prompt_logprobs):
            if position:
                by_token = {int(token): float(entry.logprob) for token, entry in logprobs.items()}
                places.append(TokenLogprob(name, position, ids[position], by_token[ids[position]], by_token))
    return places


def throughput(
    engine: TokenEngine, tokens: Mapping[str, list[int]], options: Throughput, check_stop: Callable[[], None]
) -> Speed:
    """Output tokens a second, all prompts at once, none of which begins like another."""
    pool = [token for ids in tokens.values() for token in ids]
    length = max(1, min(options.prompt_tokens, engine.context - options.output_tokens))

    def outputs(count: int, written: int, shift: int) -> Sequence[Any]:
        settings = {"max_tokens": written, "min_tokens": written, "ignore_eos": True, "detokenize": False}
        requests = []
        for number in range(count):
            start = (shift + number * 37) % len(pool)
            prompt = [pool[(start + at) % len(pool)] for at in range(length)]
            requests.append(TokenRequest(f"{shift}-{number}", prompt, settings))
        return list(outputs_of(engine, requests, check_stop))

    outputs(min(4, options.prompts), WARM_TOKENS, 1)
    began = time.monotonic()
    answers = outputs(options.prompts, options.output_tokens, 0)
    seconds = time.monotonic() - began
    total = sum(len(answer.outputs[0].token_ids) for answer in answers)
    return Speed(
        prompts=options.prompts,
        prompt_tokens=length,
        output_tokens=total,
        seconds=round(seconds, 4),
        output_tokens_per_second=total / seconds,
    )
