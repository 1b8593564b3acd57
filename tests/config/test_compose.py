"""Layers of configuration: which wins, whose paths, and what a wrong word is told."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hala_hpc.config.compose import compose, freeze, thaw
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Recipe
from hala_hpc.worker import registry

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, folder: str = ".", /, **values: Any) -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(values))
        return path

    return write


def asked(recipe: Path | None, *words: str, site: Path | None = None) -> Recipe:
    return compose(recipe, site, ["task.kind=translate", *words], registry.options_of)


def test_later_layers_win(write: Write) -> None:
    site = write("site.yaml", run={"workers": 2, "attempts": 2, "shard_rows": 2}, site={"name": "s"})
    recipe = write("r.yaml", name="r", engine={"kind": "echo"}, run={"workers": 3, "attempts": 3})
    whole = asked(recipe, "run.workers=4", site=site)
    assert (whole.run.workers, whole.run.attempts, whole.run.shard_rows, whole.run.lease_seconds) == (4, 3, 2, 120)
    assert whole.site.name == "s"


def test_a_recipe_leaves_nothing_to_the_next(write: Write) -> None:
    """The defaults are made once for all of them."""
    recipe = write("r.yaml", name="r", engine={"kind": "echo"}, task={"glossary": {"a": "b"}, "roles": ["user"]})
    bare = write("bare.yaml", name="r", engine={"kind": "echo"})
    before = asked(bare)
    changed = asked(recipe, "run.workers=4", "task.segments.gate.shape=flag", "sampling.stop=[x]", "engine.capacity=3")
    with pytest.raises(HalaError, match=r"run\.workers"):
        asked(recipe, "task.glossary.c=d", "run.workers=many")
    before.task.roles.append("system")
    after = asked(bare)
    assert (changed.task.glossary, changed.task.segments.gate) == ({"a": "b"}, {"shape": "flag"})
    assert (after.task.glossary, after.task.segments.gate, after.task.roles) == ({}, {}, ["user", "assistant"])
    assert (after.run.workers, after.sampling.stop, after.engine.capacity) == (1, [], 64)


def test_included_files_stand_below_their_recipe(write: Write) -> None:
    write("prompt.yaml", "prompts", task={"prompt": "P {text}", "system": "S"}, data={"path": "rows.jsonl"})
    write("more.yaml", "prompts", task={"system": "T", "suffix": "_x"})
    recipe = write("r.yaml", name="r", include=["prompts/prompt.yaml", "prompts/more.yaml"], task={"suffix": "_y"})
    composed = asked(recipe)
    assert (composed.task.prompt, composed.task.system, composed.task.suffix) == ("P {text}", "T", "_y")
    assert Path(composed.data.path[0]).parent.name == "prompts", "paths belong to the file that says them"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("none.yaml", "none.yaml: no such file"),
        ("grid.yaml", "cannot have 'grid'"),
        ("again.yaml", "r.yaml: includes itself, by way of .*again.yaml"),
        ({"a": 1}, "include: must be a file or a list of files"),
        ("wrong.yaml", "wrong.yaml: unknown key 'tusk'"),
    ],
)
def test_what_cannot_be_included(write: Write, named: Any, said: str) -> None:
    write("grid.yaml", grid={})
    write("again.yaml", include="r.yaml")
    write("wrong.yaml", tusk={})
    with pytest.raises(HalaError, match=said):
        asked(write("r.yaml", name="r", include=named))


def test_the_last_of_two_words_wins(write: Write) -> None:
    assert asked(write("r.yaml", name="r"), "run.workers=4", "run.workers=5").run.workers == 5


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("run.wokers=3", "unknown key 'run.wokers' (did you mean 'workers'? valid: attempts, "),
        ("rum.workers=3", "unknown key 'rum' (did you mean 'run'? valid: data, engine, "),
        ("task.trget=Basque", "unknown key 'task.trget' (did you mean 'target'?"),
        ("engine.fail=x", "unknown key 'engine.fail' (did you mean 'fail_on'?"),
        ("site.environments.serve.venb=x", "unknown key 'site.environments.serve.venb' (did you mean 'venv'?"),
        ("task.kind=translat", "no task 'translat' (did you mean 'translate'?"),
        ("engine.kind=vlm", "no engine 'vlm' (did you mean 'vllm'?"),
        ("run.workers=many", "run.workers: Value 'many'"),
        ("run=5", "'run' must be a mapping, not 5"),
        ("task=translate", "'task' must be a mapping"),
        ("site.executor=slrum", "site.executor: Invalid value 'slrum', expected one of ['slurm', 'local', 'debug']"),
        ("data.path={a: b}", "data.path: must be a list of single values"),
        ("data.columns=[[a]]", "data.columns: must be a list of single values"),
        ("data.path=~nobody-of-that-name/x", "no such home folder"),
        ("run.workers", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("sampling.stop={", "'sampling.stop={'"),
        ("name=null", "name: "),
        ("run.workers=${nope}", "run.workers: Interpolation key 'nope' not found"),
        ("run.workers=${oc.env:HALA_NOPE}", "run.workers: "),
    ],
)
def test_a_wrong_word_is_named(write: Write, word: str, said: str) -> None:
    with pytest.raises(HalaError) as caught:
        asked(write("r.yaml", name="r", engine={"kind": "echo"}), word)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_names_its_file(write: Write) -> None:
    site = write("site.yaml", site={"nam": "s"})
    with pytest.raises(HalaError, match=r"site\.yaml: unknown key 'site\.nam' \(did you mean 'name'\?"):
        asked(write("r.yaml", name="r"), site=site)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"- a\n", "expected `key: value` lines, found a list"),
        (b"a: [\n", "not valid YAML"),
        (b"name: a\nname: b\n", "duplicate key name"),
        (b"name: \xff\n", "not valid YAML"),
        (b"just words", "expected `key: value` lines, found 'just words'"),
        (b"", "expected `key: value` lines, found nothing"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text)
    with pytest.raises(HalaError) as caught:
        asked(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_belong_to_the_file_that_says_them(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = write("site.yaml", "a", site={"cache": "cache", "environments": {"serve": {"venv": "../venv"}}})
    recipe = write("r.yaml", "b", name="r", data={"path": ["x.jsonl", "/abs/y.jsonl"]}, model={"name": "./m"})
    monkeypatch.chdir(write("here", "c").parent)
    composed = asked(recipe, "run.root=runs", site=site)
    assert composed.site.cache == str(tmp_path / "a/cache")
    assert composed.site.environments["serve"].venv == str(tmp_path / "venv")
    assert composed.data.path == [str(tmp_path / "b/x.jsonl"), "/abs/y.jsonl"]
    assert composed.model.name == str(tmp_path / "b/m")
    assert composed.run.root == str(tmp_path / "c/runs")


def test_hub_names_are_no_paths(write: Write) -> None:
    composed = asked(write("r.yaml", name="r", model={"name": "org/model"}, data={"hub": "org/set"}))
    assert (composed.model.name, composed.data.hub) == ("org/model", "org/set")
    assert asked(write("r.yaml", name="r"), "model.name=~/m").model.name == str(Path.home() / "m")


def test_a_lone_value_becomes_a_list(write: Write, tmp_path: Path) -> None:
    whole = asked(write("r.yaml", name="r", data={"columns": "a"}), "task.roles=user", f"data.path={tmp_path}/*.jsonl")
    assert (whole.data.columns, whole.task.roles, whole.data.path) == (["a"], ["user"], [f"{tmp_path}/*.jsonl"])


def test_a_glob_on_the_command_line_is_text(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert asked(write("r.yaml", name="r"), "data.path=*.jsonl").data.path == [f"{tmp_path}/*.jsonl"]


def test_another_kind_drops_the_keys_of_the_first(write: Write) -> None:
    recipe = write("r.yaml", name="r", engine={"kind": "vllm", "max_num_seqs": 9})
    composed = asked(recipe, "engine.kind=echo", "engine.capacity=3")
    assert (composed.engine.kind, composed.engine.capacity) == ("echo", 3)
    with pytest.raises(HalaError, match=r"s\.yaml: unknown key 'engine\.max_num_sqs' \(did you mean 'max_num_seqs'"):
        asked(write("s.yaml", name="s", engine={"kind": "vllm", "max_num_sqs": 9}), "engine.kind=echo")
    with pytest.raises(HalaError, match=r"command line: unknown key 'engine\.max_num_seqs'"):
        asked(recipe, "engine.kind=echo", "engine.max_num_seqs=3")


def test_environment_variables(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALA_TEST_WHERE", "relative")
    monkeypatch.chdir(tmp_path)
    recipe = write("r.yaml", name="r", model={"name": "./${oc.env:HALA_TEST_WHERE}"}, task={"target": "${name}"})
    composed = asked(recipe, "data.path=${oc.env:HALA_TEST_WHERE}/x.jsonl")
    assert composed.data.path == [str(tmp_path / "relative/x.jsonl")]
    assert composed.model.name == str(tmp_path / "relative")
    assert composed.task.target == "r"


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=words | st.sampled_from(["${x}", r"\${x}", r"a\\${", "null", "1e5", "on", "007", "a: b", "*x", "{text}"]))
def test_frozen_and_thawed_is_the_same(tmp_path: Path, system: str) -> None:
    source = tmp_path / "r.yaml"
    source.write_text(
        json.dumps({"name": "r", "engine": {"kind": "echo"}, "run": {"root": "x"}, "data": {"path": ["a", "b"]}})
    )
    composed = asked(source)
    composed.task.system = system
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text(freeze(composed))
    here = Path.cwd()
    os.chdir("/")
    try:
        assert thaw(frozen, registry.options_of) == composed
    finally:
        os.chdir(here)


def test_what_is_frozen_can_still_be_changed(write: Write, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text(freeze(asked(write("r.yaml", name="r", engine={"kind": "echo"}))))
    assert thaw(frozen, registry.options_of, ["run.workers=7"]).run.workers == 7


def test_did_you_mean() -> None:
    assert did_you_mean("wokers", ["workers", "root"]) == "did you mean 'workers'? valid: root, workers"
    assert did_you_mean("zzz", ["b", "a"]) == "valid: a, b"
    assert did_you_mean("zzz", []) == "nothing is valid here"
