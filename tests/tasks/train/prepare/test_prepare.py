"""From rows to mapped tokens: planned, done by processes that may be killed, and proven; or refused, early."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hala_hpc.config.compose import freeze, thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup, planning
from hala_hpc.run import history, ledger, manifest, status
from hala_hpc.tasks.train.options import Dataset, Options
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.tasks.train.prepare import tokens as token_file
from hala_hpc.tasks.train.prepare.expected import of
from hala_hpc.worker import registry
from tests.conftest import Hala
from tests.data.tokenizer_kinds import KINDS, save
from tests.worker.helpers import REQUEUE, directory, events, finish, leftovers, proof, start, wait_until

Plan = Callable[..., Path]
CHAT = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(100)
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(KINDS["byte level"]([]), tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture
def recipe_of(tmp_path: Path, tokenizer: Path) -> Callable[..., Path]:
    """A recipe over files, or over rows that are written to one."""

    def write(given: Any, data: dict[str, Any] | None = None, run: dict[str, Any] | None = None, **task: Any) -> Path:
        files = given
        if isinstance(given, list) and isinstance(given[0], dict):
            files = tmp_path / "rows.jsonl"
            files.write_text("".join(json.dumps(row) + "\n" for row in given))
        recipe = {
            "name": "r",
            "task": {"kind": "prepare", "sequence_length": 512, **task},
            "model": {"name": tokenizer},
            "data": {"path": files, **(data or {})},
            "run": {"root": tmp_path / "runs", "shard_rows": 20, "lease_seconds": 1.2} | (run or {}),
        }
        path = tmp_path / "r.yaml"
        path.write_text(json.dumps(recipe, default=str))
        return path

    return write


@pytest.fixture
def plan(recipe_of: Callable[..., Path]) -> Plan:
    def plan(given: Any, words: tuple[str, ...] = (), **recipe: Any) -> Path:
        asked = lookup.load(recipe_of(given, **recipe), "local", words)
        return planning.plan_run(asked, planning.check(asked), Path(asked.run.root) / "r").path

    return plan


def outputs(run: Path) -> dict[str, bytes]:
    """What all files hold, but for what made them."""
    found = {}
    for path in sorted((run / "shards").rglob("*.arrow")):
        file = token_file.read(path)
        arrays = (file.row, file.piece, file.offsets, file.ids, file.loss, file.loss_tokens)
        found[path.name] = b"".join(array.tobytes() for array in arrays) + repr(file.error.to_pylist()).encode()
    return found


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_does_all_of_it(
    data: Path, hala: Hala, recipe_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Real rows, workers in the background: submit, status, verify; every row there once, kept or with its reason."""
    source = (data / "instructions/alpaca_52k/alpaca_data-51009-52002.json").resolve()
    recipe = recipe_of(source, run={"shard_rows": 100}, sequence_length=2048)
    summary = hala.json("plan", recipe)
    assert (summary["rows"], summary["shards"]) == (993, 10)
    hala("submit", recipe)
    wait_until(lambda: lookup.state_of(tmp_path / "runs/r").done == 10, 60)
    wait_until(lambda: events(tmp_path / "runs/r", "ended"))
    rows = json.loads(source.read_text())
    empty = sum(not row["output"].strip() for row in rows)
    status = hala.json("status", "r")
    assert (status["rows_done"], status["quarantined"]) == (993, empty)
    verdict = hala.json("verify", "r")
    assert verdict["proven"]
    assert (verdict["done"], sum(verdict["quarantined"].values())) == (993 - empty, empty)
    prepared = Prepared([tmp_path / "runs" / "r"])
    tokenizer = prepare.load_tokenizer(tmp_path / "runs" / "r")
    assert len(prepared) == 993 - empty
    for piece in range(0, len(prepared), 10):
        ids, loss = prepared[piece]
        row = rows[prepared.rows[piece]]
        assert tokenizer.decode(ids[loss]) == row["output"] + "<end_of_turn>"
        assert row["instruction"] in tokenizer.decode(ids)
        assert prepared.describe(piece) == f"r: {source}: row {prepared.rows[piece] + 1}"
    tokens = sum(event["prompt_tokens"] for event in events(tmp_path / "runs/r", "published"))
    assert tokens == prepared.lengths.sum()
    cost = history.of_run(tmp_path / "runs/r", {})
    assert (cost.prompt_tokens, cost.workers) == (tokens, 1), "a worker with all its processes is one"


