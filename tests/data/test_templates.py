"""Tokenizers and chat templates that would spoil a training are refused, each with its reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model
from hala_hpc.data import templates
from hala_hpc.data.documents import Chat
from tests.data.tokenizer_kinds import CHATML, GEMMA, KINDS, Kind, save

TEXTS = ["the quick brown fox jumps over a lazy dog. "] * 3
IN_A_MACRO = """{%- macro say(m) -%}{{- m.role -}}{% generation %}{{- m.content + '<|end|>' -}}{% endgeneration %}
{%- endmacro -%}{%- for m in messages -%}{{- say(m) if m.role == 'assistant' else m.content -}}{%- endfor -%}"""
UNMARKED = GEMMA.replace("{%- generation %}", "").replace("{% endgeneration %}", "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: save(make(TEXTS), folder / name.replace(" ", "-")) for name, make in KINDS.items()}


@pytest.fixture(params=list(KINDS))
def loaded(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return templates.load_tokenizer(Model(name=str(folders[request.param])))


def test_good_ones_pass_after_a_way_over_the_disk(loaded: Any) -> None:
    templates.check(loaded, {"chat", "text", "completion"})


def test_the_models_own_template_is_used_unless_a_file_is_given(folders: dict[str, Path], tmp_path: Path) -> None:
    model = Model(name="nothing/there", tokenizer=str(folders["trimming"]))
    assert templates.load_tokenizer(model).chat_template == CHATML
    mine = tmp_path / "mine.jinja"
    mine.write_text(CHATML.replace("|end|", "|eos|"))
    given = templates.load_tokenizer(model, str(mine))
    templates.check(given, {"chat"})
    assert templates.render(given, Chat([{"role": "assistant", "content": "x"}])).text.endswith("x<|eos|>")
    with pytest.raises(HalaError, match=r"task.chat_template: .*No such file"):
        templates.load_tokenizer(model, str(tmp_path / "none.jinja"))


@pytest.mark.parametrize(
    ("kind", "template", "said"),
    [
        ("falling back", UNMARKED, "no {% generation %} marks"),
        ("falling back", "", "no chat template"),
        # The end of the turn stands behind the mark.
        (
            "trimming",
            CHATML.replace("message['content'] + '<|end|>' -}}{% endgen", "message['content'] -}}{% endgen").replace(
                "{% endgeneration %}", "{% endgeneration %}{{- '<|end|>' -}}"
            ),
            r"marks leave '<\|end\|>' out, so the model would never stop",
        ),
        ("trimming", CHATML.replace("'<|end|>'", "'\\n'"), "with no special token"),
        ("trimming", CHATML.replace("bos_token", "bos_token + bos_token"), "BOS before a conversation twice"),
        ("trimming", CHATML.replace("message['role'] == 'assistant'", "true"), "what the user says as the assistant's"),
        (
            "trimming",
            CHATML.replace("message['role'] == 'assistant'", "message['role'] == 'assistant' and loop.last"),
            "does not mark all",
        ),
        # A mark within a macro is tracked from the wrong place: what is marked is not what is said.
        (
            "trimming",
            IN_A_MACRO,
            "does not mark all",
        ),
        ("trimming", "{% generation %}{% endgeneration %}{{ raise_exception('never') }}", "refuses .* never"),
    ],
)
def test_templates_that_would_spoil_a_training(folders: dict[str, Path], kind: str, template: str, said: str) -> None:
    tokenizer = templates.load_tokenizer(Model(name=str(folders[kind])))
    tokenizer.chat_template = template
    with pytest.raises(HalaError, match=said):
        templates.check(tokenizer, {"chat"})
    templates.check(tokenizer, {"text", "completion"})  # they need none


def test_tokenizers_that_would_spoil_a_training(folders: dict[str, Path]) -> None:
    tokenizer = templates.load_tokenizer(Model(name=str(folders["trimming"])))
    tokenizer.eos_token = None
    with pytest.raises(HalaError, match="no EOS"):
        templates.check(tokenizer, {"text"})


def test_a_tokenizer_that_doubles_bos(folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((folders["trimming"] / "tokenizer.json").read_text())
    template = config["post_processor"]["processors"][1]
    template["single"].insert(0, template["single"][0])
    for file in folders["trimming"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(HalaError, match="BOS before a text twice"):
        templates.check(templates.load_tokenizer(Model(name=str(tmp_path))), {"text"})


def test_no_tokenizer_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(HalaError, match="no tokenizer in"):
        templates.load_tokenizer(Model(name=str(tmp_path)))
    with pytest.raises(HalaError, match=r"no config\.json"):
        templates.model_config(Model(name=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert templates.model_config(Model(name=str(tmp_path))) == {"model_type": "llama"}


def test_spans_are_what_the_assistant_says() -> None:
    kind: Kind = KINDS["falling back"](TEXTS)
    messages = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yo\n\nYo "}]
    found = templates.render(kind.tokenizer, Chat(messages * 2))
    assert [found.text[begin:end] for begin, end in found.spans] == ["Yo\n\nYo<end_of_turn>\n"] * 2
    assert found.text == "".join(text for text, _ in kind.turns(messages * 2))


def test_loading_says_nothing_of_an_absent_torch(folders: dict[str, Path]) -> None:
    code = (
        "import sys; from hala_hpc.config.schema import Model; from hala_hpc.data import templates;"
        "templates.check(templates.load_tokenizer(Model(name=sys.argv[1])), {'chat'})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, folders["trimming"]], capture_output=True, text=True, check=True
    )
    assert found.stderr == ""
