import json
import statistics
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate import choose
from hala_hpc.tasks.evaluate.choose import Evaluations, Split
from tests.report import made
from tests.report.made import Model

MODELS = [Model("base", 0.45), Model("t0.25", 0.52), Model("t0.50", 0.66), Model("t0.75", 0.64), Model("t1.00", 0.61)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.evaluation(tmp_path_factory.mktemp("choose") / "run", MODELS)


def by_hand(run: Path, model: str, keep: set[tuple[str, str, int]] | None) -> float:
    """The average over the kept questions, in plain Python."""
    import json

    import pyarrow.parquet as pq

    means = []
    for folder in sorted((run / "shards" / "000").iterdir()):
        if json.loads((folder / "result.json").read_text())["model"] != model:
            continue
        tasks: dict[str, list[float]] = {}
        for row in pq.ParquetFile(folder / "samples.parquet").read().to_pylist():
            if keep is None or (row["benchmark"], row["task"], row["index"]) in keep:
                tasks.setdefault(row["task"], []).append(row["score"])
        means.append(statistics.mean(map(statistics.mean, tasks.values())))
    return statistics.mean(means)


def test_the_highest_average_wins(run: Path) -> None:
    choice = choose.choose(choose.evaluations([run]), "average", Split(1.0))
    averages = {model.label: by_hand(run, model.label, None) for model in MODELS[1:]}
    assert choice.model == max(averages, key=lambda label: averages[label])
    assert {one.model: one.chosen_by.value for one in choice.candidates} == pytest.approx(averages)
    assert all(one.held_out is None for one in choice.candidates)


def test_a_split_chooses_by_one_part_and_tells_of_the_other(run: Path) -> None:
    split = Split(0.5, seed=3)
    choice = choose.choose(choose.evaluations([run]), "average", split)
    names = {(one, task, number) for one, tasks in made.BENCHMARKS.items() for task in tasks for number in range(40)}
    mine = {name for name in names if split.chooses(*name)}
    assert 0.35 < len(mine) / len(names) < 0.65
    for one in choice.candidates:
        assert one.chosen_by.value == pytest.approx(by_hand(run, one.model, mine))
        assert one.held_out is not None
        assert one.held_out.value == pytest.approx(by_hand(run, one.model, names - mine))
        assert one.chosen_by.questions + one.held_out.questions == len(names)
    assert choice.model == max(choice.candidates, key=lambda one: one.chosen_by.value).model


def test_one_se_takes_the_first_that_is_as_good(run: Path) -> None:
    found = choose.evaluations([run])
    choice = choose.choose(found, "one-se", Split(1.0))
    top = max(choice.candidates, key=lambda one: one.chosen_by.value).model
    for one in choice.candidates:
        gap = found.difference(one.model, base=top)
        assert one.fits == (one.model == top or (gap is not None and gap.value >= -gap.error))
    assert choice.model == next(one.model for one in choice.candidates if one.fits)


def test_no_loss_leaves_out_what_fell_below_the_base(tmp_path: Path) -> None:
    """The best on average lost much on one benchmark."""
    folder = tmp_path / "run"
    uneven = {"arabic_mmlu": ["history"], "aratrust": ["ethics"]}
    made.evaluation(folder, [Model("base", 0.5), Model("even", 0.55), Model("uneven", 0.9)], uneven, questions=200)
    worse = made.samples(Model("uneven", 0.38), "ethics", 200)
    _replace(folder, "uneven", "aratrust", worse)
    found = choose.evaluations([folder])
    assert choose.choose(found, "average", Split(1.0)).model == "uneven"
    choice = choose.choose(found, "no-loss", Split(1.0))
    assert choice.model == "even"
    assert [one.fits for one in choice.candidates] == [True, False]


def test_a_choice_says_how_far_it_is_ahead_of_the_next(run: Path) -> None:
    found = choose.evaluations([run])
    split = Split(0.5, seed=3)
    choice = choose.choose(found, "average", split)
    others = [one for one in choice.candidates if one.model != choice.model]
    second = max(others, key=lambda one: one.chosen_by.value)
    mine = next(one for one in choice.candidates if one.model == choice.model)
    assert choice.lead is not None and choice.lead.over == second.model
    assert choice.lead.chosen_by.value == pytest.approx(mine.chosen_by.value - second.chosen_by.value)
    assert choice.lead.held_out is not None and mine.held_out is not None and second.held_out is not None
    assert choice.lead.held_out.value == pytest.approx(mine.held_out.value - second.held_out.value)
    low, high = choice.lead.fair.interval
    assert low <= 0 <= high, "two skills of two points apart are not told apart by 120 questions"
    assert choose.choose(found.only(["t0.50"], ["*"]), "average", split).lead is None


def test_what_is_unknown_of_a_single_question_is_null(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "run", MODELS[:3], {"aratrust": ["ethics", "privacy"]}, questions=1)
    found = choose.evaluations([run])
    told = choose.as_json(choose.choose(found, "average", Split(1.0)))
    assert json.loads(json.dumps(told, allow_nan=False))["candidates"][0]["chosen_by"]["error"] is None
    for rule in ("one-se", "no-loss"):
        with pytest.raises(HalaError, match="a single question to choose by"):
            choose.choose(found, rule, Split(1.0))


def test_of_equal_ones_the_first_is_taken(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "run", [Model("base", 0.2), Model("one", 2.0), Model("two", 2.0)])
    assert choose.choose(choose.evaluations([run]), "average", Split()).model == "one"


def test_unequal_evaluations_are_refused(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "run", MODELS, skip=[("t0.50", "aratrust")])
    with pytest.raises(HalaError, match=r"t0\.50 has no result of aratrust"):
        choose.choose(choose.evaluations([run]), "average", Split())
    first = made.evaluation(tmp_path / "first", MODELS[:1])
    second = made.evaluation(tmp_path / "second", MODELS[1:2], questions=20)
    with pytest.raises(HalaError, match="same questions"):
        choose.choose(choose.evaluations([first, second]), "average", Split())


def test_too_few_questions_to_split_are_refused(tmp_path: Path) -> None:
    run = made.evaluation(tmp_path / "run", MODELS[:2], {"aratrust": ["ethics"]}, questions=2)
    with pytest.raises(HalaError, match="too few questions"):
        choose.choose(choose.evaluations([run]), "average", Split(0.001))


def test_the_base_alone_is_no_choice(tmp_path: Path) -> None:
    found: Evaluations = choose.evaluations([made.evaluation(tmp_path / "run", MODELS[:1])])
    with pytest.raises(HalaError, match="no model to choose from"):
        choose.choose(found, "average", Split())
    assert choose.choose(found, "average", Split(), with_base=True).model == "base"


def _replace(run: Path, model: str, benchmark: str, answers: list[made.Sample]) -> None:
    """Other answers of one model to one benchmark."""
    import shutil

    from hala_hpc.tasks.evaluate import results

    found = next(one for one in results.read(run) if (one.model, one.benchmark) == (model, benchmark))
    shutil.rmtree(found.folder)
    results.write(found.folder, answers, made.summary(Model(model, 0.9), benchmark))
