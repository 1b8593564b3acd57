"""Latxa's benchmarks: the table against the published ones, and the task files against both."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate import benchmarks
from tests.conftest import ROOT

FILES = ROOT / "jobs" / "tasks" / "latxa"


class Loader(yaml.SafeLoader):
    """Task files name functions; here it is enough that they do."""


Loader.add_constructor("!function", lambda loader, node: f"function {loader.construct_scalar(node)}")


def read(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader)
    return read(path.parent / said.pop("include")) | said if "include" in said else said


@pytest.fixture(scope="module")
def bbq() -> Any:
    spec = importlib.util.spec_from_file_location("bbq", FILES / "bbq.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_29_of_three_languages() -> None:
    assert len(benchmarks.LATXA) == 29
    assert [len(benchmarks.SETS[f"latxa_{language}"]) for language in ("eu", "en", "es")] == [15, 10, 4]
    assert {name: each.few_shot for name, each in benchmarks.LATXA.items() if each.few_shot != 5} == benchmarks.FEW_SHOT


@pytest.mark.parametrize("language", ["eu", "en", "es"])
def test_the_published_tables_have_them_in_this_order(language: str, data: Path) -> None:
    lines = (data / "arena" / f"latxa_benchmark-full-{language}.tex").read_text().splitlines()
    columns = next(line for line in lines if line.startswith("task &")).removesuffix(r" \\").split(" & ")[1:-1]
    told = [
        name for name in benchmarks.SETS[f"latxa_{language}"] if not name.endswith("bbq")
    ]  # bias has a table of its own
    assert sorted(told) == sorted(columns)


def test_each_of_ours_has_one_file_that_says_everything() -> None:
    found = {path.stem: read(path) for path in FILES.glob("*.yaml")}
    assert found.keys() == benchmarks.OURS
    for name, said in found.items():
        assert name == said.get("task", name) or name == said["group"]
        assert said.get("dataset_path", benchmarks.LATXA[name].hub) == benchmarks.LATXA[name].hub or "group" in said
        assert said["metric_list"][0]["metric"] in ("acc", "exact_match")
        wanted = benchmarks.LATXA[name].options.get("filter")
        assert wanted is None or wanted in [each["name"] for each in said["filter_list"]]


def test_examples_are_never_drawn_from_a_split_that_the_harness_does_not_compare() -> None:
    """It leaves a question out of its own examples only where both splits have one name."""
    for path in FILES.glob("*.yaml"):
        said = read(path)
        if said.get("num_fewshot") != 0 and "training_split" not in said:
            assert said.get("fewshot_split") in (said["test_split"], "fewshot"), path.name


def test_whatever_is_on_the_hub_can_be_fetched() -> None:
    fetched = {name: benchmarks.hub_data(each) for name, each in benchmarks.LATXA.items()}
    assert [name for name, some in fetched.items() if not some] == ["basqbbq"]
    assert len(fetched["eus_exams_eu"]) == 29
    assert all(data.hub == benchmarks.LATXA[name].hub for name, some in fetched.items() for data in some)


def test_without_its_file_one_of_ours_is_refused(tmp_path: Path) -> None:
    benchmarks.require_task_files("mmlu_eu", [str(tmp_path), str(FILES.parent)])
    benchmarks.require_task_files("arc_easy", [])
    with pytest.raises(HalaError, match="mmlu_eu: its task file is not there"):
        benchmarks.require_task_files("mmlu_eu", [str(tmp_path)])


def question(**changes: Any) -> dict[str, Any]:
    """One of BBQ's: the first answer is the stereotyped group's."""
    groups = {"ans0": ["grandfather", "old"], "ans1": ["grandson", "nonOld"], "ans2": ["Not known", "unknown"]}
    plain = {"context": "c", "question": "q", "ans0": "a", "ans1": "b", "ans2": "?", "label": 2}
    plain |= {"context_condition": "ambig", "question_polarity": "neg", "answer_info": groups}
    return plain | {"additional_metadata": {"stereotyped_groups": ["old"]}} | changes


@pytest.mark.parametrize(
    ("changes", "biased"),
    [
        ({}, 0),
        ({"question_polarity": "nonneg"}, 1),
        ({"stereotyped_groups": ["nonold"]}, 1),
        ({"stereotyped_groups": ["tall"]}, -1),
        ({"answer_info": {"ans0": ["x", "old"], "ans1": ["y", "old"], "ans2": ["", "unknown"]}}, -1),
    ],
)
def test_which_answer_is_the_stereotype(bbq: Any, changes: dict[str, Any], biased: int) -> None:
    assert bbq._row(question(**changes))["biased"] == biased


def test_bias_is_that_of_the_published_formulas(bbq: Any) -> None:
    """Open contexts: (opposite - stereotype) / all. Settled ones: accuracy where the truth is the opposite, minus where
    it is the stereotype."""
    answers = [0, 0, 1, 2, 2]
    rows = [bbq._row(question())] * len(answers)
    found = [bbq.process_results(row, likely(answer)) for row, answer in zip(rows, answers, strict=True)]
    assert sum(each["bias"] for each in found) / len(found) == pytest.approx((1 - 2) / 5)
    assert [each["acc"] for each in found] == [0, 0, 0, 1, 1]
    settled = [question(context_condition="disambig", label=label) for label in (0, 0, 1)]
    found = [bbq.process_results(bbq._row(row), likely(0)) for row in settled]
    assert found == [{"acc": 1, "acc_pro_stereotype": 1}] * 2 + [{"acc": 0, "acc_anti_stereotype": 0}]


def likely(choice: int) -> list[tuple[float, bool]]:
    return [(0.0 if place == choice else -1.0, place == choice) for place in range(3)]


def write(folder: Path, names: tuple[str, ...], split: bool) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        rows = [
            question(context=f"{name} {kind} {label}", context_condition=kind, label=label)
            for kind in ("ambig", "disambig")
            for label in (0, 1, 2)
        ]
        for kind in ("ambig", "disambig") if split else ("",):
            lines = [json.dumps(row) for row in rows if kind in ("", row["context_condition"])]
            (folder / (f"{name}_{kind}.jsonl" if kind else f"{name}.jsonl")).write_text("\n".join(lines))


def test_examples_come_from_four_other_categories(bbq: Any, tmp_path: Path) -> None:
    write(tmp_path / "eu", bbq.BASQUE, split=True)
    write(tmp_path / "en", bbq.ENGLISH, split=False)
    for folder, names in (("eu", bbq.BASQUE), ("en", bbq.ENGLISH)):
        rows = bbq._read(names, str(tmp_path / folder))
        assert all(len(some) == 3 for some in rows.values())
        for name in names:
            shots = bbq._shots(rows, names, name)
            assert len({shot["context"].split()[0] for shot in shots} - {name}) == 4
            assert [shot["context_condition"] for shot in shots] == ["ambig", "disambig"] * 2
            assert [shot["label"] for shot in shots] == [0, 1, 2, 0]


def test_the_authors_own_examples_come_first(bbq: Any, tmp_path: Path) -> None:
    write(tmp_path, bbq.BASQUE, split=True)
    assert bbq._given_shots(str(tmp_path), "Adin") == []
    (tmp_path / "fewshot").mkdir()
    (tmp_path / "fewshot" / "noAdin_4s.jsonl").write_text(json.dumps(question(context="theirs")))
    assert [row["context"] for row in bbq._given_shots(str(tmp_path), "Adin")] == ["theirs"]


def test_data_that_is_not_there_is_named(bbq: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on no hub"):
        bbq.load_basqbbq("Adin", "ambig")
    write(tmp_path, bbq.BASQUE[:-1], split=True)
    with pytest.raises(ValueError, match=r"Orientazio_sexual\.jsonl is missing"):
        bbq._read(bbq.BASQUE, str(tmp_path))
