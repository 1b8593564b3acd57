"""Runs in the serve environment, without an engine: what ``LmEvalScorer`` asks of a scorer, as JSON; see the test."""

import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from jinja2.exceptions import TemplateError

from hala_hpc.tasks.evaluate import lm_eval_model
from hala_hpc.tasks.evaluate.lm_eval_model import LmEvalScorer, decoding_of
from hala_hpc.tasks.evaluate.scorer import Attempt, Scored

BOS, EOS = "<s>", "</s>"


class Letters:
    """A token a letter, with a beginning of text that is added unless somebody says no."""

    bos_token_id, eos_token_id, name_or_path = 1, 2, "org/letters"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str], add_special_tokens: bool = True, **_: object) -> Any:
        self.texts += texts
        return SimpleNamespace(input_ids=[[1] * add_special_tokens + self.encode(text) for text in texts])

    def encode(self, text: str) -> list[int]:
        begun = text.startswith(BOS)
        return [1] * begun + [ord(letter) for letter in text.removeprefix(BOS)]

    def decode(self, token: int) -> str:
        return {1: BOS, 2: EOS}.get(token) or chr(token)

    def apply_chat_template(self, turns: list[dict[str, str]], **_: object) -> str:
        if turns[0]["role"] == "system":
            raise TemplateError("System role not supported")
        return BOS + "".join(turn["content"] for turn in turns)


class Recorder:
    """Takes the place of a scorer: keeps what it is asked; a continuation's score is its length."""

    max_length = 5

    def __init__(self) -> None:
        self.tokenizer = Letters()
        self.pairs: list[Any] = []
        self.generated: list[Any] = []

    def log_probabilities(self, pairs: Any, attempt: Attempt) -> list[Scored]:
        self.pairs += pairs
        attempt.tell("all")
        return [Scored(-float(len(follow)), len(follow) == 1) for _, follow in pairs]

    def generate(self, prompts: Any, attempt: Attempt) -> list[str]:
        attempt.check_stop()
        self.generated.append([[list(prompt), asdict(decoding)] for prompt, decoding in prompts])
        return [f"{chr(prompt[-1])} said\nmore" for prompt, _ in prompts]


def request(*args: object) -> Any:
    return SimpleNamespace(args=args)


def main() -> None:
    scorer, said = Recorder(), list[str]()
    model = LmEvalScorer(scorer, Attempt(tell=said.append), seed=7)  # type: ignore[arg-type]
    seen: dict[str, Any] = {"name": model.tokenizer_name}

    choices = [("ab ", "c"), ("ab ", "d"), ("", "xy"), ("", f"{BOS}z"), (f"{BOS}ab", "c")]
    seen["scores"] = model.loglikelihood([request(*pair) for pair in choices])
    seen["pairs"], seen["encoded"] = list(scorer.pairs), list(scorer.tokenizer.texts)

    scorer.pairs.clear()
    lm_eval_model.SLICE = 2  # type: ignore[misc]
    seen["sliced"] = model.loglikelihood([request("a", "b" * count) for count in range(1, 6)])
    seen["said"] = said

    scorer.pairs.clear()
    seen["rolled"] = model.loglikelihood_rolling([request("abcdefghij")])
    seen["windows"] = list(scorer.pairs)

    short, drawn = {"until": ["\n"], "max_gen_toks": 3}, {"until": "\n", "do_sample": True, "temperature": 0.5}
    prompts = [("a", short), ("b", drawn), ("c", short), ("d", short)]
    seen["texts"] = model.generate_until([request(*pair) for pair in prompts])
    seen["generated"] = scorer.generated

    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    seen["chat"] = [model.apply_chat_template(turns), model.tok_encode(model.apply_chat_template(turns))]
    seen["decodings"] = {
        "default": asdict(decoding_of({}, EOS, 7)),
        "greedy": asdict(decoding_of({"do_sample": False, "temperature": 0.9, "top_p": 0.8}, "", 7)),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
