"""The endpoint engine against a real server on this machine, which answers, is busy, breaks and goes away."""

import http.server
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hala_hpc import engines
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe, Sampling
from hala_hpc.engines.base import Completion, EngineUnreachable, Message, Request
from hala_hpc.engines.openai import Options
from hala_hpc.tasks.translate import task as translate
from tests.conftest import ROOT, Hala
from tests.worker.helpers import wait_until


class Server(http.server.ThreadingHTTPServer):
    """Speaks OpenAI's protocol: echoes, or does what the prompt says (``400``, ``busy``, ``wait``, ``cut``)."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.busy = 0
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.meeting = threading.Barrier(4)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(body | {"path": self.path})
            server.keys.add(self.headers["Authorization"])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self.answer(body)
        finally:
            with server.lock:
                server.at_once -= 1

    def answer(self, body: dict[str, Any]) -> None:
        chat = "messages" in body
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        if "wait" in text:
            time.sleep(60)
        if "meet" in text:
            self.server.meeting.wait(30)
        if text[:3].isdigit():
            return self.send(int(text[:3]), {"error": {"message": f"I refuse: {text}"}})
        if "busy" in text and self.server.busy > 0:
            self.server.busy -= 1
            return self.send(429 if self.server.busy % 2 else 500, {"error": {"message": "later"}})
        answer: dict[str, Any] = {"content": f"<{text}>"}
        if "aloud" in text:
            answer["content"] = f"<think>\nhm\n{'' if 'endless' in text else '</think>'}\n\n<{text}>"
        if "apart" in text:
            answer |= {"reasoning_content": "hm", "content": None if "endless" in text else f"<{text}>"}
        said = {"message": {"role": "assistant", **answer}} if chat else {"text": answer["content"]}
        said |= {"logprobs": listed(text, chat)} if body.get("logprobs") and "no logprobs" not in text else {}
        choice = {"index": 0, "finish_reason": "length" if "cut" in text else "stop"} | said
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        return self.send(
            200, {"id": "x", "object": "o", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )

    def send(self, code: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        self.wfile.write(raw)


def listed(text: str, chat: bool) -> dict[str, Any]:
    """Log-probabilities of first tokens, as a chat and a completion have them: those that the prompt names."""
    first = {"other": -0.1} | {
        token.replace("_", " "): math.log(float(share)) for token, share in re.findall(r"(\S+)=(\S+)", text)
    }
    if not chat:
        return {"tokens": ["x"], "top_logprobs": [first]}
    top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in first.items()]
    return {"content": [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": top}]}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def recipe(url: str, **options: Any) -> Recipe:
    return Recipe(name="t", task=None, engine=Options(url=url, **options), model=Model(name="some/model"))


@pytest.fixture
def start(server: Server) -> Iterator[Callable[..., Any]]:
    running: list[Any] = []

    def start(**options: Any) -> Any:
        running.append(engines.KINDS.load("openai").start(recipe(server.url, **({"retries": 1} | options))))
        return running[-1]

    yield start
    for engine in running:
        engine.close()


def ask(engine: Any, *prompts: Any, seconds: float = 20) -> dict[str, Completion]:
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt if isinstance(prompt, Request) else Request(prompt))
    completions: dict[str, Completion] = {}
    end = time.monotonic() + seconds
    while len(completions) < len(prompts) and time.monotonic() < end:
        completions |= {completion.id: completion for completion in engine.poll(0.2)}
    return completions


def test_chat_and_completion(server: Server, start: Callable[..., Any]) -> None:
    chat = (Message("system", "be kind"), Message("user", "hi"))
    request = Request(chat, temperature=0.5, top_p=0.9, max_tokens=7, stop=("END",), seed=4, top_k=5)
    completions = ask(start(), request, "cut here")
    assert completions["0"] == Completion("0", "<hi>", "stop", 3, 5)
    assert completions["1"] == Completion("1", "<cut here>", "length", 3, 5)
    sent = {body["path"]: body for body in server.asked}
    assert sent["/v1/chat/completions"] == {
        "path": "/v1/chat/completions",
        "model": "some/model",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.0,
        "max_tokens": 7,
        "stop": ["END"],
        "seed": 4,
        "top_k": 5,
        "repetition_penalty": 1.0,
    }
    assert sent["/v1/completions"]["prompt"] == "cut here"
    assert not {"max_tokens", "stop", "top_k"} & sent["/v1/completions"].keys()


@pytest.mark.parametrize("chat", [True, False])
def test_the_likeliest_of_choices(server: Server, start: Callable[..., Any], chat: bool) -> None:
    def choosing(text: str, *choices: str) -> Request:
        return Request((Message("user", text),) if chat else text, choices=choices, max_tokens=64)

    ones = [
        choosing("1=0.125 _1=0.125 2=0.5", "1", "2", "3"),
        choosing("y=0.25 no=0.125", "yes", "no"),
        choosing("nothing", "yes", "no"),
        choosing("no logprobs", "yes", "no"),
    ]
    completions = ask(start(), *ones)
    assert completions["0"].text == "2"
    assert [math.exp(weight) for weight in completions["0"].weights] == pytest.approx([0.25, 0.5, 0])
    assert (completions["1"].text, completions["1"].error) == ("yes", None)
    assert completions["2"].error == "no choice: none of the 2 answers is among the 1 likeliest tokens"
    assert completions["3"].error == "no log-probabilities: the endpoint gives none (logprobs)"
    assert all(
        body["max_tokens"] == 1 and (body.get("top_logprobs") or body["logprobs"]) == 20 for body in server.asked
    )
    with pytest.raises(HalaError, match="begins two of the answers '1', '10' with one token, '1'"):
        ask(start(), choosing("1=0.5", "1", "10"))


@pytest.mark.parametrize("prompt", [(Message("user", "hi"),), "hi"])
def test_a_schema_is_handed_on(server: Server, start: Callable[..., Any], prompt: Any) -> None:
    """With the stop words: who knows whether the endpoint enforces it."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    ask(start(), Request(prompt, schema=json.dumps(schema), stop=("```",)))
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert server.asked[0]["response_format"] == wanted
    assert server.asked[0]["stop"] == ["```"]


