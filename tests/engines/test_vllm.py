"""The vLLM engine with real vLLM on the CPU: it equals LLM.chat, and no bad request harms another."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TinyModel

CONTEXT = 4096
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def seen(serve_python: Path, tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("vllm")
    script = Path(__file__).with_name("vllm_script.py")
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TORCH_COMPILE_DISABLE": "1",
    }
    command = [serve_python, script, tiny_model("llama"), folder / "seen.json"]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    written: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return written


def test_it_writes_what_llm_chat_writes(seen: dict[str, Any]) -> None:
    assert seen["equal"] == 60
    assert seen["tokens"][0] and seen["tokens"][1] > 0


def test_it_is_kept_twice_as_full_as_it_runs(seen: dict[str, Any]) -> None:
    assert seen["capacity"] == 32


def test_a_bad_request_fails_alone_with_its_reason(seen: dict[str, Any]) -> None:
    bad = seen["bad"]
    assert bad["long"].startswith("too long: ") and f"context {CONTEXT}" in bad["long"]
    assert bad["no room"].startswith("too long: ")
    assert bad["empty"] == "bad prompt: empty"
    assert bad["parameter"].startswith("bad request: ")
    assert bad["good"] is None and seen["good"]


def test_a_control_token_in_a_text_is_text(seen: dict[str, Any]) -> None:
    assert seen["control"] == [True, 0]


def test_no_max_tokens_means_all_the_room_there_is(seen: dict[str, Any]) -> None:
    total, reason = seen["room"]
    assert total == CONTEXT or reason == "stop"


def test_a_sampled_text_does_not_depend_on_its_company(seen: dict[str, Any]) -> None:
    assert seen["seeded"]


def test_choices_have_the_weights_that_the_model_gives_them(seen: dict[str, Any]) -> None:
    assert len(seen["choices"]) == 60
    assert len({tuple(chosen["weights"]) for chosen in seen["choices"]}) > 30, "they depend on the prompt"
    for chosen, raw, mass in zip(seen["choices"], seen["raw"], seen["mass"], strict=True):
        assert chosen["weights"] == pytest.approx(raw, abs=1e-4)
        assert mass == pytest.approx(1, abs=1e-3)
        assert chosen["text"] == "12345"[chosen["weights"].index(max(chosen["weights"]))]
        assert (chosen["error"], chosen["finish_reason"], chosen["output_tokens"]) == (None, "stop", 1)


def test_choices_that_begin_alike_are_refused(seen: dict[str, Any]) -> None:
    assert "begins two of the answers 'no way', 'no' with one token" in seen["same"]


def test_an_answer_fulfils_its_schema(seen: dict[str, Any]) -> None:
    answer = json.loads(seen["schema"])
    assert answer.keys() == {"kind", "sure"}
    assert answer["kind"] in ("good", "bad") and isinstance(answer["sure"], bool)
    assert seen["odd schema"].startswith("bad request: ")


def test_latxas_few_shot_translation_of_whole_conversations(seen: dict[str, Any]) -> None:
    """The recipe as it is shipped: worked examples, no chat template, an answer that guided decoding holds to turns.

    The model's words are noise. Each answer that came to its end is a list of the right turns all the same, and what
    becomes of a conversation has its shape.
    """
    few = seen["few shot"]
    ended = [answer for answer in few["exchanges"] if answer["finish_reason"] == "stop"]
    assert len(ended) > len(few["exchanges"]) / 2 and all(answer["error"] is None for answer in few["exchanges"])
    for answer in ended:
        roles = [turn["properties"]["role"]["const"] for turn in json.loads(answer["schema"])["prefixItems"]]
        assert [turn["role"] for turn in json.loads(answer["text"])] == roles
    assert all(answer["prompt"].endswith("Basque:\n```json\n") for answer in few["exchanges"])
    with pytest.raises(json.JSONDecodeError):
        json.loads(few["bare"]["text"])
    whole = [row for row in few["rows"] if len(row["row"]["conversations"]) > 1]
    first = [json.loads(few["exchanges"][row["first"]]["schema"]) for row in whole]
    assert [len(schema["prefixItems"]) for schema in first] == [len(row["row"]["conversations"]) for row in whole]
    done = [row for row in few["rows"] if "new" in row]
    assert len(done) == len(few["rows"]), [row.get("error") for row in few["rows"]]
    for row in done:
        translated = row["new"]["conversations_eu"]
        assert row["faults"] == []
        assert [turn["from"] for turn in translated] == [turn["from"] for turn in row["row"]["conversations"]]
        assert translated != row["row"]["conversations"]
    assert "```sh\nls -la\n```" in done[2]["new"]["conversations_eu"][1]["value"]


def test_a_stop_word_ends_no_text_that_a_schema_holds(seen: dict[str, Any]) -> None:
    """A model that writes fences wherever it can: within a turn they are text, after bare JSON they are the end."""
    few = seen["few shot"]
    assert few["stop"] == ["```"]
    (turn,) = json.loads(few["fence"]["text"])
    assert "```" in turn["content"] and few["fence"]["finish_reason"] == "stop"
    bare = few["bare fence"]
    assert "```" not in bare["text"] and bare["finish_reason"] == "stop"
    assert bare["output_tokens"] < few["fence"]["output_tokens"]


def test_an_answer_that_max_tokens_cut_off_says_so(seen: dict[str, Any]) -> None:
    """Also where guided decoding would have gone on to the end of the JSON."""
    cut = seen["few shot"]["cut"]
    assert (cut["finish_reason"], cut["output_tokens"], cut["error"]) == ("length", 12, None)
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut["text"])


def test_the_stop_signal_leaves_the_engine_alive_and_a_kill_is_told(seen: dict[str, Any]) -> None:
    assert seen["survives SIGUSR2"]
    assert "died" in seen
