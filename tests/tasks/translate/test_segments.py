"""Translations in segments: what the worker writes, and what `hala verify` finds in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.compose import compose, thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.data.schema import to_rows
from hala_hpc.engines.base import Completion, Request
from hala_hpc.pipeline.planning import check, plan_run
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.verify import verify
from hala_hpc.tasks.translate.task import CHECKS, SHAPE, InSegments, Translate, manner_of
from hala_hpc.worker import registry
from hala_hpc.worker.job import work_until
from hala_hpc.worker.rows.task import RowError
from tests.text.translators import TRANSLATORS, Translator, upper

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
    found = task.work_on(pa.schema([("text", pa.string())]))
    assert isinstance(found, InSegments)
    return found


def done(work: InSegments, row: dict[str, Any], translate: Translator) -> tuple[dict[str, Any], list[Request]]:
    steps, sent = work.do(row), []
    completions: list[Completion] | None = None
    while True:
        try:
            requests = next(steps) if completions is None else steps.send(completions)
        except StopIteration as end:
            return end.value, sent
        sent += requests
        completions = [Completion("x", translate(request.last), "stop") for request in requests]


def test_a_run_is_proven_and_each_row_has_its_signature_and_checks(recipe: Callable[..., Path]) -> None:
    asked = compose(recipe(segments={"tokens": 60}), None, (), registry.options_of)
    run = plan_run(asked, check(asked), Path("runs/r"))
    work_until(run.path, lambda: False)
    plan = manifest.read(run.manifest)
    checker = registry.create(asked).checker(plan.facts)
    assert verify(run.path, checker).proven
    output = RunDirectory(run.path, plan.facts.suffix).shard_output(0)
    rows = to_rows(pq.read_table(output))
    assert rows[0]["text_en"] == ROWS[0]["text"], "echo's quotation marks are taken off as chatter"
    assert [row["text_en"] for row in rows[1:3]] == ["42", ""]
    assert rows[3][CHECKS]["asks"] > 10 and rows[3][CHECKS]["flags"] == []
    assert len({row[SHAPE] for row in rows}) == 4


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
    _, sent = done(work, {"text": "Is it five o'clock already?"}, lambda _: "It is five.")
    first, *others = sent
    assert first.temperature == 0.0 and {request.temperature for request in others} == {0.3}
    assert len({request.digest() for request in sent}) == len(sent) == 3


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"target": "Nowhereish"}, "no language is called 'Nowhereish'"),
        ({"segments": {"patterns": ["("]}}, "task.segments.patterns"),
        ({"segments": {"quarantine": ["shapes"]}}, "no check 'shapes'"),
        ({"segments": {"again": -1}}, "task.segments.again: must be 0 or more"),
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
    asked = compose(recipe(), None, (), registry.options_of)
    assert asked.task.segments.tokens == 400
    frozen = tmp_path / "recipe.yaml"
    frozen.write_text(json.dumps({"name": "r", "task": {"kind": "translate"}, "run": {}}))
    assert thaw(frozen, registry.options_of).task.segments.tokens == 0


def test_a_translation_is_translated_on(recipe: Callable[..., Path]) -> None:
    """Its own columns of the run before get a number."""
    rows = [{"text": "Hello there.", "hala_row": 7, "hala_error": None, SHAPE: "x", CHECKS: {"asks": 1}}]
    path = recipe()
    Path("rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    asked = compose(path, None, (), registry.options_of)
    run = plan_run(asked, check(asked), Path("runs/r"))
    work_until(run.path, lambda: False)
    names = pq.read_schema(RunDirectory(run.path, ".parquet").shard_output(0)).names
    assert {SHAPE, f"{SHAPE}_1", CHECKS, f"{CHECKS}_1"} <= set(names)


def test_segments_fit_the_context(recipe: Callable[..., Path]) -> None:
    path = recipe(segments={"tokens": 400})
    asked = json.loads(path.read_text()) | {
        "engine": {"kind": "vllm", "max_model_len": 300},
        "sampling": {"max_tokens": 200},
    }
    path.write_text(json.dumps(asked | {"model": {"name": "m"}}))
    assert 16 <= manner_of(compose(path, None, (), registry.options_of)).tokens < 100
