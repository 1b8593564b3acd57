import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.tasks.evaluate import statistics

scores = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=6).map(np.array)


def pairs(draw_tasks: list[list[tuple[float, float]]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [np.array([a for a, _ in task]) for task in draw_tasks], [
        np.array([b for _, b in task]) for task in draw_tasks
    ]


def exact_p(gaps: list[float], weights: list[float]) -> float:
    """Over all signs, one by one."""
    observed = abs(sum(gap * weight for gap, weight in zip(gaps, weights, strict=True)))
    sums = [
        abs(sum(sign * gap * weight for sign, gap, weight in zip(signs, gaps, weights, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(gaps))
    ]
    return sum(one >= observed - 1e-12 for one in sums) / len(sums)


def test_averages_are_of_tasks_then_of_benchmarks() -> None:
    one, other = np.array([1.0, 0.0, 0.0, 0.0]), np.array([1.0, 1.0])
    third = np.array([0.0, 1.0, 1.0])
    mean = statistics.compare([[one, other], [third]], [[0 * one, 0 * other], [0 * third]])
    assert mean.value == pytest.approx(((1 / 4 + 1) / 2 + 2 / 3) / 2)
    assert mean.questions == 9
    errors = [math.sqrt(3 / 16 * 4 / 3 / 4), 0.0, math.sqrt(2 / 9 * 3 / 2 / 3)]
    assert mean.error == pytest.approx(math.hypot(math.hypot(errors[0], errors[1]) / 2, errors[2]) / 2)


def test_the_published_averages_are_means_over_benchmarks(data: Path) -> None:
    """Latxa's table: percentages of a model and their mean, rounded to two digits."""
    lines = (data / "arena" / "latxa_benchmark-full-eu.tex").read_text().splitlines()
    rows = [
        [float(cell) for cell in re.findall(r"& (\d+\.\d+)", line)] for line in lines if line.startswith(("BAS", "INS"))
    ]
    whole = [row for row in rows if len(row) == len(rows[0])]
    assert len(whole) >= 24
    for *benchmarks, published in whole:
        mean = statistics.mean_of([statistics.Mean(value, 0.0, 1) for value in benchmarks])
        assert mean.value == pytest.approx(published, abs=0.006)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 2), min_size=2, max_size=5), min_size=1, max_size=2
    )
)
def test_p_is_that_of_all_signs(tasks: list[list[tuple[float, float]]]) -> None:
    mine, base = pairs(tasks)
    found = statistics.compare([mine], [base])
    gaps = [left - right for task in tasks for left, right in task]
    weights = [1 / len(tasks) / len(task) for task in tasks for _ in task]
    assert found.p == pytest.approx(exact_p(gaps, weights), abs=0.025)  # five standard errors of 10,000 draws
    assert found.value == pytest.approx(sum(gap * weight for gap, weight in zip(gaps, weights, strict=True)))
    assert (found.better, found.worse) == (sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps))


def test_right_and_wrong_answers_give_mcnemars_exact_test() -> None:
    mine, base = np.array([1.0] * 15 + [0.0] * 4 + [1.0] * 50), np.array([0.0] * 15 + [1.0] * 4 + [1.0] * 50)
    exact = 2 * sum(math.comb(19, k) for k in range(5)) / 2**19
    assert statistics.compare([[mine]], [[base]]).p == pytest.approx(exact, abs=0.007)


def test_models_that_answer_alike_do_not_differ() -> None:
    same = [[np.array([1.0, 0.0, 1.0])]]
    found = statistics.compare(same, same)
    assert (found.value, found.error, found.p) == (0.0, 0.0, 1.0)


def test_chance_alone_is_called_significant_as_often_as_promised() -> None:
    generator = np.random.default_rng(5)
    ps = []
    for _ in range(150):
        mine, base = generator.integers(0, 2, (2, 80)).astype(float)
        ps.append(statistics.compare([[mine[:30], mine[30:]]], [[base[:30], base[30:]]]).p)
    assert 0.01 < np.mean(np.array(ps) < 0.05) < 0.1


def test_holm_multiplies_the_least_most_and_never_falls() -> None:
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_one_question_has_no_standard_error() -> None:
    assert math.isnan(statistics.mean(np.array([1.0])).error)
