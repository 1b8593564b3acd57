"""Whole reports: from run directories to files."""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.report import write
from hala_hpc.report.table import Report
from hala_hpc.report.write import ReportOptions
from hala_hpc.tasks.train import metrics
from tests.report import made
from tests.report.made import Model

BASE, TUNED = Model("base", 0.45), Model("نموذج هلا", 0.62)
EVERY = write.FORMATS
PROGRAM = '<script type="module">'
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, tuned and three merges between them, evaluated."""
    folder = tmp_path_factory.mktemp("merged")
    models = [BASE, TUNED]
    for t, skill in ((0.25, 0.52), (0.5, 0.66), (0.75, 0.64)):
        path = made.merge_report(folder / f"t{t}", f"t{t:.2f}", t, BASE.weights, TUNED.weights)
        models.append(Model(f"merged-t{t:.2f}", skill, str(path)))
    return made.evaluation(folder / "evaluate", models)


@pytest.fixture(scope="module")
def written(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report") / "report"
    write.write(write.gather([merged], ReportOptions()), target, EVERY)
    return target


def test_the_tables_numbers_are_those_of_the_samples(merged: Path, written: Path) -> None:
    by_hand = made.by_hand(merged)
    with (written / "tables" / "scores.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    averages = {}
    for model in {model for model, _ in by_hand}:
        benchmarks = {one: statistics.mean(map(statistics.mean, by_hand[model, one])) for one in made.BENCHMARKS}
        averages[model] = statistics.mean(benchmarks.values())
        for benchmark, score in benchmarks.items():
            assert float(rows[model][benchmark]) == pytest.approx(100 * score, abs=1e-9)
        assert float(rows[model]["average"]) == pytest.approx(100 * averages[model], abs=1e-9)
    for model, average in averages.items():
        if model != "base":
            assert float(rows[model]["to base"]) == pytest.approx(100 * (average - averages["base"]), abs=1e-9)
    markdown = (written / "report.md").read_text()
    best = max(averages, key=lambda model: averages[model])
    assert f"**{100 * averages[best]:.2f}**" in markdown


def test_the_merge_curve_has_its_inputs_at_both_ends(written: Path) -> None:
    with (written / "tables" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    ends = [(row["model"], float(row["t"])) for row in rows]
    assert ends == [
        ("base", 0),
        ("merged-t0.25", 0.25),
        ("merged-t0.50", 0.5),
        ("merged-t0.75", 0.75),
        (TUNED.label, 1),
    ]


def test_every_format_is_there(written: Path) -> None:
    told = json.loads((written / "report.json").read_text())
    names = set(told["tables"])
    assert {path.stem for path in (written / "tables").glob("*.tex")} == names
    assert {path.stem for path in (written / "tables").glob("*.csv")} == names
    plots = list((written / "plots").glob("*.png"))
    assert {path.stem for path in plots} >= {"scores", "differences", "curve", "work-evaluate-shards"}
    for path in plots:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert int.from_bytes(data[16:20]) > 1_200  # pixels wide
    assert set(re.findall(r"\]\(plots/(.*?)\.png\)", (written / "report.md").read_text())) == {
        path.stem for path in plots
    }


def test_the_page_needs_nothing_from_outside(written: Path) -> None:
    page = (written / "report.html").read_text().partition(PROGRAM)[0]
    assert not re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=.(?!data:)", page)
    assert "default-src 'none'" in page


def test_work_and_failures_are_told(written: Path) -> None:
    told = json.loads((written / "report.json").read_text())
    (failure,) = told["tables"]["work-evaluate-failures"]["rows"]
    assert (failure["node"], failure["shard"]) == ("n1", "1")
    assert "no such file" in failure["error"]


def test_a_report_is_renewed_and_nothing_else_is_overwritten(merged: Path, tmp_path: Path) -> None:
    target = tmp_path / "report"
    report = write.gather([merged], ReportOptions(benchmarks=("aratrust",)))
    write.write(report, target, ["md", "csv"])
    (target / "stale").touch()
    write.write(report, target, ["md"])
    assert {path.name for path in target.iterdir()} == {"report.md", "report.json"}
    (target / "report.json").unlink()
    with pytest.raises(HalaError, match="is not a report"):
        write.write(report, target, ["md"])
    assert (target / "report.md").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_failed_report_leaves_the_old_one(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report"
    report = write.gather([merged], ReportOptions())
    write.write(report, target, ["md"])
    before = (target / "report.md").read_bytes()
    monkeypatch.setattr("hala_hpc.run.files.fsync_tree", _full)
    with pytest.raises(OSError, match="full"):
        write.write(report, target, ["md"])
    assert (target / "report.md").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_is_unequal_is_told(tmp_path: Path) -> None:
    first = made.evaluation(tmp_path / "first", [BASE], limit=40)
    second = made.evaluation(
        tmp_path / "second", [TUNED], questions=30, few_shot=5, truncated=2, skip=[(TUNED.label, "aratrust")]
    )
    text = " ".join(write.gather([first, second], ReportOptions()).sections[0].text)
    assert "only the first 40 questions" in text
    assert "has no aratrust, so it has no average" in text
    assert "arabic_mmlu: not all models were asked the same questions" in text
    assert "arabic_mmlu: 2 prompts of one model were too long" in text
    assert "arabic_mmlu: not all models were asked in the same way" in text


def test_a_limit_is_told_of_the_benchmarks_that_had_it(tmp_path: Path) -> None:
    one = made.evaluation(tmp_path / "one", [BASE, TUNED], {"arabic_mmlu": ["law"]}, limit=10, truncated=4)
    two = made.evaluation(tmp_path / "two", [BASE, TUNED], {"aratrust": ["ethics"]})
    text = " ".join(write.gather([one, two], ReportOptions()).sections[0].text)
    assert "A try: of arabic_mmlu only the first 10 questions" in text
    assert "arabic_mmlu: 4 prompts of each of 2 models were too long" in text


def test_examples_are_answers_that_changed(merged: Path) -> None:
    shown = write.gather([merged], ReportOptions(examples=2)).sections[0].examples
    assert {example.title.partition(":")[0] for example in shown} == set(made.BENCHMARKS)
    for example in shown:
        texts = dict(example.texts)
        is_better = "better" in example.title
        model = next(name for name in texts if name.startswith("merged") or name == TUNED.label)
        assert (texts["choice (right)"] == texts[model]) == is_better
        assert (texts["choice (right)"] == texts["base"]) != is_better
    assert write.gather([merged], ReportOptions(examples=0)).sections[0].examples == ()


def test_a_training_shows_its_curves(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "sft", [BASE])  # the folder of a run; what it says is replaced
    (run / "recipe.yaml").write_text(json.dumps({"name": "sft", "task": {"kind": "train"}, "run": dict(made.SETTINGS)}))
    for launch, steps in (("a", range(1, 900)), ("b", range(850, 1_001))):
        writer = metrics.Writer(run, launch, [], "sft")
        for step in steps:
            held_out = {"eval_loss": 2.5} if step % 100 == 0 else {}
            loss = float("nan") if step == 5 else 3.0 - step / 1_000
            writer.write(step=step, loss=loss, tokens=10, seconds=1.0, tokens_per_second=10.0, **held_out)
        writer.close()
    report: Report = write.gather([run], ReportOptions())
    (plot,) = [plot for plot in report.plots if plot.name == "training-loss"]
    rows = plot.drawing.rows
    trained = [row for row in rows if row["run"] == "sft"]
    assert len(trained) == 400
    assert trained[-1]["loss"] == pytest.approx(2.0, abs=0.01)
    assert len(rows) - len(trained) == 10
    (row,) = next(table for table in report.tables if table.name == "trainings").rows
    assert row[1].value == 1_000


def test_without_the_plot_library_the_rest_still_works(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)  # as where it is not installed
    report = write.gather([merged], ReportOptions())
    write.write(report, tmp_path / "report", ["md", "csv", "latex"])
    with pytest.raises(HalaError, match=r"hala-hpc\[report\]"):
        write.write(report, tmp_path / "other", ["png"])
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def _full(path: Path) -> None:
    raise OSError("the disk is full")
