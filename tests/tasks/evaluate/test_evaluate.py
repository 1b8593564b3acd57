"""An evaluation is planned model by model and benchmark by benchmark, and no score comes from other weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import EngineOptions, Model, Recipe
from hala_hpc.data.cut import Cut, PlanWatch
from hala_hpc.engines import vllm
from hala_hpc.models import location
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.verify import verify
from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate.benchmarks import Setting
from hala_hpc.tasks.evaluate.task import Options, Work
from hala_hpc.worker import registry
from hala_hpc.worker.items import Item
from tests.models.test_check import model as bare_model
from tests.tasks.evaluate.samples import written


def a_model(folder: Path, template: str | None = None) -> Path:
    bare_model(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    return folder


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"Question": f"سؤال {number}؟", "Answer Key": "AB"[number % 2], "Option 1": "نعم", "Option 2": "لا"}
        for number in range(count)
    ]


def questions(folder: Path, **subsets: list[dict[str, Any]]) -> Path:
    for subset, listed in subsets.items():
        (folder / subset).mkdir(parents=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
        (folder / subset / "test.jsonl").write_text(lines)
    return folder


def recipe_of(task: dict[str, Any], engine: str = "vllm") -> Recipe:
    """As a file would give it; that files are read so is tested by the run at the end."""
    models = {label: Model(name=str(path)) for label, path in task.get("models", {}).items()}
    settings = {
        name: Setting(**{key: str(value) if key == "data" else value for key, value in given.items()})
        for name, given in task.get("settings", {}).items()
    }
    options = Options(**task | {"models": models, "settings": settings})
    return Recipe(name="e", task=options, engine=EngineOptions(engine) if engine != "vllm" else vllm.Options())


def plan(task: dict[str, Any], **more: Any) -> Cut:
    return registry.create(recipe_of(task, **more)).plan(Path(), PlanWatch())


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return questions(tmp_path / "data", **{"Driving Test": rows(7), "Law (Professional)": rows(3)})


def test_a_shard_is_a_benchmark_of_a_model(tmp_path: Path, local: Path) -> None:
    base, chat = a_model(tmp_path / "base"), a_model(tmp_path / "chat", "{{ messages }}")
    task = {
        "models": {"base": base, "chat": chat},
        "benchmarks": ["arabic_mmlu", "aratrust"],
        "settings": {"arabic_mmlu": {"data": local}},
        "limit": 5,
    }
    found = plan(task)
    items = found.facts.items
    names = ["base-arabic_mmlu", "base-aratrust", "chat-arabic_mmlu", "chat-aratrust"]
    assert [item["name"] for item in items] == names
    assert [shard.source for shard in found.shards] == [str(base)] * 2 + [str(chat)] * 2
    assert [item["weights"] for item in items[::2]] == [location.digest(base), location.digest(chat)]
    assert [item["chat_template"] for item in items] == [False, False, True, True]
    assert items[0]["tasks"] == ["arabic_mmlu:Driving Test", "arabic_mmlu:Law (Professional)"]
    assert len(items[0]["missing"]) == 38 and items[1]["missing"] == []
    assert found.shards[0].tokens == 5 + 3, "questions, no more than the limit of each task"
    assert len(items[1]["tasks"]) == 8
    assert len({shard.digest for shard in found.shards}) == 4


def test_other_questions_and_other_settings_are_other_shards(tmp_path: Path, local: Path) -> None:
    name = a_model(tmp_path / "base")

    def digest(**settings: Any) -> str:
        task = {"models": {"base": name}, "benchmarks": ["arabic_mmlu"]}
        return plan(task | {"settings": {"arabic_mmlu": {"data": local} | settings}}).shards[0].digest

    first = digest()
    assert digest() == first
    others = {digest(few_shot=2), digest(chat_template=True), digest(limit=3)}
    questions(local, **{"History (High School)": rows(1)})
    others.add(digest())
    assert len(others | {first}) == 5


def test_a_run_of_several_models_is_evaluated_whole(tmp_path: Path, local: Path) -> None:
    merges = tmp_path / "merges"
    items = [{"name": "t0.00"}, {"name": "t0.50"}]
    shards = [manifest.Shard(at, "merge", "", 0, at, 1, 0, 0, "") for at in range(2)]
    run = RunDirectory(merges, "")
    run.create_folders(2)
    manifest.write(run.manifest, shards, manifest.Facts("", 2, 0, 0, 0, unit="merges", items=items))
    for shard in range(2):
        a_model(run.shard_output(shard))
    settings = {"arabic_mmlu": {"data": local}}
    found = plan({"models": {"slerp": merges}, "benchmarks": ["arabic_mmlu"], "settings": settings})
    assert [item["model"] for item in found.facts.items] == ["slerp-t0.00", "slerp-t0.50"]
    assert [shard.source for shard in found.shards] == [str(run.shard_output(0)), str(run.shard_output(1))]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"models": {}}, "nothing to evaluate"),
        ({"models": {"a/b": "MODEL"}}, "cannot be a label"),
        ({"models": {"a": "/no/such/model"}}, "/no/such/model is not a model folder: there is no such folder"),
        ({"benchmarks": []}, "nothing to ask"),
        ({"benchmarks": ["arabic", "aratrust"]}, "'aratrust' is there twice"),
        ({"settings": {"aratrst": {"limit": 3}}}, "did you mean 'aratrust'"),
        ({"settings": {"aratrust": {"harness": "lighteva"}}}, "did you mean 'lighteval'"),
        ({"settings": {"aratrust": {"limit": 0}}}, "must be at least 1"),
        ({"settings": {"aratrust": {"data": "/no/such/data"}}}, "does not exist"),
        ({"settings": {"aratrust": {"tasks": ["aratrust:Ethic"]}}}, "did you mean 'aratrust:Ethics'"),
        ({"benchmarks": ["aratrust", "a/b"]}, "cannot be a benchmark's name"),
        ({"limit": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, task: dict[str, Any], said: str) -> None:
    given = {"models": {"a": a_model(tmp_path / "m")}, "benchmarks": ["aratrust"]} | task
    with pytest.raises(HalaError) as error:
        plan(given)
    assert said in str(error.value)


def test_a_bad_question_is_told_with_file_and_row(tmp_path: Path) -> None:
    spoilt = rows(4)
    spoilt[2]["Answer Key"] = "D"
    folder = questions(tmp_path / "data", **{"Driving Test": spoilt})
    settings = {"arabic_mmlu": {"data": folder}}
    with pytest.raises(HalaError, match=r"Driving Test/test.jsonl, row 3: the answer is 'D'"):
        plan({"models": {"a": a_model(tmp_path / "m")}, "benchmarks": ["arabic_mmlu"], "settings": settings})


def test_a_model_that_lacks_a_weights_file_is_refused(tmp_path: Path) -> None:
    name = a_model(tmp_path / "m")
    next(name.glob("*00002*")).unlink()
    with pytest.raises(HalaError, match="1 of 2 weights files are missing"):
        plan({"models": {"a": name}, "benchmarks": ["aratrust"]})


def test_an_engine_without_log_probabilities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalaError, match="does not return log-probabilities"):
        plan({"models": {"a": a_model(tmp_path / "m")}, "benchmarks": ["aratrust"]}, engine="echo")


def test_weights_that_changed_after_the_plan_are_not_asked(tmp_path: Path, local: Path) -> None:
    name = a_model(tmp_path / "m")
    recipe = recipe_of(
        {"models": {"a": name}, "benchmarks": ["arabic_mmlu"], "settings": {"arabic_mmlu": {"data": local}}}
    )
    found = registry.create(recipe).plan(Path(), PlanWatch())
    weights = next(name.glob("*00002*"))
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    item = Item(found.shards[0], found.facts.items[0], tmp_path / "place", tmp_path, lambda: None, lambda _: None)
    with pytest.raises(HalaError, match="changed since the run was planned"):
        Work(recipe).do(item)
    assert not (tmp_path / "place").exists()


def test_verify_finds_a_score_of_other_weights(tmp_path: Path, local: Path) -> None:
    settings = {"arabic_mmlu": {"data": local}}
    recipe = recipe_of(
        {"models": {"one": a_model(tmp_path / "m")}, "benchmarks": ["arabic_mmlu"], "settings": settings}
    )
    found = registry.create(recipe).plan(Path(), PlanWatch())
    run = RunDirectory(tmp_path / "run", "")
    run.create_folders(1)
    manifest.write(run.manifest, found.shards, found.facts)
    check, output = registry.create(recipe).checker(found.facts), run.shard_output(0)
    written(output, weights=found.facts.items[0]["weights"])
    assert verify(run.path, check).proven
    assert [result.score for result in results.read(run.path)] == [0.375]
    shutil.rmtree(output)
    written(output, weights="another")
    verdict = verify(run.path, check)
    assert not verdict.proven
    assert "weights is 'another'" in verdict.problems[0]
