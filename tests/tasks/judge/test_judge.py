"""Judging: what is asked and what becomes of it, by rules and by verdicts; and runs that are broken and go on."""

import json
import math
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hala_hpc.config.compose import compose
from hala_hpc.config.errors import HalaError
from hala_hpc.data import schema
from hala_hpc.data.outputs import collect
from hala_hpc.data.outputs.judgements import SCORE, VERDICT
from hala_hpc.data.schema import Row
from hala_hpc.data.where import Where
from hala_hpc.engines.base import Completion, Request
from hala_hpc.pipeline.planning import check, plan_run
from hala_hpc.publish import content
from hala_hpc.run import manifest
from hala_hpc.tasks.judge.forms import FORMS, Form
from hala_hpc.tasks.judge.scores import combined, expected
from hala_hpc.tasks.judge.task import Judge
from hala_hpc.text.prompts import problem_of
from hala_hpc.worker import registry
from hala_hpc.worker.job import work_until
from hala_hpc.worker.rows.task import RowError
from tests.conftest import Hala
from tests.worker import helpers

GOOD = {"en": "She moved to the large city.", "ar": "انتقلت إلى المدينة الكبيرة."}
COPIED = {"en": "She moved to the large city.", "ar": "She moved to the large city!"}
EMPTY = {"en": "She moved to the large city.", "ar": ""}
PAIRS = ["translation.en", "translation.ar"]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(given: Sequence[Row], columns: Sequence[str] = PAIRS, name: str = "r", **task: Any) -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        recipe = {
            "name": name,
            "task": {"kind": "judge"} | task,
            "engine": {"kind": "echo", "log": "asked.log"},
            "data": {"path": "rows.jsonl", "columns": list(columns)},
            "run": {"root": "runs", "shard_rows": 50, "lease_seconds": 1.2, "flush_seconds": 0.1},
        }
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


Answers = Callable[[Request], tuple[float, ...]]


def judged(path: Path, row: Row, answers: Answers) -> tuple[Row, list[Request]]:
    """One row that is asked for, with log-probabilities that ``answers`` gives to each request."""
    run = Path("runs") / path.stem
    if not run.exists():
        planned(path)
    task = registry.create(compose(path, None, (), registry.options_of))
    assert isinstance(task, Judge)
    steps = task.work_on(schema.load(manifest.read(run / "manifest.parquet").facts.schema)).do(row)
    sent = next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send([Completion("x", "1", "stop", weights=answers(request)) for request in sent])
    return end.value.value, sent


def evenly(_: Request) -> tuple[float, ...]:
    return logs(*[0.2] * 5)


def logs(*shares: float) -> tuple[float, ...]:
    return tuple(math.log(share) if share else -math.inf for share in shares)


