"""Some rows of a finished run again, as a run of its own: the others stay byte for byte, whatever happens meanwhile."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.data.outputs import collect, diff
from hala_hpc.data.outputs.chosen import Choice
from hala_hpc.data.outputs.quarantine import reopen
from hala_hpc.data.schema import JSON
from hala_hpc.pipeline import lookup, planning, redo
from hala_hpc.publish import sources
from hala_hpc.report import write
from hala_hpc.run import digests, manifest, status
from hala_hpc.run.verify import set_aside_damaged
from hala_hpc.worker import registry
from tests.conftest import Hala
from tests.worker.helpers import events, finish, leftovers, plan, proof, start, texts, wait_until

TENTH = "matches(text, '3$')"
OTHER = "task.prompt='again: {text}'"


def again(run: Path, choice: Choice, *overrides: str, name: str = "") -> Path:
    """Plan a redo; its log stands beside the run's."""
    log = run.parents[1] / f"{name or run.name}-again.log"
    planned = redo.plan(run, choice, (*overrides, f"engine.log={log}"), name)
    planned.make()
    return planned.planned.path


def prompts(run: Path) -> list[str]:
    log = Path(lookup.thawed(run).engine.log)
    return sorted(line[1:-1] for line in log.read_text().splitlines()) if log.exists() else []


def table(run: Path) -> pa.Table:
    """All rows, without what made each shard."""
    outputs = sorted((run / "shards").rglob("*.parquet"))
    return pa.concat_tables(pq.read_table(output).replace_schema_metadata() for output in outputs)


def others(run: Path, rows: Sequence[int]) -> pa.Table:
    """All rows but some."""
    whole = table(run)
    return whole.filter(pa.array([number not in rows for number in whole["hala_row"].to_pylist()]))


