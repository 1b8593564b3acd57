"""Translations in segments: what the worker writes, and what `hala verify` finds in it."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.compose import compose, thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.data.schema import to_rows
from hala_hpc.data.unify import infer
from hala_hpc.data.where import CHECKS
from hala_hpc.engines.base import Completion, Request
from hala_hpc.pipeline.planning import check, plan_run
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.verify import verify
from hala_hpc.tasks.translate.options import manner_of
from hala_hpc.tasks.translate.rows import ATTEMPTS, SHAPE, InSegments
from hala_hpc.tasks.translate.task import Translate
from hala_hpc.text.checks import BOUNDS
from hala_hpc.worker import registry
from hala_hpc.worker.job import work_until
from hala_hpc.worker.rows.task import RowError
from tests.text.translators import TRANSLATORS, Translator, driven, upper

ROWS = [
    {"text": "Use `x = 1` here.\n\n```py\nprint(1)\n```\n\n1. Eat well.\n2. Sleep."},
    {"text": "42"},
    {"text": ""},
    {"text": "One long paragraph. " * 300},
]
ENGLISH = {"target": "English", "suffix": "_en", "prompt": "{text}"}
"""The fake translators write the letters that they read."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)

    def write(**task: Any) -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        path = tmp_path / "r.yaml"
        sections = {"name": "r", "engine": {"kind": "echo"}, "data": {"path": "rows.jsonl"}}
        path.write_text(json.dumps(sections | {"task": {"kind": "translate"} | ENGLISH | task}))
        return path

    return write


def work_of(recipe: Path) -> InSegments:
    task = registry.create(compose(recipe, None, (), registry.options_of))
    assert isinstance(task, Translate)
    work = task.work_on(pa.schema([("text", pa.string())]))
    assert isinstance(work, InSegments)
    return work


def done(work: InSegments, row: dict[str, Any], translate: Translator) -> tuple[dict[str, Any], list[Request]]:
    sent: list[Request] = []

    def answer(request: Request) -> Completion:
        sent.append(request)
        return Completion("x", translate(request.last), "stop", 7, 8)

    return driven(work.do(row), answer), sent


def test_a_run_is_proven_and_each_row_has_its_signature_and_checks(recipe: Callable[..., Path]) -> None:
    composed = compose(recipe(segments={"tokens": 60}), None, (), registry.options_of)
    run = plan_run(composed, check(composed), Path("runs/r"))
    work_until(run.path, lambda: False)
    plan = manifest.read(run.manifest)
    checker = registry.create(composed).checker(plan.facts)
    assert verify(run.path, checker).proven
    output = RunDirectory(run.path, plan.facts.suffix).shard_output(0)
    rows = to_rows(pq.read_table(output))
    assert rows[0]["text_en"] == ROWS[0]["text"], "echo's quotation marks are taken off as chatter"
    assert [row["text_en"] for row in rows[1:3]] == ["42", ""]
    assert rows[3][CHECKS]["asks"] > 10 and rows[3][CHECKS]["flags"] == []
    assert len({row[SHAPE] for row in rows}) == 4


def test_long_documents_come_out_whole_and_in_order(recipe: Callable[..., Path], data: Path) -> None:
    """100,000 characters of real text, and a line of a million; echo translates each segment into itself."""
    wiki = (data / "raw_text" / "wiki_demo.txt").read_text()
    path = recipe(segments={"gate": dict.fromkeys(("numbers", "loops", "length"), "flag")})
    texts = [wiki[:100_000], wiki.replace("\n", " ")[:1_000_000]]
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    composed = compose(path, None, (), registry.options_of)
    run = plan_run(composed, check(composed), Path("runs/r"))
    work_until(run.path, lambda: False)
    plan = manifest.read(run.manifest)
    assert verify(run.path, registry.create(composed).checker(plan.facts)).proven
    rows = [row for shard in plan for row in to_rows(pq.read_table(run.shard_output(shard.id)))]
    quotes = str.maketrans("", "", "«»")  # with which echo answers
    for row, text in zip(rows, texts, strict=True):
        assert row["text_en"].translate(quotes) == text.translate(quotes)
    assert rows[1][CHECKS]["asks"] > 600