def test_a_template_is_told_what_the_recipe_says(server: Server) -> None:
    templated = recipe(server.url)
    templated.model.chat_template_kwargs = {"enable_thinking": False}
    engine = engines.KINDS.load("openai").start(templated)
    ask(engine, Request((Message("user", "hi"),)), "bare")
    engine.close()
    sent = {body["path"]: body for body in server.asked}
    assert sent["/v1/chat/completions"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in sent["/v1/completions"]
    with pytest.raises(HalaError, match=r"model\.chat_template_kwargs: task\.chat is false"):
        engines.check(replace(templated, task=translate.Options(chat=False)))


def test_requests_wait_side_by_side(server: Server, start: Callable[..., Any]) -> None:
    engine = start(concurrency=4)
    assert engine.capacity == 4
    assert len(ask(engine, *[f"meet {n}" for n in range(8)])) == 8, "four at once are answered, and no fewer"
    assert server.most_at_once == 4


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_bad_request_fails_alone(start: Callable[..., Any], code: int) -> None:
    completions = ask(start(), "a", f"{code} too long", "b")
    assert [completions[id].text for id in "02"] == ["<a>", "<b>"]
    assert (completions["1"].error or "").startswith("bad request: ")
    assert f"I refuse: {code} too long" in (completions["1"].error or "")


def test_a_busy_server_is_asked_again(server: Server, start: Callable[..., Any]) -> None:
    server.busy = 4
    completions = ask(start(retries=4), "busy")
    assert (completions["0"].text, completions["0"].error, len(server.asked)) == ("<busy>", None, 5)


@pytest.mark.parametrize("text", ["401 no key", "404 no such model", "402 no money"])
def test_what_a_person_has_to_mend_is_told(start: Callable[..., Any], text: str) -> None:
    with pytest.raises(HalaError, match=r"refuses every request.*I refuse"):
        ask(start(retries=0), text)


@pytest.mark.parametrize(("text", "its_own"), [("500 broken", "0"), ("503 busy", None), ("429 too many", None)])
def test_a_server_in_trouble_is_out_of_reach(start: Callable[..., Any], text: str, its_own: str | None) -> None:
    with pytest.raises(EngineUnreachable, match="I refuse") as raised:
        ask(start(retries=0, patience_seconds=7.0), text)
    assert (raised.value.request, raised.value.patience) == (its_own, 7.0)


def test_answers_are_handed_over_before_the_end_is_told(start: Callable[..., Any]) -> None:
    engine = start(retries=0)
    for number, (id, text) in enumerate([("good", "good"), ("bad", "500")], 1):
        engine.add(id, Request(text))
        wait_until(lambda: engine._done.qsize() == number)  # noqa: B023
    assert [completion.id for completion in engine.poll(1)] == ["good"]
    with pytest.raises(EngineUnreachable):
        engine.poll(5)


def test_a_server_that_is_gone(server: Server, start: Callable[..., Any]) -> None:
    engine = start(retries=1)
    assert len(ask(engine, "a")) == 1
    server.shutdown()
    server.server_close()
    engine._client.close()  # the connection that is still open would be answered by its thread
    engine = start(retries=1)
    with pytest.raises(EngineUnreachable, match="APIConnectionError"):
        ask(engine, "b")


def test_a_silent_server_does_not_keep_the_process(server: Server) -> None:
    """A worker that is told to stop must end at once, not when its last answer comes."""
    code = f"""
import sys
from tests.engines.test_openai import *
engine = engines.KINDS.load("openai").start(recipe({server.url!r}))
engine.add("a", Request("wait"))
engine.poll(0.5)
engine.close()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=50)  # the server takes a minute


def test_recipes_that_cannot_be() -> None:
    with pytest.raises(HalaError, match=r"engine\.url: 'x' is not an http address"):
        engines.check(recipe("x"))
    with pytest.raises(HalaError, match=r"engine\.concurrency: 0: must be at least 1"):
        engines.check(recipe("http://x", concurrency=0))
    with pytest.raises(HalaError, match=r"engine\.patience_seconds"):
        engines.check(recipe("http://x", patience_seconds=-1))
    bare = replace(recipe("http://x"), task=translate.Options(chat=False))
    with pytest.raises(HalaError, match=r"sampling\.max_tokens: null.*16 tokens at most"):
        engines.check(bare)
    engines.check(replace(bare, sampling=Sampling(max_tokens=100)))
    with pytest.raises(HalaError, match=r"model\.name"):
        engines.check(Recipe(name="t", engine=Options()))


def test_a_run_sends_the_key_and_never_writes_it(
    server: Server, hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    key = "sk-very-secret-4711"
    hala.env |= {"MY_KEY": key}
    for name in [name for name in hala.env if name.lower().endswith("_proxy")]:
        del hala.env[name]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "400 two"}\n')
    engine = {"kind": "openai", "url": server.url, "key_variable": "MY_KEY", "concurrency": 2}
    path = write_recipe(engine=engine, model={"name": "m"}, data={"path": "a.jsonl"}, task={"prompt": "{text}"})
    hala("plan", path, "--create")
    hala("worker", "runs/test")
    assert hala.json("verify", "runs/test")["quarantined"] == {"bad request": 1}
    assert server.keys == {f"Bearer {key}"}
    written = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert len(written) > 3
    assert not [file for file in written if key.encode() in file.read_bytes()]