def contents(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of a hundred rows in ten shards, of which eleven are in quarantine."""
    made = plan(tmp_path, texts(100), fail_on="text 8", capacity=8)
    finish(made)
    return made


def test_a_tenth_again_leaves_the_other_rows_byte_for_byte(run: Path) -> None:
    before = contents(run)
    new = again(run, Choice(TENTH), OTHER)
    assert new == run.with_name("r-v2")
    finish(new)
    rows = [number for number in range(3, 100, 10) if number != 83]  # that one is in quarantine
    assert others(new, rows).equals(others(run, rows))
    assert {row["hala_row"]: row["text_ar"] for row in table(new).to_pylist() if row["hala_row"] in rows} == {
        number: f"«again: text {number}»" for number in rows
    }
    assert prompts(new) == sorted(f"again: text {number}" for number in rows)
    assert contents(run) == before
    assert proof(new).proven and proof(new).quarantined == {"failed": 11}
    assert leftovers(new) == []
    assert (new / "shards/000/000008.parquet").samefile(run / "shards/000/000008.parquet")


def test_the_source_is_not_read_again(run: Path) -> None:
    (run.parents[1] / "r.jsonl").unlink()
    new = again(run, Choice("text == 'text 17'"), OTHER)
    finish(new)
    assert others(new, [17]).equals(others(run, [17]))
    assert proof(new).proven


def test_a_redo_of_a_redo_is_the_third_version(run: Path) -> None:
    second = again(run, Choice("hala_row == 3"), OTHER)
    finish(second)
    third = again(second, Choice("hala_row == 3 or hala_row == 14"), "task.prompt='third: {text}'")
    assert third.name == "r-v3"
    finish(third)
    assert others(third, [3, 14]).equals(others(run, [3, 14]))
    assert table(third)["text_ar"][3].as_py() == "«third: text 3»"
    assert proof(third).proven
    redone = manifest.read(third / "manifest.parquet").facts.redo
    assert redone and [earlier["name"] for earlier in redone["earlier"]] == ["r", "r-v2"]
    fourth = again(third, Choice("hala_row == 50"), OTHER)  # of rows that three runs made
    finish(fourth)
    assert proof(fourth).proven and others(fourth, [50]).equals(others(third, [50]))


def test_rows_in_quarantine_are_chosen_by_their_reason(run: Path) -> None:
    new = again(run, Choice(quarantine="failed"), "engine.fail_on=null")
    finish(new)
    held = [8, *range(80, 90)]
    assert others(new, held).equals(others(run, held))
    assert prompts(new) == sorted(f"text {number}" for number in held)
    assert proof(new).quarantined == {}
    both = again(run, Choice("hala_row < 2", ""), "engine.fail_on=null", "sampling.seed=1")
    assert both.name == "r-v3"
    facts = manifest.read(both / "manifest.parquet").facts
    assert facts.redo and (facts.redo["rows"], facts.redo["shards"]) == (13, 2)
    with pytest.raises(HalaError, match=r"no row is in quarantine for 'other' \(there are: failed \(11\)\)"):
        redo.plan(run, Choice(quarantine="other"), ())
    with pytest.raises(HalaError, match=r"kept in it as they are.*hala redo r-v2 --quarantine"):
        reopen(new, "")


@pytest.mark.parametrize(
    ("where", "overrides", "words"),
    [
        ("hala_row > 1000", (), r"none of its 100 rows is chosen \(in quarantine: failed \(11\)\)"),
        ("nothing > 1", (), "rows have no 'nothing'"),
        ("hala_row == 3", ("data.limit=50",), "data.limit: rows, shards and columns stay those of the run"),
        ("hala_row == 3", ("run.shard_rows=5",), "run.shard_rows: rows, shards"),
        ("hala_row == 3", ("name=x",), "name: rows, shards and columns stay.*--name"),
        ("hala_row == 3", ("task.suffix=_eu",), "'text_eu' would be string, and in r has none"),
        ("hala_row == 3", ("task.segments.tokens=100",), "'hala_shape' would be string, and in r has none"),
        ("hala_row == 3", ("task.truncated=keep",), "'hala_truncated' would be bool"),
        ("hala_row == 3", ("task.prompt=nothing",), "task.prompt"),
        ("hala_row == 3", ("task.colour=red",), "colour"),
    ],
)
def test_what_is_refused(run: Path, where: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(HalaError, match=words):
        redo.plan(run, Choice(where), overrides)
    assert [path.name for path in run.parent.iterdir()] == ["r"]


def test_refusals_of_runs(tmp_path: Path, run: Path) -> None:
    with pytest.raises(HalaError, match=r"r exists \(give another --name"):
        redo.plan(run, Choice("hala_row == 3"), (OTHER,), "r")
    unfinished = plan(tmp_path, texts(20), "begun")
    with pytest.raises(HalaError, match=r"2 shards not finished.*hala resume begun"):
        redo.plan(unfinished, Choice("hala_row == 3"), ())
    output = run / "shards/000/000004.parquet"
    output.write_bytes(output.read_bytes()[:-50] + b"x" * 50)
    with pytest.raises(HalaError, match=r"shard 4 .*hala resume .* --damaged"):
        redo.plan(run, Choice("hala_row == 3"), (OTHER,))


def test_the_same_recipe_gives_the_same_rows_and_says_so(run: Path) -> None:
    planned = redo.plan(run, Choice(TENTH), ("run.workers=2",))
    assert "the recipe is the same" in planned.warnings[0] and "sampling.temperature=0.5" in planned.warnings[0]
    assert "another seed changes little" in redo.plan(run, Choice(TENTH), ("sampling.seed=1",)).warnings[0]
    assert not redo.plan(run, Choice(quarantine=""), ()).warnings
    planned.make()
    finish(planned.planned.path)
    assert table(planned.planned.path).equals(table(run))
    found = diff.diff(planned.planned.path)
    assert found and (found.rows, found.changed, found.worse) == (9, 0, 0)
    assert not redo.plan(run, Choice(TENTH), (OTHER,)).warnings


KILLED = """
import sys, time
from pathlib import Path
from hala_hpc.data.outputs import redo as data
from hala_hpc.data.outputs.chosen import Choice
from hala_hpc.pipeline import redo
linked, link = [], data.files.link_or_copy
def slowly(source, target):
    if len(linked) == 4:
        print("half", flush=True)
        time.sleep(60)
    linked.append(link(source, target))
data.files.link_or_copy = slowly
redo.plan(Path(sys.argv[1]), Choice("hala_row == 3"), ("sampling.seed=1",)).make()
"""


def test_a_kill_while_it_is_planned_leaves_no_run(hala: Hala, run: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert [path.name for path in run.parent.glob("[!.]*")] == ["r"]
    assert len(list(run.parent.glob(".r-v2.*.tmp"))) == 1
    said = hala("runs").stderr
    assert "left by a plan that was killed" in said
    new = again(run, Choice("hala_row == 3"), OTHER)
    finish(new)
    assert proof(new).proven and others(new, [3]).equals(others(run, [3]))


@pytest.mark.parametrize("purged", [False, True])
def test_a_worker_is_killed_in_the_middle(run: Path, purged: bool) -> None:
    """Even where what it had finished is purged, only the chosen rows are done anew."""
    chosen = [number for number in range(100) if number % 10 < 5 and number not in (8, *range(80, 90))]
    new = again(run, Choice("hala_row % 10 < 5"), OTHER, "engine.seconds=0.1", "engine.capacity=2")
    process = start(new)
    wait_until(lambda: len(prompts(new)) >= 12)
    process.kill()
    process.communicate()
    assert 0 < status.read(new, 1.2, 5).done < 10 or len(prompts(new)) < 45
    for folder in ("partial/000", "leases/000") if purged else ():
        for file in (new / folder).iterdir():
            file.unlink()
    finish(new)
    assert others(new, chosen).equals(others(run, chosen))
    assert set(prompts(new)) == {f"again: text {number}" for number in chosen}
    twice = [text for text, count in Counter(prompts(new)).items() if count > 1]
    assert len(twice) <= (10 if purged else 6)
    assert proof(new).proven and leftovers(new) == []


def test_progress_counts_rows_that_are_kept(run: Path) -> None:
    new = again(run, Choice("hala_row == 3 or hala_row == 14"), OTHER)
    state = status.read(new, 1.2, 5)
    assert (state.rows_done, state.done, state.waiting, state.quarantined) == (98, 8, 2, 11 - 1)
    finish(new)
    state = status.read(new, 1.2, 5)
    assert (state.rows_done, state.done, state.quarantined, state.unknown_quarantine) == (100, 10, 11, 0)
    assert events(new, "claimed")[0]["taken_up"] == 9


def test_verify_sees_a_row_that_should_have_stayed(run: Path) -> None:
    new = again(run, Choice("hala_row == 3"), OTHER)
    finish(new)
    output = new / "shards/000/000000.parquet"
    good, there = output.read_bytes(), digests.read(output)[0]
    changed = [*there["text_ar"].to_pylist()]
    changed[4] = "another"
    digests.write_table(there.set_column(1, "text_ar", pa.array(changed)), output)
    assert "shard 0: rows that were to stay are not the earlier run's" in proof(new).problems
    output.write_bytes((run / "shards/000/000000.parquet").read_bytes())
    assert "shard 0: was made by another run" in proof(new).problems
    output.write_bytes(good)
    assert proof(new).proven
    kept = new / "shards/000/000001.parquet"
    kept.unlink()
    kept.write_bytes(good)
    assert "shard 1: is the output of shard 0 under another's name" in proof(new).problems


def test_damaged_outputs_are_done_again_with_the_same_rows_kept(run: Path) -> None:
    new = again(run, Choice("hala_row == 3"), OTHER)
    finish(new)
    before, task = table(new), registry.create(lookup.thawed(new))
    output = new / "shards/000/000000.parquet"
    output.write_bytes(output.read_bytes()[:-40])
    assert set_aside_damaged(new, task.checker(manifest.read(new / "manifest.parquet").facts)).damaged == [0]
    finish(new)
    assert table(new).equals(before)
    assert prompts(new) == ["again: text 3"] * 2
    kept = new / "shards/000/000001.parquet"
    kept.unlink()
    finish(new, code=1)
    assert "shard 1 is an earlier run's" in events(new, "failed")[0]["error"]
    kept.write_bytes((run / "shards/000/000001.parquet").read_bytes())
    assert proof(new).proven and table(new).equals(before)
    (new / "again.parquet").rename(new / "away")
    assert f"{new}/again.parquet cannot be read: No such file" in proof(new).problems[0]


def test_values_of_every_type_stay_as_they_are(tmp_path: Path) -> None:
    """Nested ones, JSON, nulls at any depth, numbers that are none."""
    count = 20
    json_values = pa.array([f'{{"a": {n}, "b": null}}' if n % 3 else None for n in range(count)]).cast(JSON)
    structs = pa.array([{"x": None if n % 2 else n, "y": {"z": [None, n]}} if n % 5 else None for n in range(count)])
    pairs: list[Any] = [[("k", n)] if n % 4 else None for n in range(count)]
    columns: dict[str, Any] = {
        "text": [f"text {n}" for n in range(count)],
        "json": json_values,
        "structs": structs,
        "map": pa.array(pairs, pa.map_(pa.string(), pa.int64())),
        "large": pa.array([[b"\x00", None]] * count, pa.large_list(pa.large_binary())),
        "category": pa.array(["a", None] * (count // 2)).dictionary_encode(),
        "nan": [float("nan"), -0.0] * (count // 2),
        "when": pa.array(range(count), pa.timestamp("ns", "Europe/Madrid")),
        "nothing": pa.nulls(count),
        "messages": [[{"role": "user", "content": f"turn {n}", "more": None}] for n in range(count)],
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    data = {"path": [str(tmp_path / "in.parquet")], "columns": ["text", "messages"]}
    run = plan(tmp_path, [], data=data, fail_on="text 7")
    finish(run)
    new = again(run, Choice("hala_row == 0 or hala_row == 3 or hala_row == 19"), OTHER)
    finish(new)
    assert proof(new).proven
    before, after = others(run, [0, 3, 19]), others(new, [0, 3, 19])
    assert before.schema.equals(after.schema, check_metadata=True)
    for name in before.column_names:
        old, kept = (part[name].combine_chunks() for part in (before, after))
        assert old.equals(kept) or (name == "nan" and str(old) == str(kept)), name
    assert (
        table(new).select(list(columns)).to_pylist().__repr__()
        == table(run).select(list(columns)).to_pylist().__repr__()
    )
    done = table(new).to_pylist()[19]
    assert (done["text_ar"], done["messages_ar"][0]["content"]) == ("«again: text 19»", "«again: turn 19»")


ARABIC = "هذه ترجمة عربية للنص الذي جاء في السطر: "


def checked_run(folder: Path) -> Path:
    """A run with checks, whose answers are not in the target language."""
    file = folder / "r.jsonl"
    rows = [f"This is the plain sentence with the number {number}, and nobody translates it." for number in range(30)]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    recipe = {
        "name": "r",
        "task": {"kind": "translate", "prompt": "{text}"},
        "engine": {"kind": "echo", "log": str(folder / "r.log"), "fail_on": "number 11"},
        "data": {"path": [str(file)]},
        "run": {"root": str(folder / "runs"), "shard_rows": 10, "lease_seconds": 1.2, "flush_seconds": 0.2},
    }
    path = folder / "r.json"
    path.write_text(json.dumps(recipe))
    asked_for = lookup.load(path, "local", ())
    made = planning.plan_run(asked_for, planning.check(asked_for), folder / "runs" / "r").path
    finish(made)
    return made


def flags_of(run: Path, rows: Sequence[int]) -> Counter[str]:
    held = [row for row in table(run).to_pylist() if row["hala_row"] in rows]
    flags = Counter(flag for row in held if row["hala_checks"] for flag in row["hala_checks"]["flags"])
    return flags + Counter("quarantine: failed" for row in held if row["hala_error"])


def test_the_diff_is_in_card_and_report(tmp_path: Path) -> None:
    run = checked_run(tmp_path)
    rows = [number for number in range(20) if number != 11]
    prompt = f"task.prompt='{ARABIC}{{text}}'"
    new = again(run, Choice("'script' in flags and hala_row < 20", "failed"), prompt, "engine.fail_on='number 1,'")
    finish(new)
    rows = [*rows, 11]
    before, now = flags_of(run, rows), flags_of(new, rows)
    assert before["script"] == 19 and before["quarantine: failed"] == now["quarantine: failed"] == 1
    found = diff.diff(new)
    assert found and (found.rows, found.changed) == (20, 20)
    assert (found.flags_before, found.flags_after) == (before, now)
    assert found.worse >= 1 and found.better >= 1, "row 1 went to quarantine, row 11 came out of it"
    assert len(found.examples) == diff.EXAMPLES

    collect.collect(new, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "20 rows in 2 shards of r, where 'script' in flags and hala_row &lt; 20 and those in quarantine for" in card
    assert "| flag | rows before | rows now |\n|---|---|---|\n" in card
    assert f"| script | 19 | {now['script']} |" in card and "| changed | 20 |" in card
    assert collect.verify(tmp_path / "out").proven
    assert "engine.fail_on" not in card, "what an engine was told may name hosts"

    report = write.as_data(write.gather([new], write.ReportOptions()))
    tables: Any = report["tables"]
    assert {"rows": "changed", "count": 20} in tables["redo-r-v2"]["rows"]
    assert {"flag": "script", "rows before": 19, "rows now": now["script"]} in tables["flags-r-v2"]["rows"]
    assert "again-r-v2" in report["sections"]  # type: ignore[operator]


def test_rows_that_stay_are_held_to_no_new_pattern(tmp_path: Path) -> None:
    """A pattern changes what the signature of a text is, of those rows alone that are done with it."""
    run = checked_run(tmp_path)
    new = again(run, Choice("hala_row == 3 or hala_row == 14"), "task.segments.patterns=['plain']")
    finish(new)
    assert proof(new).proven
    signatures = table(new)["hala_shape"].to_pylist()
    assert signatures[3] != table(run)["hala_shape"][3].as_py()


def test_a_card_names_every_model_that_wrote_rows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = run / "recipe.yaml"
    new = again(run, Choice("hala_row == 3"), OTHER)
    plan_of = manifest.read(new / "manifest.parquet")
    redone = plan_of.facts.redo
    assert redone and redone["earlier"][0]["writer"] is None, "echo is no model"
    assert "echo" in recipe.read_text()
    writer = {"name": "org/old", "revision": None, "tokenizer": None, "licence": "mit"}
    redone["earlier"][0]["writer"] = writer
    manifest.write(new / "manifest.parquet", list(plan_of), plan_of.facts)
    named = sources.of_run(new, lambda *_: None)
    assert ("org/old", "writer", "mit") in [(source.name, source.role, source.licence) for source in named]


def test_the_command(hala: Hala, run: Path) -> None:
    assert "which rows?" in hala("redo", run, code=2).stderr
    shown = hala.json("redo", run, "--where", TENTH, OTHER, "--dry-run")
    assert (shown["redo"]["rows"], shown["redo"]["shards"], shown["of_rows"]) == (9, 9, 100)
    assert shown["redo"]["changes"] == {"task.prompt": ["{text}", "again: {text}"]}
    assert [path.name for path in run.parent.iterdir()] == ["r"]
    hala("redo", run, "--where", TENTH, OTHER, "--name", "mended")
    wait_until(lambda: lookup.state_of(run.parent / "mended").finished, 60)
    record = hala.json("status", "mended")
    assert record["redo"]["where"] == TENTH and record["rows_done"] == 100
    said = hala("status", "mended").stdout
    assert "9 rows in 9 shards of r, where matches" in said and "task.prompt=again: {text} (was {text})" in said
    assert hala.json("verify", "mended")["proven"]
    assert "exists" in hala("redo", run, "--where", TENTH, OTHER, "--name", "mended", code=2).stderr
    assert "a run's recipe is frozen" in hala("resume", "mended", "task.target=x", code=2).stderr
    assert "reads no file" in hala("resume", "mended", f"data.path={run}", code=2).stderr


def test_a_cell_of_a_grid_is_done_again_beside_the_grid(run: Path) -> None:
    (run.parent / "grid.json").write_text("{}")
    assert redo.plan(run, Choice(TENTH), (OTHER,)).planned.path == run.parents[1] / "runs-r-v2"


def test_files_are_copied_where_they_cannot_be_linked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr("os.link", refused)
        new = again(run, Choice("hala_row == 3"), OTHER)
    finish(new)
    assert proof(new).proven and others(new, [3]).equals(others(run, [3]))
    kept = (new / "shards/000/000001.parquet", run / "shards/000/000001.parquet")
    assert not kept[0].samefile(kept[1]) and kept[0].read_bytes() == kept[1].read_bytes()
