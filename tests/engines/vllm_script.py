"""Runs in the serve environment, with one engine for all; writes what it saw as JSON. See test_vllm.py."""

import json
import math
import os
import signal
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe, Sampling
from hala_hpc.engines import vllm
from hala_hpc.engines.base import Completion, EngineDied, Message, Request, request
from hala_hpc.text import checks
from hala_hpc.worker import registry
from hala_hpc.worker.rows.task import RowError

CONTEXT = 4096
FEW_SHOT = Path(__file__).parents[2] / "jobs" / "latxa" / "translate-instructions.yaml"
TALKS = [
    ["How are you?", "I am well."],
    ["Who was here?", "Nobody.", "And who is here now?", "Only the two of us."],
    ["How do I list all files?", "Use it like this:\n\n```sh\nls -la\n```\n\nThat is all."],
    ["What is `x`?"],
]
"""Turns of the user and the assistant."""
QUOTE_BIAS = 4.0
"""Added to what a quotation mark weighs: a model of random weights would hardly ever end a text."""
FENCE_BIAS = 20.0
"""Added to what a backtick weighs, so that any text begins with a fence."""
NEVER = -100.0
"""Added to what tokens weigh that are not to be written."""


def drain(engine: vllm.Vllm) -> dict[str, Completion]:
    completions: dict[str, Completion] = {}
    for _ in range(100_000):
        done = engine.poll(0.1)
        completions |= {completion.id: completion for completion in done}
        if not done and not engine._engine.has_unfinished_requests():
            return completions
    raise AssertionError("requests are stuck")


def chat(text: str, sampling: Sampling) -> Request:
    return request((Message("user", text),), sampling)