def test_texts_are_cut_and_rows_without_anything_stand_with_their_reason(plan: Plan) -> None:
    rows = [{"text": "word " * 300}, {"text": " "}, {"text": "short"}, {"text": None}]
    run = plan(rows, rows="text", sequence_length=64)
    finish(run)
    verdict = proof(run)
    assert verdict.proven
    assert (verdict.done, verdict.quarantined) == (2, {"empty": 2})
    prepared = Prepared([run])
    assert prepared.lengths[:-1].tolist() == [64] * (len(prepared) - 2) + [prepared.lengths[-2]]
    assert prepared.rows.tolist() == [0] * (len(prepared) - 1) + [2]
    assert prepared.parts[0].dropped == {"empty": 2}


def test_rows_that_are_set_aside_are_no_part_of_what_is_expected(plan: Plan) -> None:
    rows = [{"text": "one"}, {"text": 5}, {"text": "two"}, {"text": " "}]
    run = plan(rows, rows="text", sequence_length=64, data={"bad_rows": "set_aside"})
    finish(run)
    assert (proof(run).done, proof(run).quarantined) == (2, {"empty": 1})
    facts = manifest.read(run / "manifest.parquet").facts
    assert (of(facts).rows, of(facts).used) == (3, 2)
    assert sum(count for note, count in facts.notes.items() if note.startswith("rows set aside: ")) == 1
    assert Prepared([run]).describe(1).endswith("rows.jsonl: row 2 of those taken")


def test_the_tokens_do_not_hang_on_the_models_folder_or_the_templates_file(
    plan: Plan, tokenizer: Path, tmp_path: Path
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        (tokenizer / "chat_template.jinja").read_text().replace("start_of_turn>'", "start_of_turn>ROLE '")
    )
    run = plan(CHAT, chat_template=str(template))
    template.unlink()
    finish(run)
    ids, _ = Prepared([run])[0]
    assert "<start_of_turn>ROLE user" in prepare.load_tokenizer(run).decode(ids)


# --- refused at plan time ---------------------------------------------------------------------------------------------


def long(number: int, words: int) -> dict[str, Any]:
    return {"instruction": f"Number {number}", "output": "word " * words}


