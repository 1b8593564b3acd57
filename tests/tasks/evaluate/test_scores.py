import statistics
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate import choose
from tests.report import made
from tests.report.made import Model

BASE, TUNED = Model("base", 0.45), Model("tuned", 0.62)


def average(benchmarks: list[list[list[float]]]) -> float:
    """In plain Python: of questions, of tasks, of benchmarks."""
    return statistics.mean(statistics.mean(statistics.mean(task) for task in tasks) for tasks in benchmarks)


def test_scores_are_those_of_the_samples(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "run", [BASE, TUNED])
    found, by_hand = choose.evaluations([run]), made.by_hand(run)
    assert found.models == ["base", "tuned"]
    for model in found.models:
        for benchmark in made.BENCHMARKS:
            expected = statistics.mean(statistics.mean(task) for task in by_hand[model, benchmark])
            assert found.cells[model, benchmark].mean.value == pytest.approx(expected, abs=1e-12)
        told = found.average(model)
        assert told is not None
        assert told.value == pytest.approx(average([by_hand[model, one] for one in made.BENCHMARKS]), abs=1e-12)


def test_differences_are_paired_by_question(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "run", [BASE, TUNED])
    found, by_hand = choose.evaluations([run]), made.by_hand(run)
    gap = found.differences["tuned", "aratrust"]
    pairs = [
        list(zip(*both, strict=True))
        for both in zip(by_hand["tuned", "aratrust"], by_hand["base", "aratrust"], strict=True)
    ]
    gaps = [[mine - base for mine, base in task] for task in pairs]
    assert gap.value == pytest.approx(statistics.mean(map(statistics.mean, gaps)))
    assert gap.error == pytest.approx(sum(statistics.variance(task) / len(task) for task in gaps) ** 0.5 / len(gaps))
    assert gap.better == sum(one > 0 for task in gaps for one in task)


def test_a_model_that_lacks_a_benchmark_has_no_average(tmp_path: Path) -> None:
    found = choose.evaluations([made.evaluation(tmp_path / "run", [BASE, TUNED], skip=[("tuned", "aratrust")])])
    assert found.average("tuned") is None
    assert ("tuned", choose.AVERAGE) not in found.differences
    assert ("tuned", "arabic_mmlu") in found.differences
    assert found.only([], ["arabic_*"]).average("tuned") is not None


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    first = made.evaluation(tmp_path / "first", [BASE])
    second = made.evaluation(tmp_path / "second", [TUNED], questions=30)
    found = choose.evaluations([first, second])
    assert found.models == ["base", "tuned"]
    assert found.differences == {}


def test_two_runs_of_the_same_model_are_one_model(tmp_path: Path) -> None:
    first = made.evaluation(tmp_path / "first", [BASE], {"aratrust": ["ethics"]})
    second = made.evaluation(tmp_path / "second", [BASE], {"arabic_exams": ["all"]})
    found = choose.evaluations([first, second])
    assert found.models == ["base"]
    assert found.average("base") is not None


def test_other_weights_under_one_label_are_told_apart(tmp_path: Path) -> None:
    first = made.evaluation(tmp_path / "first", [Model("tuned", 0.5, "/a")])
    second = made.evaluation(tmp_path / "second", [Model("tuned", 0.5, "/b")])
    assert choose.evaluations([first, second]).models == ["first/tuned", "second/tuned"]


def test_a_benchmark_twice_is_refused(tmp_path: Path) -> None:
    runs = [made.evaluation(tmp_path / name, [BASE]) for name in ("first", "second")]
    with pytest.raises(HalaError, match="arabic_mmlu twice"):
        choose.evaluations(runs)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "run", [BASE, TUNED])
    with pytest.raises(HalaError, match="valid: base, tuned"):
        choose.evaluations([run], base="tund")
    with pytest.raises(HalaError, match="no benchmark 'mmlu'"):
        choose.evaluations([run]).only([], ["mmlu"])