def held(engine: vllm.Vllm, texts: list[str]) -> dict[str, Any]:
    """Answers that are held to choices and to a schema, beside others; and the weights of all tokens."""
    from vllm import SamplingParams

    sampling, choices = Sampling(), ("1", "2", "3", "4", "5")
    requests = [request((Message("user", text),), sampling, choices=choices) for text in texts]
    for number, choosing in enumerate(requests):
        engine.add(f"c{number}", choosing)
        engine.add(f"g{number}", chat(texts[number], Sampling(max_tokens=4)))
    completions = drain(engine)
    seen: dict[str, Any] = {"choices": [asdict(completions[f"c{number}"]) for number in range(len(texts))]}
    ids = [engine.tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
    tokens = [{"prompt_token_ids": engine._encoder.encode(choosing).ids} for choosing in requests]
    raw = engine._llm.generate(tokens, SamplingParams(max_tokens=1, temperature=0, logprobs=-1), use_tqdm=False)
    whole = [output.outputs[0].logprobs[0] for output in raw]
    seen["raw"] = [[own[id[0]].logprob for id in ids] for own in whole]
    seen["mass"] = [sum(math.exp(token.logprob) for token in own.values()) for own in whole]

    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["kind", "sure"],
        "properties": {"kind": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    }
    engine.add("s", request((Message("user", texts[0]),), Sampling(max_tokens=64), schema=json.dumps(schema)))
    engine.add("odd", request((Message("user", texts[0]),), Sampling(max_tokens=64), schema="{"))
    answers = drain(engine)
    seen["schema"], seen["odd schema"] = answers["s"].text, answers["odd"].error
    try:
        engine.add("same", request((Message("user", texts[0]),), sampling, choices=("no way", "no")))
        seen["same"] = ""
    except HalaError as error:
        seen["same"] = str(error)
    return seen


def few_shot(engine: vllm.Vllm, model: str) -> dict[str, Any]:
    """Conversations through the shipped recipe of Latxa's way: what was asked and answered, and what came of each."""
    flags = ",".join(f"{check}: flag" for check in checks.BOUNDS)
    words = [f"model.name={model}", "data.hub=null", "data.path=[none.jsonl]", f"engine.max_model_len={CONTEXT}"]
    words += ["sampling.max_tokens=400", f"task.segments.gate={{{flags}}}", "site.slurm.gpus_per_worker=0"]
    recipe = compose(FEW_SHOT, None, words, registry.options_of)
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    work: Any = registry.create(recipe).work_on(pa.schema([("conversations", pa.list_(turn))]))  # type: ignore[attr-defined]
    make, ids = engine._make_params, engine.tokenizer.get_vocab()
    bias = {ids['"']: QUOTE_BIAS} | {id: NEVER for token, id in ids.items() if "\\" in token}  # no line is broken
    engine._make_params = partial(make, logit_bias=bias)
    exchanges: list[dict[str, Any]] = []

    def answered(requests: list[Request]) -> list[Completion]:
        for number, sent in enumerate(requests):
            engine.add(f"t{number}", sent)
        completed = drain(engine)
        completions = [completed[f"t{number}"] for number in range(len(requests))]
        pairs = zip(requests, completions, strict=True)
        exchanges.extend(
            {"schema": sent.schema, "prompt": sent.last, **asdict(completion)} for sent, completion in pairs
        )
        return completions

    rows = []
    for texts in TALKS:
        row = {"conversations": [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]}
        steps, answers, first = work.do(row), None, len(exchanges)
        try:
            while True:
                answers = answered(next(steps) if answers is None else steps.send(answers))
        except StopIteration as end:
            rows.append({"row": row, "new": end.value, "faults": list(work.faults(row, end.value)), "first": first})
        except RowError as error:
            rows.append({"row": row, "error": str(error), "first": first})
    (first,) = next(work.do({"conversations": [{"from": "human", "value": TALKS[0][0]}]}))
    engine.add("bare", replace(first, schema=""))
    engine.add("cut", replace(first, max_tokens=12))
    seen = {id: asdict(completion) for id, completion in drain(engine).items()}
    engine._make_params = partial(make, logit_bias=bias | {ids["`"]: FENCE_BIAS})
    engine.add("fence", first)
    engine.add("bare fence", replace(first, schema=""))
    seen |= {id: asdict(completion) for id, completion in drain(engine).items()}
    engine._make_params = make
    return {"few shot": {"exchanges": exchanges, "rows": rows, "stop": first.stop, **seen}}


def main(model: str) -> None:
    more = {"compilation_config": {"mode": 0}, "max_logprobs": -1}
    more |= {"hf_overrides": {"max_position_embeddings": CONTEXT}}
    # Too small a batch for the prompts of all requests, so that one would be cut.
    batch = {"max_num_seqs": 16, "max_num_batched_tokens": CONTEXT}
    options = vllm.Options(dtype="float32", max_model_len=CONTEXT, **batch, arguments=more)

    engine = vllm.start(Recipe(name="test", task=None, model=Model(name=model), engine=options))
    greedy = Sampling(max_tokens=16)
    warm = Sampling(max_tokens=16, temperature=1.0, seed=3)
    texts = [f"Tell me {number} things about the number {number * 7}." for number in range(60)]
    seen: dict[str, Any] = {"capacity": engine.capacity}

    raw = engine._llm.chat(
        [[{"role": "user", "content": text}] for text in texts], engine._params(chat("", greedy), 0), use_tqdm=False
    )
    for number, text in enumerate(texts[:30]):
        engine.add(f"g{number}", chat(text, greedy))
    first = engine.poll(0.1)
    for number, text in enumerate(texts[30:], 30):  # while others are being written
        engine.add(f"g{number}", chat(text, greedy))
    completions = {completion.id: completion for completion in first} | drain(engine)
    seen["equal"] = sum(completions[f"g{number}"].text == output.outputs[0].text for number, output in enumerate(raw))
    seen["tokens"] = [completions["g0"].prompt_tokens == len(raw[0].prompt_token_ids), completions["g0"].output_tokens]

    engine.add("long", chat("word " * CONTEXT, greedy))
    engine.add("no room", replace(chat("short", greedy), max_tokens=CONTEXT))
    engine.add("empty", Request(prompt=""))
    engine.add("template", Request(prompt=(Message("no such role", "x"),), max_tokens=4))
    engine.add("parameter", replace(chat("short", greedy), top_p=7.0))
    engine.add("good", chat(texts[0], greedy))
    words, whole = "word " * 100, CONTEXT - 200  # nearly all of the context, so that no long answer is waited for
    prompt = words * (whole // len(engine._encoder.encode(chat(words, greedy)).ids))
    engine.add("room", replace(chat(prompt, greedy), max_tokens=None))
    bad = drain(engine)
    seen["bad"] = {id: completion.error for id, completion in bad.items()}
    seen["good"] = bad["good"].text == raw[0].outputs[0].text
    seen["room"] = [bad["room"].prompt_tokens + bad["room"].output_tokens, bad["room"].finish_reason]

    word = sorted(engine._encoder._words.words)[0]  # type: ignore[union-attr]
    engine.add("control", chat(f"a {word} b", greedy))
    plain, control = engine._encoder.encode(chat("a b", greedy)), engine._encoder.encode(chat(f"a {word} b", greedy))
    id = engine.tokenizer.convert_tokens_to_ids(word)
    seen["control"] = [drain(engine)["control"].escaped, control.ids.count(id) - plain.ids.count(id)]

    engine.add("alone", chat(texts[5], warm))
    alone = drain(engine)["alone"].text
    for number, text in enumerate(texts):
        engine.add(
            f"l{number}", chat(f"Count on from {number}: " + " ".join(map(str, range(number, number + 150))), warm)
        )
        engine.add(f"s{number}", chat(text, warm))
    crowd = drain(engine)
    seen["seeded"] = crowd["s5"].text == alone != raw[5].outputs[0].text

    seen |= held(engine, texts)
    seen |= few_shot(engine, model)

    engine.add("lost", chat(texts[1], greedy))
    processes = engine._engine.engine_core.resources.engine_manager.processes
    # Slurm signals every process of a step: the engine's own must outlive what tells the worker to stop.
    for process in processes:
        os.kill(process.pid, signal.SIGUSR2)
    drain(engine)
    seen["survives SIGUSR2"] = all(process.is_alive() for process in processes)
    engine.add("lost", replace(chat(texts[1], greedy), max_tokens=200))
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    try:
        drain(engine)
    except EngineDied as error:
        seen["died"] = str(error)[:80]
    engine.close()
    Path(sys.argv[2]).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