def test_rows_that_are_too_long_are_counted_and_listed(plan: Plan, tmp_path: Path) -> None:
    """Both files' rows are told by file and row; those near the limit are measured, not guessed."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, lengths in zip(files, ([10, 200, 10], [30, 10, 110, 110, 110, 110, 110]), strict=True):
        file.write_text("".join(json.dumps(long(n, length)) + "\n" for n, length in enumerate(lengths)))
    with pytest.raises(HalaError) as refused:
        plan(files, sequence_length=120)
    said = str(refused.value)
    assert "6 of 10 rows have more than the 120 tokens of task.sequence_length" in said
    assert f"{files[0]}: row 2 (" in said
    assert f"{files[1]}: row 3 (" in said
    assert "and 1 more" in said
    longest = int(said.partition("task.sequence_length=")[2].partition(" ")[0])
    with pytest.raises(HalaError, match="1 of 10 rows have more than"):
        plan(files, sequence_length=longest - 1)
    run = plan(files, sequence_length=longest)
    finish(run)
    assert Prepared([run]).lengths.max() == longest


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_or_they_are_dropped_or_truncated_and_counted(plan: Plan, too_long: str) -> None:
    run = plan([long(0, 10), long(1, 300), long(2, 300)], sequence_length=100, too_long=too_long)
    finish(run)
    verdict = proof(run)
    assert verdict.proven
    part = Prepared([run]).parts[0]
    if too_long == "drop":
        assert verdict.quarantined == part.dropped == {"too long": 2}
        assert part.truncated == 0
    else:
        assert (verdict.done, part.truncated) == (3, 2)
        assert Prepared([run]).lengths.tolist()[1:] == [100, 100]


@pytest.mark.parametrize(
    ("rows", "task", "said"),
    [
        ([*CHAT[:3], {"messages": [{"role": "critic", "content": "x"}]}], {}, r"rows\.jsonl: row 4: turn 1 .*'critic'"),
        ([{"text": "x"}], {}, "only one column"),
        ([{"a": "x"}], {}, "cannot tell which columns"),
        ([{"messages": []}, {"messages": [{"role": "user", "content": "x"}]}], {}, "none of the 2 rows holds anything"),
        (CHAT[:1], {"sequence_length": 1}, "at least 2"),
        (CHAT[:1], {"chat_template": "none.jinja"}, "chat_template"),
    ],
)
def test_what_cannot_be_prepared_is_refused_and_leaves_nothing(
    plan: Plan, tmp_path: Path, rows: Any, task: dict[str, Any], said: str
) -> None:
    with pytest.raises(HalaError, match=said):
        plan(rows, **task)
    assert list((tmp_path / "runs").glob("*")) == []


def test_what_the_template_leaves_out_is_told_by_file_and_row_or_counted(plan: Plan, tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}
    rows = [*CHAT[:3], {"messages": [{"role": "user", "content": "2+2? <eos>"}, thought]}]
    with pytest.raises(
        HalaError, match=r"rows\.jsonl: row 4: the chat template leaves out reasoning_content of turn 2"
    ):
        plan(rows)
    for key, value, said in (
        ("leave_out", "thought", "no such part"),
        ("control_tokens", "<x>", "not a control token"),
    ):
        with pytest.raises(HalaError, match=f"{key}: .*{said}|{key}: '<x>' is {said}"):
            plan(rows, **{key: [value]})
    facts = manifest.read(plan(rows, leave_out=["reasoning_content"]) / "manifest.parquet").facts
    assert facts.notes == {
        "rows whose reasoning_content the chat template leaves out": 1,
        "rows with words of control tokens, which are text in them": 1,
    }


@pytest.mark.parametrize(("too_long", "count"), [("drop", 900), ("truncate", 100)])
def test_rows_that_are_used_and_dropped_are_counted_exactly_at_plan_time(plan: Plan, too_long: str, count: int) -> None:
    """Also where only some of the rows have to be tokenized for it; tokens are exact where all were."""
    rows = [long(n, 290 if n % 7 == 3 else 1 + n % 5) | ({"output": " "} if n % 11 == 1 else {}) for n in range(count)]
    run = plan(rows, sequence_length=200, too_long=too_long, run={"shard_rows": 450})
    expected = of(manifest.read(run / "manifest.parquet").facts)
    finish(run)
    prepared = Prepared([run])
    assert expected.dropped == prepared.parts[0].dropped
    assert expected.used == len(np.unique(prepared.rows)) == count - sum(expected.dropped.values())
    assert expected.truncated == prepared.parts[0].truncated
    assert expected.truncated == (too_long == "truncate" and sum(n % 7 == 3 and n % 11 != 1 for n in range(count)))
    assert expected.is_exact is (count == 100)
    assert expected.tokens == pytest.approx(prepared.lengths.sum(), rel=0 if expected.is_exact else 0.05)


def test_sources_that_would_be_read_in_two_ways(plan: Plan, tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text(json.dumps(CHAT[0]) + "\n")
    files[1].write_text(json.dumps({"conversations": [{"from": "gpt", "value": "Yo"}]}) + "\n")
    with pytest.raises(HalaError, match="rows of different shapes"):
        plan(files)


def test_a_template_without_marks(plan: Plan, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}")
    with pytest.raises(HalaError, match=r"no {% generation %} marks"):
        plan(CHAT, chat_template=str(template))


# --- workers that are stopped and killed ------------------------------------------------------------------------------


def many(count: int) -> list[dict[str, Any]]:
    return [long(number, 60 + number % 7) for number in range(count)]


def helpers(process: subprocess.Popen[str]) -> list[int]:
    """All processes below one."""
    found = [process.pid]
    for pid in found:
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found[1:]


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="session")
def unbroken(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run of ``many(6000)`` without any disturbance gives."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many(6000)))
    words = [
        f"data.path={folder / 'rows.jsonl'}",
        f"model.name={tokenizer}",
        f"run.root={folder}",
        "run.shard_rows=400",
    ]
    (folder / "r.yaml").write_text(json.dumps({"name": "r", "task": {"kind": "prepare"}}))
    asked = lookup.load(folder / "r.yaml", "local", tuple(words))
    run = planning.plan_run(asked, planning.check(asked), folder / "r").path
    finish(run)
    return outputs(run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_stops_all_processes_and_gives_the_shards_back(
    plan: Plan, unbroken: dict[str, bytes], number: int
) -> None:
    """Slurm sends it to every process of the job."""
    run = plan(many(6000), run={"shard_rows": 400})
    process = start(run)
    wait_until(lambda: len(events(run, "published")) >= 3)
    below = helpers(process)
    assert len(below) >= 2
    for pid in [process.pid, *below]:
        os.kill(pid, number)
    began = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == REQUEUE, said
    assert time.monotonic() - began < 8
    assert "Traceback" not in said
    assert said.count("keeping what is finished") == 1, "the worker says it for its processes"
    wait_until(lambda: not any(map(is_there, below)))
    assert [path for path in (run / "leases").rglob("*") if path.is_file()] == []
    assert not events(run, "failed", "crashed")
    assert 3 <= len(outputs(run)) < 15
    finish(run)
    assert outputs(run) == unbroken
    assert proof(run).proven
    assert leftovers(run) == []


@pytest.mark.slow
def test_a_killed_worker_takes_its_processes_with_it_and_another_goes_on(
    plan: Plan, unbroken: dict[str, bytes]
) -> None:
    run = plan(many(6000), run={"shard_rows": 400})
    process = start(run)
    wait_until(lambda: len(events(run, "published")) >= 3)
    below = helpers(process)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_there, below)))
    finish(run)
    assert outputs(run) == unbroken
    assert proof(run).proven
    assert leftovers(run) == []


def at_work(run: Path, process: subprocess.Popen[str]) -> int:
    """One of the processes below, stopped while it holds a lease."""
    pids = {event["pid"]: event["part_of"] for event in events(run, "started") if "part_of" in event}
    beacons = {ledger.first(file).get("pid"): run / "leases/workers" / file.stem for file in run.glob("ledger/*.jsonl")}
    for pid in helpers(process):
        if pid in pids and is_there(pid):
            os.kill(pid, signal.SIGSTOP)
            inode = beacons[pid].stat().st_ino if beacons[pid].exists() else 0
            held = [path for path in (run / "leases/000").iterdir() if path.stat().st_ino == inode]
            if any(not (run / "shards/000" / f"{path.name[:6]}.arrow").exists() for path in held):
                return pid
            os.kill(pid, signal.SIGCONT)
    return 0


@pytest.mark.slow
def test_a_process_that_is_killed_costs_an_attempt_and_nothing_else(plan: Plan, unbroken: dict[str, bytes]) -> None:
    """Nor a wait: its lease would be good for an hour."""
    run = plan(many(6000), run={"shard_rows": 400, "lease_seconds": 3600.0})
    process = start(run)
    wait_until(lambda: len(events(run, "published")) >= 2)
    victims: list[int] = []
    wait_until(lambda: bool(victims.append(at_work(run, process)) or victims[-1]))
    state = status.read(run, 3600.0, 5)
    assert (state.alive, len(state.workers) > 2) == (1, True), "a worker with all its processes is one"
    os.kill(victims[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    (crash,) = events(run, "crashed")
    assert crash["error"] == "a process died of SIGKILL"
    again = [event["attempt"] for event in events(run, "claimed") if [event["shard"]] == crash["shards"]]
    assert again == [1, 2]
    assert len(events(run, "claimed")) == 16  # no other shard had to be done again
    assert outputs(run) == unbroken
    assert leftovers(run) == []


@pytest.mark.slow
def test_a_shard_that_kills_its_process_is_set_aside_after_the_usual_attempts(plan: Plan) -> None:
    """Here a process is killed as soon as it is seen at that shard."""
    run = plan(many(3000), run={"shard_rows": 300, "lease_seconds": 3600.0, "attempts": 2})
    process = start(run)
    killed: set[str] = set()
    while process.poll() is None:
        for lease in run.glob("leases/000/000004.?"):
            pids = {f"{file.stem}": ledger.first(file)["pid"] for file in run.glob("ledger/*+*.jsonl")}
            holders = [name for name in pids if _is_link(run / "leases/workers" / name, lease)]
            for name in holders:
                if name not in killed:
                    os.kill(pids[name], signal.SIGKILL)
                killed.add(name)
        time.sleep(0.005)
    assert process.returncode == 1, "work was set aside, as accounting is to show"
    assert [event["shards"] for event in events(run, "crashed")] == [[4], [4]]
    state = status.read(run, 3600.0, 2)
    assert (state.done, state.failed, state.running) == (9, 1, 0)
    assert events(run, "ended")[-1]["outcome"] == "gave up"


def _is_link(beacon: Path, lease: Path) -> bool:
    try:
        return beacon.samefile(lease)
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_workers_share_the_shards(plan: Plan, unbroken: dict[str, bytes]) -> None:
    run = plan(many(6000), run={"shard_rows": 400})
    workers = [start(run) for _ in range(2)]
    for worker in workers:
        assert worker.wait(timeout=90) == 0
    assert outputs(run) == unbroken
    assert len(events(run, "published")) == 15


def test_a_source_that_changed_is_not_tokenized(plan: Plan, tmp_path: Path) -> None:
    run = plan(CHAT[10:], run={"attempts": 1}, words=("site.slurm.cpus_per_worker=2",))  # three for one of the two
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(CHAT[10:])))
    said = finish(run, code=2)
    assert "changed since the run was planned" in said
    assert outputs(run) == {}


# --- proof ------------------------------------------------------------------------------------------------------------


def test_verify_sees_what_is_wrong_with_a_file(plan: Plan) -> None:
    run = plan(CHAT)
    finish(run)
    assert proof(run).proven
    outputs_of = directory(run).shard_output
    first, second = outputs_of(0), outputs_of(1)
    whole, other = first.read_bytes(), second.read_bytes()
    file = token_file.read(first)
    spoilt = bytearray(whole)
    spoilt[whole.index(file.ids.tobytes()) + 40] ^= 1
    for content, said in (
        (bytes(spoilt), "not those that were written"),
        (other, "20 of its rows are lost, 20 are of another shard"),
        (whole[:-200], "not readable"),
    ):
        first.write_bytes(content)
        verdict = proof(run)
        assert not verdict.proven
        assert any(said in problem for problem in verdict.problems), verdict.problems
    rows = [(int(row), [token_file.Tokens(*piece)]) for row, piece in zip(file.row, _pieces(file), strict=True)]
    for change, said in (
        (rows[:-1], "1 of its rows are lost"),
        ([rows[0], *rows], "pieces of a row are lost or twice"),
        ([rows[1], rows[0], *rows[2:]], "out of order"),
    ):
        first.unlink()
        token_file.write(first, change, b"{}", "0")
        problems = proof(run).problems
        assert any(said in problem for problem in problems), problems
        assert any("not those of the source" in problem for problem in problems)


def _pieces(file: token_file.Opened) -> list[tuple[Any, Any]]:
    places = zip(file.offsets, file.offsets[1:], strict=False)
    return [(np.array(file.ids[begin:end]), np.array(file.loss[begin:end])) for begin, end in places]


def test_the_recipe_of_one_dataset_of_a_mixture(
    recipe_of: Callable[..., Path], tmp_path: Path, tokenizer: Path
) -> None:
    words = ("site.slurm_cpu.cpus_per_worker=7", "site.slurm.gpus_per_worker=8", "task.sequence_length=64")
    asked = lookup.load(recipe_of(CHAT), "local", (*words, "site.shared_with=group"))
    asked.task = Options(sequence_length=64, too_long="drop", chat_template="/x.jinja")
    dataset = Dataset(path=[str(tmp_path / "rows.jsonl")], kind="text", columns=["messages"], weight=3.0, limit=5)
    nested = prepare.recipe_for(asked, "mine", dataset)
    assert (nested.name, nested.task.kind, nested.task.rows) == ("r-mine", "prepare", "text")
    assert (nested.task.sequence_length, nested.task.too_long, nested.task.chat_template) == (64, "drop", "/x.jinja")
    assert (nested.data.path, nested.data.limit, nested.data.columns) == (dataset.path, 5, ["messages"])
    assert (nested.site.slurm.gpus_per_worker, nested.site.slurm.cpus_per_worker) == (0, 7)
    assert asked.site.slurm.gpus_per_worker == 8
    assert not nested.is_shared and not asked.is_shared, "a training is its owner's"
    (tmp_path / "frozen.yaml").write_text(freeze(nested))
    assert thaw(tmp_path / "frozen.yaml", registry.options_of) == nested
    assert not hasattr(nested.data, "weight")
