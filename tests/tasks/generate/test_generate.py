"""Conversations that a model makes up: what is asked and what becomes of it; and runs that are broken and go on."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema
from hala_hpc.data.outputs import collect
from hala_hpc.data.schema import Row
from hala_hpc.data.where import CHECKS, Where
from hala_hpc.engines.base import SEEDS, Completion, Message, Request
from hala_hpc.pipeline.planning import check, plan_run
from hala_hpc.publish import content, sources
from hala_hpc.run import manifest
from hala_hpc.tasks.generate import seeds
from hala_hpc.tasks.generate.task import Generate
from hala_hpc.worker import registry
from hala_hpc.worker.job import work_until
from hala_hpc.worker.rows.task import RowError
from tests.conftest import Hala
from tests.data.tokenizer_kinds import KINDS as TOKENIZERS
from tests.data.tokenizer_kinds import save
from tests.tasks.mix import mixes
from tests.worker import helpers

KINDS = {"general": {"weight": 3}, "code": {"system": "You help programmers."}}
ASKED = "Which rivers flow through the city of Cairo, and where do they end?"
ANSWER = "The Nile flows through Cairo. It ends in the Mediterranean Sea."
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(given: Sequence[Row] = (), name: str = "r", data: dict[str, Any] | None = None, **task: Any) -> Path:
        recipe: dict[str, Any] = {
            "name": name,
            "task": {"kind": "generate"} | task,
            "engine": {"kind": "echo", "log": "asked.log"},
            "run": {"root": "runs", "shard_rows": 50, "lease_seconds": 1.2, "flush_seconds": 0.1},
        }
        if given:
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
            recipe["data"] = {"path": "rows.jsonl"} | (data or {})
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        return path

    return write


def planned(path: Path, *words: str) -> Path:
    asked = compose(path, None, words, registry.options_of)
    return plan_run(asked, check(asked), Path(asked.run.root).resolve() / asked.name).path


def done(path: Path, *words: str) -> list[Row]:
    run = planned(path, *words)
    work_until(run, lambda: False)
    assert helpers.proof(run).proven
    return helpers.rows(run)


def given(run: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(run / "input" / seeds.FILE).to_pylist()
    return rows


def worked(path: Path, row: Row, *answers: str | Completion) -> tuple[Row, list[Request]]:
    """One row, with what is answered to its requests, one after the other."""
    run = Path("runs") / path.stem
    if not run.exists():
        planned(path)
    task = registry.create(compose(path, None, (), registry.options_of))
    assert isinstance(task, Generate)
    steps = task.work_on(schema.load(manifest.read(run / "manifest.parquet").facts.schema)).do(row)
    sent: list[Request] = []
    left = iter(answers)
    completions: list[Completion] | None = None
    while True:
        try:
            asked = next(steps) if completions is None else steps.send(completions)
        except StopIteration as end:
            assert next(left, None) is None, "it asked for less"
            new: Row = end.value
            return new, sent
        sent += asked
        answer = next(left)
        completions = [Completion("x", answer, "stop") if isinstance(answer, str) else answer]


def test_the_user_is_drawn_from_the_template_and_answered_without_the_system_prompt(write: Write) -> None:
    path = write(rows=4, kinds=KINDS, turns=2, instructions={"temperature": 0.9, "max_tokens": 30})
    row = {"number": 7, "kind": "code"}
    texts = [f" {ASKED}\n", ANSWER, "And what lies beyond the delta?", "The sea."]
    new, sent = worked(path, row, *texts)
    turns = [Message(role, text.strip()) for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    assert new["messages"] == [vars(turn) for turn in turns]
    assert new["hala_rejected"] is None and new[CHECKS]["longest_instruction"] == len(ASKED)
    system = Message("system", "You help programmers.")
    assert [one.prompt for one in sent] == [(system,), (*turns[:1],), (system, *turns[:2]), (*turns[:3],)]
    assert [one.speaker for one in sent] == ["user", "assistant"] * 2
    assert [(one.temperature, one.max_tokens) for one in sent] == [(0.9, 30), (0.0, None)] * 2
    assert sent[0].span == (0, 0), "names of control tokens in a system prompt are the recipe's own"
    _, (bare, _) = worked(path, row | {"kind": "general"}, ASKED, f"{ANSWER}<|im_end|>")
    assert bare.prompt == () and bare.last == ""


def test_rows_of_a_kind_have_seeds_of_their_own_and_equal_instructions_one_answer(write: Write) -> None:
    path = write(rows=4)
    sent = [worked(path, {"number": number, "kind": "general"}, ASKED, ANSWER)[1] for number in (0, 1, 2, 3_640_000)]
    assert len({asked.seed for asked, _ in sent}) == 4
    assert len({answer.digest() for _, answer in sent}) == 1
    again = worked(path, {"number": 1, "kind": "general"}, ASKED, ANSWER)[1]
    assert again == sent[1]
    assert all(0 <= asked.seed < SEEDS for asked, _ in sent)


def test_seeds_of_rows_are_drawn_by_weight(write: Write) -> None:
    run = planned(write(rows=2000, kinds=KINDS))
    rows = given(run)
    assert [row["number"] for row in rows] == list(range(2000))
    counts = Counter(row["kind"] for row in rows)
    assert counts.keys() == KINDS.keys() and 1400 < counts["general"] < 1600
    fewer = planned(write(rows=500, kinds=KINDS, name="fewer"))
    assert given(fewer) == rows[:500], "a longer run begins with the rows of a shorter one"
    assert given(planned(write(rows=500, kinds=KINDS, name="other"), "sampling.seed=1")) != rows[:500]
    facts = manifest.read(run / "manifest.parquet").facts
    assert (facts.rows, facts.texts) == (2000, 4000)
    assert [(source["path"], source["original"]) for source in facts.sources] == [
        ("input/00000.parquet", "drawn by this run")
    ]


def test_seeds_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"a": 1.0, "b": 2.0}
    seeds.write(tmp_path / "whole.parquet", 2500, weights, 3)
    monkeypatch.setattr(seeds, "AT_ONCE", 700)
    seeds.write(tmp_path / "pieces.parquet", 2500, weights, 3)
    assert pq.read_table(tmp_path / "whole.parquet") == pq.read_table(tmp_path / "pieces.parquet")


def test_a_run_makes_as_many_different_rows_as_asked_for(write: Write) -> None:
    rows = done(write(rows=120, kinds=KINDS, filters={"min_instruction": 1}))
    assert len(rows) == 120
    texts = [row["messages"][0]["content"] for row in rows]
    assert len(set(texts)) == 120
    assert [row["messages"][1]["content"] for row in rows] == [f"«{text}»" for text in texts]
    assert {row["kind"] for row in rows} == KINDS.keys()
    # Echo answers with the instruction, which repeats it.
    assert {row["hala_rejected"] for row in rows} == {"same: the answer repeats the instruction"}
    kept = done(write(rows=120, filters={"min_instruction": 1, "same": False}, name="kept"))
    assert {row["hala_rejected"] for row in kept} == {None}


def test_nobody_answers_a_rejected_instruction(write: Write) -> None:
    path = write(rows=4)
    row = {"number": 0, "kind": "general"}
    new, sent = worked(path, row, "Hello.")
    assert new["hala_rejected"] == "short instruction: 6 characters"
    assert [turn["role"] for turn in new["messages"]] == ["user"] and len(sent) == 1
    assert new[CHECKS]["shortest_response"] is None
    cut = Completion("x", ASKED, "length")
    assert worked(path, row, cut)[0]["hala_rejected"] == "truncated: the instruction was cut off by max_tokens"
    cut = Completion("x", ANSWER, "length")
    assert worked(path, row, ASKED, cut)[0]["hala_rejected"] == "truncated: the answer was cut off by max_tokens"
    kept = write(rows=4, filters={"truncated": False}, name="kept")
    new, _ = worked(kept, row, ASKED, cut)
    assert (new["hala_rejected"], new[CHECKS]["truncated"]) == (None, 1)


def test_kinds_of_any_language(write: Write) -> None:
    basque = "Zein ibai igarotzen dira Kairo hiritik, eta non amaitzen dira ibai horiek azkenean?"
    kinds = {"general": {}, "translation": {"any_language": True}}
    path = write(rows=4, kinds=kinds)
    assert worked(path, {"number": 0, "kind": "general"}, basque)[0]["hala_rejected"].startswith("language: ")
    assert worked(path, {"number": 0, "kind": "translation"}, basque, ANSWER)[0]["hala_rejected"] is None
    other = write(rows=4, language="Basque", name="eu")
    assert worked(other, {"number": 0, "kind": "general"}, basque, basque + " Bai.")[0]["hala_rejected"] is None


def test_an_answer_that_fails_sends_the_row_to_quarantine(write: Write) -> None:
    path = write(rows=4)
    with pytest.raises(RowError, match="too long: x"):
        worked(path, {"number": 0, "kind": "general"}, ASKED, Completion("x", error="too long: x"))
    # Echo's instructions hold their seeds, so some hold this digit.
    rows = done(write(rows=120, name="fails"), "engine.fail_on=7", "task.filters.same=false")
    failed = [row for row in rows if row["hala_error"] is not None]
    assert 0 < len(failed) < 120
    assert {row["hala_error"] for row in failed} == {"failed: fail_on '7'"}
    assert all(row["messages"] is None and row["hala_rejected"] is None for row in failed)


def test_from_documents_by_a_template(write: Write) -> None:
    rows = [{"text": "The Nile is long. {x}", "title": "Nile", "n": 1}, {"text": None, "title": "", "n": 2}]
    template = "Ask a question about {title}:\n\n{text}\n\n{title}?"
    path = write(rows, template="A {text} B", system="You teach.")
    run = planned(path)
    assert manifest.read(run / "manifest.parquet").facts.notes == {
        "rows lack 'text'": 1,
        "rows hold no text to work on": 1,
    }
    new, sent = worked(path, rows[0], ASKED, ANSWER)
    assert sent[0].prompt == (Message("system", "You teach."), Message("user", "A The Nile is long. {x} B"))
    assert (sent[0].speaker, sent[0].temperature, sent[0].span) == ("assistant", 1.0, (2, 23))
    assert sent[1].prompt == (Message("user", ASKED),)
    assert [turn["content"] for turn in new["messages"]] == [ASKED, ANSWER]
    work_until(run, lambda: False)
    assert [row["hala_error"] for row in helpers.rows(run)] == [None, "no text: nothing in text"]
    both = write(rows, template=template, name="both")
    _, sent = worked(both, rows[0], ASKED, ANSWER)
    assert sent[0].last == "Ask a question about Nile:\n\nThe Nile is long. {x}\n\nNile?"


def test_seed_prompts_are_instructions_themselves(write: Write) -> None:
    rows = [{"prompt": ASKED, "messages": "x"}]
    path = write(rows, template="{prompt}", template_is="instruction", turns=2, suffix="_new")
    run = planned(path)
    assert manifest.read(run / "manifest.parquet").facts.texts == 3
    new, sent = worked(path, rows[0], ANSWER, "And then what happens?", "Nothing.")
    assert [one.speaker for one in sent] == ["assistant", "user", "assistant"]
    assert [turn["content"] for turn in new["messages_new"]][:2] == [ASKED, ANSWER]
    work_until(run, lambda: False)
    assert {"prompt", "messages", "messages_new", "hala_rejected"} <= helpers.rows(run)[0].keys()


def test_a_killed_run_gives_the_rows_of_an_unbroken_one(write: Write) -> None:
    path = write(rows=300, kinds=KINDS, turns=2, filters={"same": False})
    whole = done(path, "name=whole")
    run = planned(path, "engine.seconds=0.01", "engine.capacity=4")
    process = helpers.start(run)
    helpers.wait_until(lambda: any(run.glob("shards/*/*.parquet")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(list(run.glob("shards/*/*.parquet"))) < 6, "in the middle"
    time.sleep(1.3)
    helpers.finish(run)
    assert helpers.proof(run).proven
    assert helpers.rows(run) == whole


def test_counts_add_up_in_status_card_and_report(write: Write, hala: Hala, tmp_path: Path) -> None:
    """Kept, rejected by reason, and in quarantine: all rows. Echo fails at seeds with 77; not all are equally long."""
    words = ("task.filters.same=false", "task.filters.min_instruction=12", "engine.fail_on=77")
    run = planned(write(rows=400, kinds=KINDS), *words)
    plan = hala.json("plan", "r.yaml", *words, "name=look")
    assert (plan["rows"], plan["texts"], plan["sources"][0]["file"]) == (400, 800, "drawn by this run")
    hala("worker", run)
    state = hala.json("status", "r")
    counts = Counter[str]()
    for worker in state["workers"]:
        counts.update(worker["counts"])
    short, held = counts["rejected: short instruction"], state["quarantined"]
    assert short > 0 and held > 0
    assert f"rows rejected: {short} short instruction" in " ".join(hala("status", "r").stdout.split())
    facts = hala.json("collect", "r", "--to", "out")["judgements"]
    assert facts == {"kept": f"{400 - short - held:,} of {400 - held:,}", "rejected: short instruction": f"{short:,}"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| rejected: short instruction | {short} |" in card and "drawn by this run" in card
    assert hala.json("verify", "out")["proven"]
    assert content.dataset(run, tmp_path / "out").judgements == content.uncollected(run).judgements == facts
    hala("report", "r", "--to", "report")
    tables = json.loads((tmp_path / "report" / "report.json").read_text())["tables"]
    verdicts = {row["verdict"]: row["rows"] for row in tables["verdicts-r"]["rows"]}
    assert verdicts == {"kept": 400 - short - held, "rejected: short instruction": short}
    assert "short instruction" in (tmp_path / "report" / "report.md").read_text()
    assert "short instruction" in hala("sample", "r", "--where", "rejected", "-n", "2").stdout
    assert hala.json("explain", "r", "0")["requests"][0]["prompt"] in ([], [["system", "You help programmers."]])


def test_what_filters_kept_goes_on_to_a_judge_and_a_mix(write: Write, tmp_path: Path) -> None:
    path = write(rows=60, kinds=KINDS, filters={"same": False, "min_instruction": 12})
    rows = done(path)
    kept = [row for row in rows if row["hala_rejected"] is None]
    assert 0 < len(kept) < 60
    collect.collect(Path("runs/r"), Path("runs/r/final"))
    table = pq.read_table("runs/r/final/data")
    where = Where("not rejected", table.schema)
    assert sum(map(where.holds, table.to_pylist())) == len(kept)
    judge = {
        "name": "judged",
        "task": {"kind": "judge", "rows": "instructions", "target": "English", "rules": ["empty"], "threshold": 0.0},
        "engine": {"kind": "echo"},
        "data": {"path": "run:r", "columns": ["messages"], "where": "not rejected"},
        "run": {"root": "runs"},
    }
    (tmp_path / "judged.yaml").write_text(json.dumps(judge))
    assert len(done(tmp_path / "judged.yaml")) == len(kept)
    collect.collect(Path("runs/judged"), Path("runs/judged/final"))
    source = {"path": "runs/judged/final", "shape": "messages", "where": "verdict.keep"}
    found = mixes.made(tmp_path, {"generated": source}, duplicates={"by": "prompt", "near": None})
    assert sorted(row["messages"][0]["content"] for row in found) == sorted(
        {row["messages"][0]["content"] for row in kept}
    )


def test_rejected_rows_can_be_done_again_with_another_seed(write: Write, hala: Hala, tmp_path: Path) -> None:
    run = planned(write(rows=60, filters={"same": False, "min_instruction": 12}))
    work_until(run, lambda: False)
    before = helpers.rows(run)
    assert any(row["hala_rejected"] for row in before) and not all(row["hala_rejected"] for row in before)
    said = hala.json("redo", "r", "--where", "rejected", "sampling.seed=1", "site.executor=debug")
    assert said.get("warnings", []) == []
    after = helpers.rows(tmp_path / "runs" / "r-v2")
    for old, new in zip(before, after, strict=True):
        assert (old == new) == (old["hala_rejected"] is None)


def test_the_model_is_named_as_the_writer(write: Write) -> None:
    run = planned(write(rows=4))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        recipe.replace("kind: echo", "kind: vllm").replace("name: ''", "name: org/teacher")
    )
    (origin,) = sources.of_run(run, lambda *_: None)
    assert (origin.name, origin.role) == ("org/teacher", "writer")


@pytest.mark.parametrize(
    ("task", "rows", "data", "message"),
    [
        ({}, (), None, r"task\.rows is missing"),
        ({"rows": 0}, (), None, r"task\.rows: 0"),
        ({"rows": 4, "turns": 0}, (), None, r"task\.turns: 0"),
        ({"rows": 4, "template": "{text}"}, (), None, r"task\.template: there are no rows"),
        ({"rows": 4, "system": "x"}, (), None, r"task\.system: is for task\.template"),
        ({"rows": 4, "kinds": {"a": {"weight": 0}}}, (), None, r"task\.kinds\.a\.weight"),
        ({"rows": 4, "kinds": {"a b/": {}}}, (), None, r"task\.kinds: 'a b/'"),
        ({"rows": 4, "language": "Words of Mars"}, (), None, "no language is called 'Words of Mars'"),
        ({"rows": 4, "filters": {"patterns": ["("]}}, (), None, r"task\.filters\.patterns: '\('"),
        ({"rows": 4, "instructions": {"top_p": 7}}, (), None, r"task\.instructions\.top_p: 7"),
        ({"rows": 4}, [{"text": "x"}], None, r"task\.rows: data says how many"),
        ({}, [{"text": "x"}], None, r"task\.template: has no place"),
        ({"template": "no place"}, [{"text": "x"}], None, r"task\.template: has no place"),
        ({"template": "{text} {other}"}, [{"text": "x"}], None, "no column 'other'"),
        ({"template": "{n}"}, [{"n": 7}], None, "column 'n' holds .*not text"),
        ({"template": "{text}", "kinds": {"a": {}}}, [{"text": "x"}], None, r"task\.kinds: is for task\.rows"),
        ({"template": "{text}", "template_is": "instruction", "system": "x"}, [{"text": "x"}], None, r"task\.system"),
        ({"template": "{text}"}, [{"text": "x"}], {"columns": ["text"]}, r"data\.columns: task\.template names"),
        ({"template": "{text}"}, [{"text": "x"}], {"shape": "text"}, r"data\.shape: task\.template names"),
        ({"template": "{messages}"}, [{"messages": "x"}], None, "column 'messages' is there already"),
        ({"template": "{text}"}, [{"text": ""}], None, "none of the 1 rows holds a text"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_planned(
    write: Write, task: dict[str, Any], rows: Sequence[Row], data: dict[str, Any] | None, message: str
) -> None:
    path = write(rows, data=data, **task)
    with pytest.raises(HalaError, match=message):
        planned(path)


def test_data_that_mean_nothing_and_engines_that_write_no_user_are_refused(write: Write) -> None:
    with pytest.raises(HalaError, match=r"data\.limit: task\.rows makes its own rows"):
        planned(write(rows=4), "data.limit=3")
    openai = ("engine.kind=openai", "model.name=m")
    with pytest.raises(HalaError, match=r"engine\.kind: openai cannot begin a user's turn.*echo or vllm"):
        planned(write(rows=4), *openai)
    path = write([{"text": "x"}], template="{text}", name="data")
    planned(path, *openai)
    with pytest.raises(HalaError, match="cannot begin a user's turn"):
        planned(path, *openai, "task.turns=2", "name=more")
    with pytest.raises(HalaError, match=r"task\.instructions\.max_tokens: 1024 leaves no room"):
        planned(write(rows=4), "engine.kind=vllm", "model.name=./no", "engine.max_model_len=512")


def test_a_chat_template_without_a_place_for_the_system_is_refused(write: Write, tmp_path: Path) -> None:
    folder = save(TOKENIZERS["falling back"]([ASKED, ANSWER]), tmp_path / "model")
    (folder / "config.json").write_text("{}")
    path = write(rows=4, kinds=KINDS)
    with pytest.raises(HalaError, match=r"task\.kinds\.code: the chat template .*System role not supported"):
        planned(path, "engine.kind=vllm", f"model.name={folder}")
    planned(path, "engine.kind=vllm", f"model.name={folder}", "task.kinds.code.system=null")