@pytest.mark.parametrize("name", sorted(TRANSLATORS))
def test_what_is_written_passes_verify_or_is_set_aside(recipe: Callable[..., Path], name: str) -> None:
    work = work_of(recipe())
    for row in ROWS:
        try:
            new, _ = done(work, row, TRANSLATORS[name])
        except RowError as error:
            assert ": " in str(error)
        else:
            assert not list(work.faults(row, new))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ({"text_en": "USE `x = 1` HERE."}, "units became"),
        ({SHAPE: "0" * 32}, "signature"),
        ({"text_en": "USE `x = 2` HERE.\n\n```py\nprint(1)\n```\n\n1. EAT WELL.\n2. SLEEP."}, "lost: '`x = 1`'"),
        ({"text_en": "USE `x = 1` HERE.\n\n```py\nprint(2)\n```\n\n1. EAT WELL.\n2. SLEEP."}, "fence changed"),
        ({"text_en": ""}, "1 texts became 0"),
    ],
)
def test_verify_finds_what_was_changed_later(recipe: Callable[..., Path], damage: dict[str, str], fault: str) -> None:
    work = work_of(recipe())
    new, _ = done(work, ROWS[0], upper)
    assert not list(work.faults(ROWS[0], new))
    assert fault in next(iter(work.faults(ROWS[0], new | damage)))


def test_asking_again_is_another_request(recipe: Callable[..., Path]) -> None:
    work = work_of(recipe())
    new, sent = done(work, {"text": "Is it five o'clock already?"}, lambda _: "It is five.")
    first, *others = sent
    assert first.temperature == 0.0 and {request.temperature for request in others} == {0.3}
    assert len({request.digest() for request in sent}) == len(sent) == 3
    assert [request.attempt for request in sent] == [0, 1, 3]
    assert [attempt["rung"] for attempt in new[ATTEMPTS]] == ["together", "again", "apart"]
    assert [attempt["seed"] for attempt in new[ATTEMPTS]] == [request.seed for request in sent]
    assert {attempt["outcome"] for attempt in new[ATTEMPTS]} == {"ending"}
    assert new[CHECKS]["asks"] == 3 and new[CHECKS]["shape"] == 1.0 and new[CHECKS]["flags"] == ["ending"]


def test_the_gate_says_what_follows(recipe: Callable[..., Path]) -> None:
    row = {"text": "Is it five o'clock already?"}
    new, sent = done(work_of(recipe(segments={"gate": {"ending": "flag"}})), row, lambda _: "It is five.")
    assert len(sent) == 1 and new[CHECKS]["flags"] == ["ending"]
    with pytest.raises(RowError, match=r"ending: no answer passed \(ending\)"):
        done(
            work_of(recipe(segments={"gate": {"ending": "quarantine"}, "rungs": ["again"]})),
            row,
            lambda _: "It is five of them.",
        )


def test_context_and_terms_have_places_in_the_prompt(recipe: Callable[..., Path]) -> None:
    task = {
        "prompt": "{glossary}{context}To {target}: {text}",
        "hints": "[{terms}]",
        "context": "({source_before}={translation_before})",
        "glossary": {"part": "PART", "hold": "{target}"},
        "segments": {"tokens": 10},
    }
    row = {"text": "First part of it.\n\nThen hold {text}."}
    _, sent = done(work_of(recipe(**task)), row, lambda _: "A PART OF IT.")
    assert sent[0].last == "[part → PART]To English: First part of it."
    assert sent[1].last.startswith("[hold → {target}](First part of it.=A PART OF IT.)To English: Then hold ⟦1⟧")
    assert sent[0].span == (0, len("[part → PART]To English: First part of it."))


