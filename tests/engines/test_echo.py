"""The engine of the tests: what it says, and how it fails when told to."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, Sampling
from hala_hpc.engines.base import SEEDS, EngineDied, Message, Request, request
from hala_hpc.engines.echo import Options


def started(**options: Any) -> Any:
    return engines.KINDS.load("echo").start(Recipe(name="t", task=None, engine=Options(**options)))


def test_it_answers_with_the_last_message() -> None:
    engine = started()
    engine.add("a", Request((Message("system", "s"), Message("user", "hi there"))))
    engine.add("b", Request("bare"))
    chat, bare = engine.poll(1)
    assert (chat.id, chat.text, chat.finish_reason, chat.output_tokens) == ("a", "«hi there»", "stop", 2)
    assert (bare.id, bare.text) == ("b", "«bare»")
    assert engine.poll(0) == []


def test_what_a_user_says_differs_by_the_seed() -> None:
    engine = started()
    for number in range(100):
        engine.add(str(number), request((), Sampling(), speaker="user", number=number))
    engine.add("told", request((Message("system", "s"),), Sampling(), speaker="user"))
    *bare, instructed = engine.poll(1)
    assert len({completion.text for completion in bare}) == 100
    assert instructed.text.startswith("«s ")


def test_seeds_depend_on_prompt_and_number_alone() -> None:
    chat = (Message("user", "hi there"),)
    assert request(chat, Sampling()).seed == 1_705_685_188, "the seed that it always had"
    numbered = [request(chat, Sampling(), number=number).seed for number in range(100_000)]
    assert len(set(numbered)) == 100_000
    assert request(chat, Sampling(seed=1), number=5).seed != request(chat, Sampling(), number=5).seed
    assert all(0 <= seed < SEEDS for seed in numbered)


def test_it_takes_one_of_the_choices_and_says_how_likely_each_was() -> None:
    choices = ("1", "2", "3")
    texts = [f"text {number}" for number in range(60)]
    completions = []
    for engine in (started(), started()):
        for text in texts:
            engine.add(text, request(text, Sampling(), choices=choices))
        completions.append(engine.poll(1))
    assert completions[0] == completions[1]
    assert {completion.text for completion in completions[0]} == set(choices)
    for completion in completions[0]:
        assert sum(map(math.exp, completion.weights)) == pytest.approx(1)
        assert completion.text == choices[completion.weights.index(max(completion.weights))]


def test_it_writes_the_least_that_a_schema_takes() -> None:
    schema = {
        "type": "object",
        "required": ["text", "turns", "pair", "kind", "count", "is_good"],
        "properties": {
            "text": {"type": "string"},
            "turns": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/turn"}},
            "pair": {"type": "array", "minItems": 2, "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
            "kind": {"enum": ["a", "b"]},
            "count": {"type": "integer", "minimum": 3},
            "is_good": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "more": {"type": "string"},
        },
        "$defs": {"turn": {"type": "object", "required": ["role"], "properties": {"role": {"const": "user"}}}},
    }
    engine = started()
    engine.add("a", request("hello", Sampling(), schema=json.dumps(schema)))
    turns = [{"role": "user"}] * 2
    wanted = {"text": "hello", "turns": turns, "pair": [1, 2], "kind": "a", "count": 3, "is_good": False}
    assert json.loads(engine.poll(1)[0].text) == wanted


def test_failures_on_request() -> None:
    engine = started(fail_on="bad", cut_on="long", max_characters=20)
    for number, text in enumerate(["good", "bad", "long", "x" * 21]):
        engine.add(str(number), Request(text))
    completions = engine.poll(1)
    reasons = [completion.error and completion.error.split(":")[0] for completion in completions]
    assert reasons == [None, "failed", None, "too long"]
    assert [completion.finish_reason for completion in completions] == ["stop", "", "length", ""]


def test_json_that_is_cut_off_has_no_end() -> None:
    engine = started(cut_on="long")
    for text in ("short", "long"):
        engine.add(text, request(text, Sampling(), schema='{"type": "array", "minItems": 2, "items": {}}'))
    whole, cut = engine.poll(1)
    assert (json.loads(whole.text), whole.finish_reason) == (["short", "short"], "stop")
    assert cut.finish_reason == "length" and '["long", "long"]'.startswith(cut.text)
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.text)


def test_it_takes_its_time(tmp_path: Path) -> None:
    engine = started(seconds=0.5, log=str(tmp_path / "log"))
    begun = time.monotonic()
    engine.add("a", Request("x"))
    assert engine.poll(0.01) == []
    assert [completion.id for completion in engine.poll(5)] == ["a"]
    assert time.monotonic() - begun >= 0.5
    assert (tmp_path / "log").read_text() == "'x'\n"
    engine.add("b", Request("y"))
    engine.close()
    assert engine.poll(0.3) == []


def test_it_dies_on_request() -> None:
    engine = started(crash_on="poison")
    engine.add("a", Request("poison"))
    with pytest.raises(EngineDied, match="crash_on: poison"):
        engine.poll(1)
    code = (
        "from hala_hpc.engines.echo import *\n"
        "engine = Echo(Options(die_on='x')); engine.add('a', Request('x')); engine.poll(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def test_bad_options_and_kinds() -> None:
    with pytest.raises(HalaError, match=r"engine\.capacity: 0: must be at least 1"):
        engines.check(Recipe(name="t", engine=Options(capacity=0)))
    with pytest.raises(HalaError, match="no engine 'base'"):
        engines.KINDS.load("base")


def test_seeds_depend_on_recipe_and_prompt_alone() -> None:
    first, again, other = (request(text, Sampling(seed=1)) for text in "aab")
    assert first == again
    assert first.digest() == again.digest()
    assert len({first.seed, other.seed, request("a", Sampling(seed=2)).seed}) == 3
    assert 0 <= first.seed < 2**31
    assert request((Message("user", "a"),), Sampling()).digest() != request("a", Sampling()).digest()