def test_the_expected_value_of_a_verdict() -> None:
    value, mass = expected(logs(0.1, 0.0, 0.1, 0.2, 0.1), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert value == pytest.approx((0.1 * 0.5 + 0.2 * 0.75 + 0.1) / 0.5)
    assert mass == pytest.approx(0.5)
    assert expected((-1000.0, -1001.0), [1.0, 0.0])[0] == pytest.approx(1 / (1 + math.exp(-1)))


def test_outliers_do_not_count() -> None:
    assert combined([0.1, 0.4, 0.6, 1.0]) == pytest.approx(0.525)
    assert combined([0.1, 0.4, 0.6, 1.0], 1) == pytest.approx(0.5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_our_wordings_hold_their_texts_and_verdicts(form: Form) -> None:
    first, *_, last = form.verdicts
    for prompt in form.prompts:
        assert problem_of(prompt, form.names) is None
        assert first in prompt and last in prompt


def test_each_wording_is_asked_once_and_the_scores_are_averaged(write: Write) -> None:
    wordings = ["A {original} {translation}", "B {translation} {original}"]
    path = write([{"translation": GOOD}], verdicts={"yes": 1, "no": 0}, threshold=0.6, prompts=wordings)

    def answers(one: Request) -> tuple[float, ...]:
        return logs(0.8, 0.1) if one.last[0] == "A" else logs(0.2, 0.6)

    new, sent = judged(path, {"translation": GOOD}, answers)
    assert [one.last for one in sent] == [f"A {GOOD['en']} {GOOD['ar']}", f"B {GOOD['ar']} {GOOD['en']}"]
    assert all(one.choices == ("yes", "no") for one in sent)
    first, second = 0.8 / 0.9, 0.2 / 0.8
    assert new[SCORE] == pytest.approx((first + second) / 2)
    verdict = new[VERDICT]
    assert verdict["scores"] == pytest.approx([first, second])
    assert verdict["mass"] == pytest.approx(0.85)
    assert (verdict["keep"], verdict["reason"], verdict["flags"]) == (False, "score", [])


@pytest.mark.parametrize(
    ("prompt", "around"),
    [
        ("[{original}] of {source} [{translation}] {target}!", "[] Arabic!"),
        ("{translation}{original}", ""),
    ],
)
def test_control_words_in_any_of_the_texts_are_text(write: Write, prompt: str, around: str) -> None:
    row = {"translation": {"en": "She <|im_end|> moved there.", "ar": "انتقلت <|im_end|> إلى هناك."}}
    _, (sent,) = judged(write([row], prompts=[prompt]), row, evenly)
    start, end = sent.span or (0, 0)
    assert sent.last[:start] + sent.last[end:] == around
    assert sent.last[start:end].count("<|im_end|>") == 2
    assert (" of English [" in sent.last) == (" of " in prompt)


def test_what_rules_reject_is_not_asked_for_and_nothing_is_dropped(write: Write, tmp_path: Path) -> None:
    rows = done(write([{"translation": texts} for texts in (GOOD, COPIED, EMPTY)]))
    assert [row[VERDICT]["reason"] for row in rows[1:]] == ["same", "empty"]
    assert [row[SCORE] is None for row in rows] == [False, True, True]
    assert "script" in rows[1][VERDICT]["flags"] and rows[1][VERDICT]["mass"] is None
    assert len((tmp_path / "asked.log").read_text().splitlines()) == len(FORMS["pairs"].prompts)
    assert rows[0][VERDICT]["keep"] == (rows[0][SCORE] >= 0.5)
    assert [row["translation"] for row in rows] == [GOOD, COPIED, EMPTY]


def test_a_text_that_a_row_lacks_is_counted_and_empty(write: Write) -> None:
    run = planned(write([{"source": GOOD["en"], "target": text} for text in (GOOD["ar"], None)], ()))
    work_until(run, lambda: False)
    assert manifest.read(run / "manifest.parquet").facts.notes == {"rows lack 'target'": 1}
    assert [row[VERDICT]["reason"] == "empty" for row in helpers.rows(run)] == [False, True]


def test_rules_can_be_chosen(write: Write) -> None:
    rows = [{"translation": texts} for texts in (GOOD, COPIED, EMPTY)]
    assert [row[VERDICT]["reason"] for row in done(write(rows, rules=["same"], threshold=0.0))] == ["", "same", ""]
    assert all(row[SCORE] is not None for row in done(write(rows, rules=[], name="none")))


def test_conditions_on_verdicts(write: Write) -> None:
    done(write([{"translation": texts} for texts in (GOOD, COPIED, EMPTY)], threshold=0.0))
    collect.collect(Path("runs/r"), Path("out"))
    table = pq.read_table("out/data")
    rows = table.to_pylist()
    assert [Where("hala_verdict.keep", table.schema).holds(row) for row in rows] == [True, False, False]
    assert [Where("judge >= 0", table.schema).holds(row) for row in rows] == [True, False, False]
    assert [Where("verdict.reason == 'same'", table.schema).holds(row) for row in rows] == [False, True, False]


def test_rules_alone_start_no_engine_and_ask_for_no_gpu(write: Write, hala: Hala, tmp_path: Path) -> None:
    path = write([{"translation": texts} for texts in (GOOD, COPIED, EMPTY)] * 40, prompts=[])
    broken = tmp_path / "broken"
    broken.touch()
    hala("plan", path, f"engine.broken={broken}", "--create")
    hala("worker", "runs/r")
    assert hala.json("verify", "r")["proven"]
    rows = helpers.rows(tmp_path / "runs" / "r")
    assert [row[VERDICT]["keep"] for row in rows] == [True, False, False] * 40
    assert {row[SCORE] for row in rows} == {None}
    state = hala.json("status", "r")
    assert sum(worker["counts"].get("rejected: same", 0) for worker in state["workers"]) == 40
    assert "rows rejected: 40 empty, 40 same" in " ".join(hala("status", "r").stdout.split())

    slurm = ["site.executor=slurm", "site.slurm.gpus_per_worker=1", "site.slurm.partition=gpu"]
    slurm.append("site.slurm_cpu.partition=cpu")
    for words, wanted, other in ((["engine.kind=vllm"], "cpu", "gpu"), (["task.prompts=null"], "gpu", "cpu")):
        script = hala.json("plan", path, "name=s", *slurm, *words)["sbatch"]
        assert f"--partition={wanted}\n" in script and f"--partition={other}\n" not in script
        assert ("gres" in script) == (wanted == "gpu")


CANDIDATES = ["text", "a", "b"]
ROW = {"text": GOOD["en"], "a": GOOD["ar"], "b": "لقد انتقلت إلى مدينة كبيرة."}


def test_the_better_of_two_in_both_orders(write: Write) -> None:
    path = write([ROW], CANDIDATES, rows="candidates", prompts=["{original}|{first}|{second}"], winner="text_ar")

    def likes_the_first_and_b(one: Request) -> tuple[float, ...]:
        return logs(0.9, 0.1) if one.last.split("|")[1] == ROW["b"] else logs(0.6, 0.4)

    new, sent = judged(path, ROW, likes_the_first_and_b)
    assert [one.last.split("|")[1:] for one in sent] == [[ROW["a"], ROW["b"]], [ROW["b"], ROW["a"]]]
    assert (new["text_ar"], new[VERDICT]["chosen"], new[VERDICT]["keep"]) == (ROW["b"], "b", True)
    assert new[SCORE] == pytest.approx((0.9 + 0.4) / 2)


def test_who_always_prefers_the_first_prefers_nobody(write: Write) -> None:
    path = write([ROW], CANDIDATES, rows="candidates", name="first")
    for percent in range(51, 100):
        new, _ = judged(path, ROW, lambda _: logs(percent / 100, 1 - percent / 100))  # noqa: B023
        assert new[SCORE] == pytest.approx(0.5)
        assert new[VERDICT]["chosen"] == "a", "of equals the one that is named first"
        assert new[VERDICT]["keep"], "a draw is no reason"


def test_three_candidates_are_compared_two_by_two(write: Write) -> None:
    row = ROW | {"c": "انتقلت الى المدينة الكبيرة تلك."}
    path = write([row], [*CANDIDATES, "c"], rows="candidates", prompts=["{original}|{first}|{second}"])
    order = [row["c"], row["a"], row["b"]]  # best first

    def of(one: Request) -> tuple[float, ...]:
        _, first, second = one.last.split("|")
        return logs(0.8, 0.2) if order.index(first) < order.index(second) else logs(0.2, 0.8)

    new, sent = judged(path, row, of)
    assert len(sent) == 6
    assert (new["best"], new[VERDICT]["chosen"]) == (row["c"], "c")
    assert new[SCORE] == pytest.approx(0.8)


def test_candidates_that_rules_reject_do_not_take_part(write: Write, tmp_path: Path) -> None:
    rows = [
        ROW | {"a": ROW["text"]},
        ROW | {"a": "", "b": ""},
        ROW | {"b": ROW["a"]},
        ROW,
    ]
    found = done(write(rows, CANDIDATES, rows="candidates"))
    assert [(row["best"], row[VERDICT]["chosen"], row[VERDICT]["keep"]) for row in found[:3]] == [
        (ROW["b"], "b", True),
        (None, None, False),
        (ROW["a"], "a", True),
    ]
    assert "a: same" in found[0][VERDICT]["flags"]
    assert found[1][VERDICT]["reason"] == "empty"
    assert [row[SCORE] is None for row in found] == [True, True, True, False]
    assert len((tmp_path / "asked.log").read_text().splitlines()) == 2, "one row, two orders"


def test_rules_alone_choose_by_script_and_length(write: Write) -> None:
    rows = [ROW | {"a": "انتقلت city إلى المدينة."}, ROW | {"a": "هي انتقلت من هناك إلى تلك المدينة الكبيرة."}, ROW]
    found = done(write(rows, CANDIDATES, rows="candidates", prompts=[]))
    assert [row[VERDICT]["chosen"] for row in found] == ["b", "b", "a"]


def test_instructions(write: Write) -> None:
    rows = [
        {"instruction": "ما هي عاصمة مصر؟", "response": "عاصمة مصر هي القاهرة."},
        {"instruction": "ما هي عاصمة مصر؟", "response": "The capital of Egypt is Cairo."},
    ]
    found = done(write(rows, (), rows="instructions"))
    assert [row[VERDICT]["reason"] == "script" for row in found] == [False, True]
    assert found[0][SCORE] is not None


def test_conversations(write: Write) -> None:
    asked, answer = {"role": "user", "content": "ما هي عاصمة مصر؟"}, {"role": "assistant", "content": "القاهرة."}
    more = [{"from": "human", "value": "وأين تقع؟"}, {"from": "gpt", "value": "على النيل."}]
    rows = [{"messages": talk} for talk in ([asked, answer], [asked, answer, *more], [asked, answer, more[0]], [asked])]
    path = write(rows, ["messages"], rows="instructions", prompts=["{instruction}|{response}"], rules=["empty"])
    sent = [judged(path, row, evenly)[1] for row in rows[:3]]
    one, two, open_ended = (texts.last for (texts,) in sent)
    assert one == open_ended == "ما هي عاصمة مصر؟|القاهرة."
    assert two == "user: ما هي عاصمة مصر؟\n\nassistant: القاهرة.\n\nuser: وأين تقع؟|على النيل."
    found = done(path, "name=done")
    assert [row[VERDICT]["reason"] for row in found][3] == "empty", "there is no answer"
    with pytest.raises(HalaError, match="not a list of turns"):
        planned(write([{"messages": 7}], ["messages"], rows="instructions", name="odd"))


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ({"rules": ["lenght"]}, PAIRS, r"no rule 'lenght' for pairs \(did you mean 'length'"),
        ({"rows": "instructions", "rules": ["numbers"]}, (), "no rule 'numbers' for instructions"),
        ({"prompts": ["{original}"]}, PAIRS, r"task\.prompts\[0\]: holds \{translation\} 0 times"),
        ({"prompts": [], "rules": []}, PAIRS, "neither rules nor prompts"),
        ({"target": "Words of Mars"}, PAIRS, "no language is called 'Words of Mars'"),
        ({"verdicts": {"1": 0, "10": 1}}, PAIRS, "'1' is empty, or another begins with it"),
        ({"verdicts": {"": 0, "a": 1}}, PAIRS, "'' is empty"),
        ({"verdicts": {"a": 1, "b": 1}}, PAIRS, "at least two different ones"),
        ({"verdicts": {"a": 1, "b": 5}}, PAIRS, "from 0"),
        ({"outliers": 1}, PAIRS, r"task\.outliers: 1 of the highest"),
        ({"threshold": 2}, PAIRS, r"task\.threshold: 2"),
        ({}, ["translation.en"], r"data\.columns: 1 for pairs"),
        ({}, ["translation.en", "translation.en"], "stands twice"),
        ({}, ["translation.en", "translation.fr"], r"no column 'translation\.fr'"),
        ({"label": "good"}, PAIRS, "no column 'good'"),
        ({"rows": "candidates"}, PAIRS, r"data\.columns: 2 for candidates"),
        ({"rows": "candidates", "label": "id"}, [*PAIRS, "id"], r"task\.label"),
        ({"rows": "candidates", "winner": "translation"}, [*PAIRS, "other"], "column 'translation' is there already"),
        ({}, (), "no column 'source'"),
        ({}, ["translation", "id"], r"column 'translation' holds .*not text"),
        ({"label": "id"}, PAIRS, r"task\.label: column 'id' holds 7"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_planned(
    write: Write, task: dict[str, Any], columns: Sequence[str], message: str
) -> None:
    path = write([{"translation": GOOD, "id": 7, "other": "x"}], columns, **task)
    with pytest.raises(HalaError, match=message):
        planned(path)


def test_other_shapes_and_engines_without_weights_are_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write([{"translation": GOOD}])
    with pytest.raises(HalaError, match=r"data\.shape: messages"):
        planned(path, "data.shape=messages")
    from hala_hpc.engines import echo
    from hala_hpc.engines.base import Abilities

    monkeypatch.setattr(echo, "ABILITIES", Abilities())
    with pytest.raises(HalaError, match=r"engine\.kind: echo does not say how likely"):
        planned(path)
    planned(path, "task.prompts=[]")


def test_a_failed_answer_is_a_reason(write: Write) -> None:
    path = write([{"translation": GOOD}])
    with pytest.raises(RowError, match="no weights"):
        judged(path, {"translation": GOOD}, lambda _: ())


def numbered(count: int) -> list[Row]:
    rows = []
    for number in range(count):
        texts = (GOOD | {"en": f"She has {number} books.", "ar": f"لديها {number} من الكتب."}, COPIED, EMPTY)[
            number % 3
        ]
        rows.append({"translation": texts, "good": int(number % 3 == 0)})
    return rows


def test_a_killed_run_gives_the_rows_of_an_unbroken_one(write: Write) -> None:
    path = write(numbered(300), label="good")
    whole = done(path, "name=whole")
    run = planned(path, "engine.seconds=0.05", "engine.capacity=4")
    process = helpers.start(run)
    helpers.wait_until(lambda: any(run.glob("shards/*/*.parquet")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(list(run.glob("shards/*/*.parquet"))) < 6, "in the middle"
    time.sleep(1.3)
    helpers.finish(run)
    assert helpers.proof(run).proven
    assert helpers.rows(run) == whole


def test_report_and_card_say_how_well_rows_are_told_apart(write: Write, hala: Hala, tmp_path: Path) -> None:
    done(write(numbered(90), label="good"))
    found = hala.json("collect", "r", "--to", "out")["judgements"]
    assert found["rejected: same"] == found["rejected: empty"] == "30"
    assert found["AUC"] == "1.0000 (30 good and 60 bad rows, by `good`)"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| bad rows rejected | 1.0000 |" in card and "| AUC | 1.0000" in card
    assert hala.json("verify", "out")["proven"]
    run, out = tmp_path / "runs" / "r", tmp_path / "out"
    assert content.dataset(run, out).judgements == content.uncollected(run).judgements == found
    hala("report", "r", "--to", "report")
    tables = json.loads((tmp_path / "report" / "report.json").read_text())["tables"]
    verdicts = {row["verdict"]: row["rows"] for row in tables["verdicts-r"]["rows"]}
    assert verdicts["rejected: empty"] == 30 and sum(verdicts.values()) == 90
    (calibration,) = tables["calibration-r"]["rows"]
    assert (calibration["AUC"], calibration["bad rejected"]) == (1.0, 1.0)
    assert len(tables["thresholds-r"]["rows"]) == 9
    text = (tmp_path / "report" / "report.md").read_text()
    assert re.search(r"### row \d+: same", text)


def test_a_judged_dataset_can_be_judged_again(write: Write, tmp_path: Path) -> None:
    done(write([{"translation": GOOD}]))
    collect.collect(Path("runs/r"), Path("out"))
    recipe = json.loads((tmp_path / "r.yaml").read_text())
    recipe |= {"name": "again", "data": {"path": "out/data", "columns": PAIRS}}
    (tmp_path / "again.yaml").write_text(json.dumps(recipe))
    (row,) = done(tmp_path / "again.yaml")
    assert {"hala_judge", "hala_verdict", "hala_judge_1", "hala_verdict_1"} <= row.keys()
