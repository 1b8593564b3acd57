"""A text key holds the text that was written; numbers, truth values and open keys hold what YAML makes of it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hala_hpc.config import grid
from hala_hpc.config.compose import compose, freeze, thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.worker import registry

Asked = Callable[..., Recipe]
TEXTS = [
    "no",
    "yes",
    "on",
    "Off",
    "true",
    "1e5",
    "60123e5",
    "017",
    "0x1F",
    "1_000",
    "2024-01-01",
    "12:30:45",
    ".5",
    "1.",
]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    def asked(text: str, *words: str) -> Recipe:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(text)
        return compose(recipe, None, words, registry.options_of)

    return asked


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_as_it_was_written(asked: Asked, tmp_path: Path, text: str) -> None:
    recipe = asked(
        f"name: {text}\n"
        f"task: {{kind: translate, target: {text}, roles: [{text}, user]}}\n"
        f"data: {{hub: x/y, hub_config: {text}, revision: {text}, columns: {text}}}\n"
        f"engine: {{kind: vllm, quantization: {text}}}\n"
        f"site: {{environments: {{{text}: {{variables: {{{text}: {text}}}}}}}}}\n",
        f"sampling.stop=[{text}]",
        f"task.suffix={text}",
    )
    assert [recipe.name, recipe.task.target, recipe.task.suffix, recipe.task.roles] == [
        text,
        text,
        text,
        [text, "user"],
    ]
    assert [recipe.data.hub_config, recipe.data.revision, recipe.data.columns] == [text, text, [text]]
    assert (recipe.engine.quantization, recipe.sampling.stop) == (text, [text])
    assert recipe.site.environments[text].variables == {text: text}
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text(freeze(recipe))
    assert thaw(frozen, registry.options_of) == recipe


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.from_regex(r"[-+]?[0-9a-fxob_.:eE]{1,8}", fullmatch=True))
def test_any_number_is_text_for_a_text_key_and_survives_freezing_in_an_open_one(tmp_path: Path, text: str) -> None:
    file, frozen = tmp_path / "r.yaml", tmp_path / "frozen.yaml"
    file.write_text("name: r\ntask: {kind: translate}\nengine: {kind: vllm}\n")
    try:
        recipe = compose(file, None, [f"task.target={text}", f"engine.arguments.x={text}"], registry.options_of)
    except HalaError as error:
        is_too_large = "not a number to work with" in str(error) and math.isinf(float(text))  # as 6e350
        assert is_too_large or text.endswith(":") or ": " in text, error  # YAML reads a mapping
        return
    assert recipe.task.target == text
    frozen.write_text(freeze(recipe))
    thawed = thaw(frozen, registry.options_of)
    assert repr(thawed.engine.arguments) == repr(recipe.engine.arguments)


def test_numbers_and_truth_values_take_their_usual_forms(asked: Asked) -> None:
    recipe = asked(
        "name: r\ntask: {kind: translate, chat: off}\nrun: {workers: 010, shard_tokens: 1_000, lease_seconds: 1e2}\n",
        "run.attempts=3",
        "site.offline=yes",
        "sampling.temperature=.5",
        "data.limit=null",
    )
    assert (recipe.run.workers, recipe.run.shard_tokens, recipe.run.lease_seconds) == (10, 1000, 100.0)
    assert (recipe.task.chat, recipe.run.attempts, recipe.site.offline) == (False, 3, True)
    assert (recipe.sampling.temperature, recipe.data.limit) == (0.5, None)


def test_open_keys_get_what_yaml_makes_of_them(asked: Asked) -> None:
    recipe = asked(
        "name: r\ntask: {kind: translate}\n"
        "engine: {kind: vllm, arguments: {a: yes, b: 1e5, c: 3, d: [no, x], e: {f: 0.5}, g: 'no'}}\n"
        "site: {slurm: {extra: {time: 12:00:00, exclude: 017, exclusive: true}}}\n"
    )
    assert recipe.engine.arguments == {"a": True, "b": 1e5, "c": 3, "d": [False, "x"], "e": {"f": 0.5}, "g": "no"}
    assert recipe.site.slurm.extra == {"time": "12:00:00", "exclude": "017", "exclusive": True}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("run.workers=1e5", "run.workers: Value '1e5' of type 'str' could not be converted to Integer"),
        ("run.workers=yes", "run.workers: Value 'yes'"),
        ("run.lease_seconds=on", "run.lease_seconds: Value 'on'"),
        ("name=", "command line: name: is empty"),
        ("model.name=", "command line: model.name: is empty"),
        (
            "task.prompt=Translate, please: {text}",
            "task.prompt: must be text, but YAML reads a mapping here (quote it",
        ),
        ("data.columns=[a,", "is it one word for your shell? Quote all of it: 'data.columns=…'"),
        ("task.a.=1", "not of the form key=value"),
    ],
)
def test_a_wrong_value_is_told(asked: Asked, word: str, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        asked("name: r\ntask: {kind: translate}\n", word)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: {kind: translate}\n", "name: is missing (give it in the recipe, or as name=…)"),
        ("name: r\nengine: {kind: echo}\n", "r.yaml: task is missing"),
        (
            "name: r\ntask: {kind: translate}\ndata: &x {columns: [*x]}\n",
            "not valid YAML: found unconstructable recursive",
        ),
    ],
)
def test_a_recipe_that_lacks_something(asked: Asked, text: str, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        asked(text)
    assert said in str(caught.value)


MIXTURE = "name: r\ntask: {kind: train, datasets: {a: {path: a.jsonl}, b: {path: b.jsonl}}}\n"


def test_null_takes_an_entry_of_a_mapping_away(asked: Asked) -> None:
    assert list(asked(MIXTURE, "task.datasets.a=null").task.datasets) == ["b"]
    assert list(asked(MIXTURE, "task.datasets=null", "task.datasets.c.path=c").task.datasets) == ["a", "b", "c"]
    assert asked(MIXTURE, "task.datasets=null").task.datasets == {}
    both = "name: r\ntask: {kind: translate}\nsite: {slurm: {extra: {a: 1, b: 2}}}\nengine: {kind: vllm}\n"
    recipe = asked(both, "site.slurm.extra.a=null", "engine.arguments.seed=null")
    assert recipe.site.slurm.extra == {"b": 2}
    assert recipe.engine.arguments == {"seed": None}  # there was nothing to remove: it is a value
    assert list(asked(MIXTURE, "task.datasets={c: {path: c.jsonl}}").task.datasets) == ["a", "b", "c"]  # merged


def test_null_that_takes_nothing_away_is_told(asked: Asked) -> None:
    with pytest.raises(HalaError, match=r"task\.datasets\.aa: no such entry to remove \(did you mean 'a'\?"):
        asked(MIXTURE, "task.datasets.aa=null")


def test_axes_are_called_as_they_are_written(tmp_path: Path) -> None:
    recipe = tmp_path / "g.yaml"
    recipe.write_text(
        "name: g\ntask: {kind: translate}\n"
        "grid:\n  axes:\n"
        "    packing: {on: {task: {target: no}}, off: {task: {target: yes}}}\n"
        "    rate: {1e-5: {}, 010: {run: {workers: 2}}}\n"
        "  exclude: [{packing: off, rate: 010}]\n"
    )
    cells = grid.expand(recipe, None, [], registry.options_of)[1]
    assert [(cell.name, cell.state) for cell in cells] == [
        ("on-1e-5", "run"),
        ("on-010", "run"),
        ("off-1e-5", "run"),
        ("off-010", "excluded"),
    ]
    assert [cell.recipe.task.target for cell in cells if cell.recipe] == ["no", "no", "yes"]
