"""The chat templates under jobs/: they render what the models' own do, and mark what the assistant writes."""

from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from tests.conftest import ROOT

TRL = ROOT / ".envs" / "work-cpu" / "lib" / "python3.11" / "site-packages" / "trl" / "chat_templates"
"""TRL keeps copies of the templates that models are published with."""
OWN = {
    "hala/templates/lfm2.jinja": "lfm2.jinja",
    "hala/templates/gemma2.jinja": "gemma.jinja",
    "latxa/templates/llama31.jinja": "llama3_1.jinja",
}
END = {"hala/templates/lfm2.jinja": "<|im_end|>", "hala/templates/gemma2.jinja": "<end_of_turn>",
       "latxa/templates/llama31.jinja": "<|eot_id|>"}  # fmt: skip
TWO = [("user", "Zer moduz?"), ("assistant", "Ondo. \n\nEta zu?"), ("user", "كيف حالك"), ("assistant", "بخير")]
CONVERSATIONS = {"two turns": TWO, "a question": TWO[:1], "system": [("system", "Be brief."), *TWO]}


def render(template: Path, turns: list[tuple[str, str]], **more: Any) -> tuple[str, list[str]]:
    """The text, and the parts of it that are marked."""
    messages = [{"role": role, "content": content} for role, content in turns]
    text, marks = render_jinja_template(
        [messages], chat_template=template.read_text(), return_assistant_tokens_mask=True, bos_token="<bos>", **more
    )
    return text[0], [text[0][begin:end] for begin, end in marks[0]]


@pytest.mark.parametrize("name", OWN)
def test_all_shipped_templates_are_looked_at(name: str) -> None:
    """Those of models that `make demo` and `make mini` have built are not shipped."""
    shipped = [path.relative_to(ROOT / "jobs") for path in (ROOT / "jobs").rglob("*.jinja")]
    assert {str(path) for path in shipped if not {"model", "models"} & set(path.parts)} == set(OWN)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", OWN)
def test_they_render_what_the_models_own_do(name: str, conversation: str, prompted: bool) -> None:
    if not TRL.is_dir():
        pytest.skip("no work environment (make work)")
    if "gemma2" in name and conversation == "system":
        pytest.skip("Gemma's own refuses a system turn")
    turns = CONVERSATIONS[conversation]
    ours, _ = render(ROOT / "jobs" / name, turns, add_generation_prompt=prompted)
    theirs, _ = render(TRL / OWN[name], turns, add_generation_prompt=prompted)
    assert ours == theirs


@pytest.mark.parametrize("name", OWN)
def test_answers_and_the_end_of_their_turn_are_marked_and_nothing_else(name: str) -> None:
    _, marked = render(ROOT / "jobs" / name, CONVERSATIONS["system"])
    assert [part.strip() for part in marked] == [f"Ondo. \n\nEta zu?{END[name]}", f"بخير{END[name]}"]
    assert render(ROOT / "jobs" / name, TWO[:1])[1] == []


def test_lfm2_keeps_its_tools() -> None:
    name = "hala/templates/lfm2.jinja"
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"a": "number"}}}]
    turns = [
        ("system", "Be brief."),
        *TWO[:1],
        ("assistant", "<|tool_call_start|>[add(a=1)]<|tool_call_end|>"),
        ("tool", "2"),
    ]
    ours, marked = render(ROOT / "jobs" / name, turns, tools=tools)
    assert '"name": "add"' in ours and "<|tool_response_start|>2" in ours and len(marked) == 1
    if TRL.is_dir():
        assert ours == render(TRL / OWN[name], turns, tools=tools)[0]


def test_gemma_puts_a_system_turn_before_the_first_question() -> None:
    text, _ = render(ROOT / "jobs" / "hala/templates/gemma2.jinja", CONVERSATIONS["system"])
    assert text.startswith("<bos><start_of_turn>user\nBe brief.\n\nZer moduz?<end_of_turn>\n<start_of_turn>model\n")
    with pytest.raises(TemplateError, match="must alternate"):
        render(ROOT / "jobs" / "hala/templates/gemma2.jinja", [*TWO[:1], *TWO[:1]])


def test_llama_refuses_tools_that_it_would_leave_out() -> None:
    with pytest.raises(TemplateError, match="no tools"):
        render(ROOT / "jobs" / "latxa/templates/llama31.jinja", TWO, tools=[{"type": "function"}])
