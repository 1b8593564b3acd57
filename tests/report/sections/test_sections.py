"""The parts of a report that come from one run alone."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hala_hpc.data import schema, unify
from hala_hpc.report import runs
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.sections import evaluation_plots, merges, own_report, rows, workers
from hala_hpc.report.table import isolated
from hala_hpc.run import manifest
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.tasks.evaluate import choose
from tests.report import made
from tests.report.made import Model

SETTINGS = made.SETTINGS


def run_of(folder: Path, kind: str, facts: Facts, **task: Any) -> ReportedRun:
    """A run of one shard that nobody has worked on."""
    recipe = {"name": folder.name, "task": {"kind": kind, **task}, "run": SETTINGS}
    manifest.create(folder, json.dumps(recipe), lambda _: ([Shard(0, kind, "s", 0, 0, facts.rows, 0, 1, "d")], facts))
    return runs.read([folder])[0]


def texts(rows_of: list[dict[str, Any]], new: list[str]) -> tuple[Facts, pa.Table]:
    """Facts of a run over rows, and the output of its one shard."""
    table = schema.to_table(rows_of, unify.infer(rows_of))
    given = table.drop_columns(["hala_row", "hala_error", *new]).schema
    return Facts(".parquet", table.num_rows, 2, 0, 0, schema=given.serialize().to_pybytes().hex()), table


@pytest.mark.parametrize("more", [{}, {"weight": 1}])
def test_examples_show_each_text_beside_its_own_translation(tmp_path: Path, more: dict[str, int]) -> None:
    """Also where turns are kept as JSON, for they differ in their keys."""
    import pyarrow.parquet as pq

    turns = [{"from": "human", "value": "good morning"}, {"from": "gpt", "value": "hello"} | more]
    translated = [{"from": "human", "value": "صباح الخير"}, {"from": "gpt", "value": "مرحبا"} | more]
    first = {"turns": turns, "id": "7", "turns_ar": translated, "hala_row": 0, "hala_error": None}
    second = {"turns": turns, "id": "8", "turns_ar": None, "hala_row": 1, "hala_error": "truncated: after 9 tokens"}
    facts, table = texts([first, second], ["turns_ar"])
    run = run_of(tmp_path / "run", "translate", facts, suffix="_ar")
    pq.write_table(table, run.directory.shard_output(0))
    found = rows.section(run, 1)
    assert found is not None
    (example,) = found.examples
    assert example.texts == (
        ("turns[0].value", "good morning"),
        ("turns_ar[0].value", "صباح الخير"),
        ("turns[1].value", "hello"),
        ("turns_ar[1].value", "مرحبا"),
    )


def test_quarantine_is_counted_by_reason(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    errors = [None, "truncated: after 9 tokens", "truncated: after 8 tokens", "empty: nothing"]
    lines = [{"text": "a", "text_ar": "ب", "hala_row": n, "hala_error": error} for n, error in enumerate(errors)]
    facts, table = texts(lines, ["text_ar"])
    run = run_of(tmp_path / "run", "translate", facts, suffix="_ar")
    pq.write_table(table, run.directory.shard_output(0))
    made.work(run.directory, [0])
    ledger = next(run.directory.ledger.glob("worker-0.jsonl"))
    ledger.write_text(ledger.read_text().replace('"errors": 0', '"errors": 3'))
    found = rows.section(run, 0)
    assert found is not None
    assert [[cell.value for cell in row] for row in found.tables[1].rows] == [["truncated", 2], ["empty", 1]]


def test_a_runs_own_report_becomes_tables(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "quantize", Facts("", 1, 0, 0, 0, unit="files", items=[{"name": "a"}]))
    assert own_report.section(run) is None
    told = {
        "kind": "quantize",
        "ratio": 0.5,
        "tied": True,
        "source": {"name": "/models/teacher", "bytes": 2_000},
        "ignore": ["lm_head", "router"],
        "tensors": [{"name": f"t{number}", "shape": [2, 3], "error": number / 8} for number in range(300)],
    }
    (run.path / "final").mkdir()
    (run.path / "final" / "report.json").write_text(json.dumps(told))
    found = own_report.section(run)
    assert found is not None
    facts, source, ignore, tensors = found.tables
    assert [row[1].text for row in facts.rows] == ["quantize", "0.5000", "yes"]
    assert [row[1].text for row in source.rows] == ["teacher", "2,000"]
    assert [row[1].text for row in ignore.rows] == ["lm_head", "router"]
    assert [cell.text for cell in tensors.rows[1]] == ["t1", "2, 3", "0.1250"]
    assert (len(tensors.rows), tensors.folded, tensors.note) == (200, True, "The first 200 of 300.")


def test_a_comparison_is_shown_by_model_and_by_text(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "compare", Facts("", 1, 0, 0, 0, unit="benchmarks", items=[{"name": "a"}]))
    numbers = {"difference": -0.25, "divergence": 0.125, "same_first": 0.5}
    base = {"bytes": 2_000_000_000, "log_probability": -3.0, "against_base": None, "size_ratio": 1.0}
    against = {**numbers, "by_text": {"arabic": {"tokens": 7, **numbers}}}
    fp8 = {"bytes": 1_000_000_000, "log_probability": -3.25, "against_base": against, "size_ratio": 0.5}
    told = {"kind": "compare", "base": "source", "tokens": 7, "models": {"source": base, "fp8": fp8}}
    (run.path / "final").mkdir()
    (run.path / "final" / "report.json").write_text(json.dumps(told))
    found = own_report.section(run)
    assert found is not None
    models, by_text = found.tables
    line = {name: cell.text for name, cell in zip(models.columns, models.rows[1], strict=True)}
    assert line["GB"] == "1.000"
    assert (line["difference"], line["divergence"], line["same first"]) == ("−0.2500", "0.1250", "50.0")
    assert [cell.value for cell in by_text.rows[0]][:3] == ["fp8", "arabic", 7]
    assert [row["divergence"] for row in found.plots[0].drawing.rows] == [0.125]


def test_merges_tell_their_cosines(tmp_path: Path) -> None:
    items = [{"name": "t0.50"}]
    run = run_of(tmp_path / "run", "merge", Facts("", 1, 0, 0, 0, unit="merges", items=items))
    assert merges.section(run) is None
    made.merge_report(run.directory.shard_output(0), "t0.50", 0.5, "b", "o")
    found = merges.section(run)
    assert found is not None
    merged, least = found.tables
    assert [cell.text for cell in merged.rows[0][:4]] == ["t0.50", "slerp", "tuned", "0.50"]
    assert [cell.text for cell in merged.rows[0][4:]] == ["8", "8", "0", "0.992000", "0.997000"]
    assert least.rows[0][0].value == "model.layers.3.mlp.up_proj.weight"
    (plot,) = found.plots
    assert {(row["layer"], row["part"]) for row in plot.drawing.rows} == {
        (layer, part) for layer in range(4) for part in ("self_attn", "mlp")
    }


def test_merges_by_other_filters_are_curves_of_their_own(tmp_path: Path) -> None:
    """What all have alike is not told; the base is the end of both curves. The other model was not evaluated."""
    base, models = Model("base", 0.4), []
    for filters in ("flat", "steep"):
        for t in (0.3, 0.6):
            folder = made.merge_report(
                tmp_path / f"{filters}{t}", f"{filters}-t{t}", t, base.weights, "gone", axis=filters
            )
            models.append(Model(f"{filters}-t{t}", 0.5 + t / 5, str(folder)))
    run = made.evaluation(tmp_path / "run", [base, *models], {"aratrust": ["ethics"]})
    found = evaluation_plots.section(choose.evaluations([run]))
    assert found is not None
    assert [[cell.text for cell in row[:3]] for row in found.tables[0].rows] == [
        ["base", "0.00", "axis flat"],
        ["flat-t0.3", "0.30", "axis flat"],
        ["flat-t0.6", "0.60", "axis flat"],
        ["base", "0.00", "axis steep"],
        ["steep-t0.3", "0.30", "axis steep"],
        ["steep-t0.6", "0.60", "axis steep"],
    ]


def test_checkpoints_are_a_curve_over_steps(tmp_path: Path) -> None:
    models = [Model("base", 0.4)]
    for step in (100, 20):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        (folder / "hala.json").write_text(json.dumps({"run": "sft", "checkpoint": step}))
        models.append(Model(f"sft-step-{step:03}", 0.5 + step / 1000, str(folder)))
    run = made.evaluation(tmp_path / "run", models, {"aratrust": ["ethics"]})
    found = evaluation_plots.section(choose.evaluations([run]))
    assert found is not None
    assert found.title == "Scores over step"
    assert [[cell.text for cell in row[:2]] for row in found.tables[0].rows] == [
        ["sft-step-020", "20"],
        ["sft-step-100", "100"],
    ]


def test_failures_that_differ_in_a_number_are_one_reason(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "evaluate", Facts("", 1, 0, 0, 0, unit="benchmarks", items=[{"name": "a"}]))
    events = [{"event": "started", "time": 0, "host": "n1"}]
    for number in range(3):
        events.append({"event": "claimed", "time": number + 1, "shard": number, "attempt": 1})
        error = f"OSError: '/data/{number}.csv' line {number}: gone\nmore {number}"
        events.append({"event": "failed", "time": number + 1.5, "shard": number, "attempt": 1, "error": error})
    (run.directory.ledger / "a.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = workers.section(run)
    (plot,) = [plot for plot in found.plots if plot.name.endswith("failures")]
    assert plot.drawing.rows == [{"reason": "OSError: … line #: gone", "times": 3}]


def test_two_runs_of_one_name_keep_their_own_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        run_of(tmp_path / folder / "run", "merge", Facts("", 1, 0, 0, 0, unit="merges", items=[{"name": "x"}]))
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a" / "run"]
    assert [run.name for run in runs.read(paths)] == ["run", "run.2"]


@pytest.mark.parametrize("broken", ["{", "[]", '{"model": 1}'])
def test_a_broken_record_of_a_choice_is_no_choice(tmp_path: Path, broken: str) -> None:
    from hala_hpc.report.sections import evaluations

    run = run_of(tmp_path / "run", "evaluate", Facts("", 1, 0, 0, 0, unit="benchmarks", items=[{"name": "a"}]))
    (run.path / "best.json").write_text(broken)
    assert evaluations.choice(run) is None


def test_only_names_from_right_to_left_are_set_apart() -> None:
    assert isolated("base-1") == "base-1"
    assert isolated("هلا 1") == "\u2068هلا 1\u2069"