def test_a_conversation_is_one_list_of_turns(recipe: Callable[..., Path]) -> None:
    recipe(segments={"form": "json"}, chat=False, prompt="```json\n{text}\n```\n```json\n")
    turns = [{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "I am `well`."}]
    Path("rows.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    task = registry.create(compose(Path("r.yaml"), None, (), registry.options_of))
    schema = pa.schema([("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])))])
    work = task.work_on(schema)  # type: ignore[attr-defined]

    def write(prompt: str) -> str:
        return prompt.split("```")[1].removeprefix("json").replace("well", "WELL").replace("How", "HOW") + "\n```"

    new, sent = done(work, {"conversations": turns}, write)
    assert len(sent) == 1 and isinstance(sent[0].prompt, str)
    spoken = [turn["properties"]["role"]["const"] for turn in json.loads(sent[0].schema)["prefixItems"]]
    assert spoken == ["user", "assistant"]
    assert [turn["value"] for turn in new["conversations_en"]] == ["HOW are you?", "I am `well`."]
    assert [turn["from"] for turn in new["conversations_en"]] == ["human", "gpt"]
    assert new[ATTEMPTS][0]["texts"] == [0, 1] and not list(work.faults({"conversations": turns}, new))
    lost = new | {"conversations_en": new["conversations_en"][:1]}
    assert list(work.faults({"conversations": turns}, lost)) == ["2 texts became 1"]


def test_conversations_that_no_answer_fits_are_set_aside_whole_with_the_reason(recipe: Callable[..., Path]) -> None:
    """By the whole worker: echo puts all that it was asked into each turn, and cuts JSON in its middle on request."""
    path = recipe(segments={"form": "json"}, chat=False)
    talks = [["How are you?", "I am well."], ["Say CUT now.", "CUT it is."], ["42", "```\n7\n```"]]
    rows = [
        {"conversations": [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]}
        for texts in talks
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = json.loads(path.read_text()) | {"engine": {"kind": "echo", "cut_on": "CUT"}}
    path.write_text(json.dumps(sections))
    composed = compose(path, None, (), registry.options_of)
    run = plan_run(composed, check(composed), Path("runs/r"))
    work_until(run.path, lambda: False)
    verdict = verify(run.path, registry.create(composed).checker(manifest.read(run.manifest).facts))
    assert verdict.proven and verdict.quarantined == {"lines": 1, "truncated": 1}
    written = to_rows(pq.read_table(run.shard_output(0)))
    assert [row["conversations"] for row in written] == [row["conversations"] for row in rows], "none is lost"
    assert [row["conversations_en"] for row in written] == [None, None, rows[2]["conversations"]]
    assert written[1]["hala_error"].startswith("truncated: max_tokens cut the answer off (json: ")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_both_sides_of_a_preference_go_on_from_one_prompt(recipe: Callable[..., Path]) -> None:
    """A model that never writes the same words twice, and is asked for all of a row at once."""
    times = count()

    def anew(prompt: str) -> str:
        return json.dumps([spoken | {"content": f"{spoken['content']} {next(times)}"} for spoken in json.loads(prompt)])

    recipe(segments={"form": "json", "gate": dict.fromkeys(BOUNDS, "flag")}, chat=False)
    task = registry.create(compose(Path("r.yaml"), None, (), registry.options_of))
    question, again = turn("user", "Is it far?"), turn("user", "Is it far?")
    row = {
        "prompt": "Is it far?",
        "chosen": [question, turn("assistant", "It is."), again, turn("assistant", "It is.")],
        "rejected": [question, turn("assistant", "It is."), again, turn("assistant", "No.")],
    }
    work: InSegments = task.work_on(infer([row]))  # type: ignore[attr-defined]
    new, sent = done(work, row, anew)
    chosen, rejected = new["chosen_en"], new["rejected_en"]
    assert new["prompt_en"] == chosen[0]["content"] == "Is it far? 0"
    assert rejected[:3] == chosen[:3] and rejected[3] != chosen[3]
    assert chosen[0] != chosen[2] and chosen[1] != chosen[3], "within a conversation all is asked for"
    assert [attempt["texts"] for attempt in new[ATTEMPTS]] == [[0, 2, 3, 4, 8]] and not list(work.faults(row, new))
    assert [spoken["role"] for spoken in json.loads(sent[0].last)] == [
        "prompt",
        "assistant",
        "user",
        "assistant",
        "assistant",
    ]
    assert [request.digest() for request, _ in work.sent(row, new)] == [request.digest() for request in sent]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"target": "Nowhereish"}, "no language is called 'Nowhereish'"),
        ({"segments": {"patterns": ["("]}}, "task.segments.patterns"),
        ({"segments": {"gate": {"shapes": "flag"}}}, "task.segments.gate: there is no 'shapes'"),
        ({"segments": {"gate": {"shape": "drop"}}}, "task.segments.gate: there is no 'drop'"),
        ({"segments": {"rungs": ["alone", "higher"]}}, "task.segments.rungs: there is no 'higher'"),
        ({"segments": {"apart": ["links"]}}, "task.segments.apart: there is no 'links'"),
        ({"segments": {"inside": ["yaml"]}}, "task.segments.inside: there is no 'yaml'"),
        ({"segments": {"tokens": -1}}, "task.segments.tokens: must be 0 or more"),
        ({"glossary": {"a": "b"}}, "task.glossary: the prompt has no place for it"),
    ],
)
def test_what_cannot_be_is_refused(recipe: Callable[..., Path], task: dict[str, Any], said: str) -> None:
    with pytest.raises(HalaError, match=said):
        registry.create(compose(recipe(**task), None, (), registry.options_of))


def test_own_patterns_stay(recipe: Callable[..., Path]) -> None:
    work = work_of(recipe(segments={"patterns": ["TICKET-[0-9]+"]}))
    new, sent = done(work, {"text": "See ticket TICKET-12 please."}, str.lower)
    assert new["text_en"] == "see ticket TICKET-12 please." and sent[0].last == "See ticket ⟦1⟧ please."


def test_runs_from_before_there_were_segments_go_on_as_they_were(recipe: Callable[..., Path], tmp_path: Path) -> None:
    composed = compose(recipe(), None, (), registry.options_of)
    assert composed.task.segments.tokens == 400
    frozen = tmp_path / "recipe.yaml"
    frozen.write_text(json.dumps({"name": "r", "task": {"kind": "translate"}, "run": {}}))
    assert thaw(frozen, registry.options_of).task.segments.tokens == 0


def test_a_translation_is_translated_on(recipe: Callable[..., Path]) -> None:
    """Its own columns of the run before get a number."""
    rows = [{"text": "Hello there.", "hala_row": 7, "hala_error": None, SHAPE: "x", CHECKS: {"asks": 1}}]
    path = recipe()
    Path("rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    composed = compose(path, None, (), registry.options_of)
    run = plan_run(composed, check(composed), Path("runs/r"))
    work_until(run.path, lambda: False)
    names = pq.read_schema(RunDirectory(run.path, ".parquet").shard_output(0)).names
    assert {SHAPE, f"{SHAPE}_1", CHECKS, f"{CHECKS}_1"} <= set(names)


def test_segments_fit_the_context(recipe: Callable[..., Path]) -> None:
    path = recipe(segments={"tokens": 400})
    sections = json.loads(path.read_text()) | {
        "engine": {"kind": "vllm", "max_model_len": 300},
        "sampling": {"max_tokens": 200},
    }
    path.write_text(json.dumps(sections | {"model": {"name": "m"}}))
    assert 16 <= manner_of(compose(path, None, (), registry.options_of)).tokens < 100
