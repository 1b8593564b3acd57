"""What our model for lm-evaluation-harness asks of a scorer, in the serve environment but without an engine."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm

SCRIPT = Path(__file__).with_name("lm_eval_model_script.py")
AS_WRITTEN = {"skip_special_tokens": False, "spaces_between_special_tokens": False}


@pytest.fixture(scope="module")
def seen(serve_python: Path) -> dict[str, Any]:
    done = subprocess.run([serve_python, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def tokens(text: str, *before: int) -> list[int]:
    return [*before, *map(ord, text)]


def test_contexts_and_continuations_become_tokens(seen: dict[str, Any]) -> None:
    """Spaces move to what follows, no context is the beginning of text, and a beginning that is written stays one."""
    expected = [
        [tokens("ab", 1), tokens(" c")],
        [tokens("ab", 1), tokens(" d")],
        [[1], tokens("xy")],
        [[1], tokens("z")],
        [tokens("ab", 1), tokens("c")],
    ]
    assert seen["pairs"] == expected
    assert seen["scores"] == [[-float(len(follow)), len(follow) == 1] for _, follow in expected]
    assert len(set(seen["encoded"])) == len(seen["encoded"]), "no text is encoded twice"


def test_slices_keep_the_order_and_say_how_far_they_are(seen: dict[str, Any]) -> None:
    assert [score for score, _ in seen["sliced"]] == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert seen["said"][1:4] == [f"{count} of 5 choices, all" for count in (0, 2, 4)]


def test_windows_predict_each_token_once(seen: dict[str, Any]) -> None:
    follow = [token for _, window in seen["windows"] for token in window]
    assert follow == tokens("abcdefghij", 1)
    assert all(context and len(context) + len(window) <= 5 for context, window in seen["windows"])
    assert seen["rolled"] == [-float(len(follow))]


def test_each_request_has_its_settings_and_answers_come_back_in_order(seen: dict[str, Any]) -> None:
    assert seen["texts"] == [f"{letter} said" for letter in "abcd"], "cut at the stop"
    greedy = {"max_tokens": 3, "stop": ["\n", "</s>"], "temperature": 0.0, "seed": 7, "params": AS_WRITTEN}
    drawn = greedy | {"max_tokens": 256, "temperature": 0.5}
    assert seen["generated"] == [
        [[tokens("a", 1), greedy], [tokens("b", 1), drawn]],
        [[tokens("c", 1), greedy], [tokens("d", 1), greedy]],
    ], "two at a time"


def test_settings_of_a_task_become_those_of_decoding(seen: dict[str, Any]) -> None:
    default = {"max_tokens": 256, "stop": ["</s>"], "temperature": 0.0, "seed": 7, "params": AS_WRITTEN}
    assert seen["decodings"]["default"] == default
    assert seen["decodings"]["greedy"] == default | {"stop": [], "params": AS_WRITTEN | {"top_p": 0.8}}


def test_a_template_without_system_turn_gets_the_others(seen: dict[str, Any]) -> None:
    assert seen["chat"] == ["<s>u", tokens("u", 1)], "and its beginning of text is not doubled"
    assert seen["name"] == "org__letters"
