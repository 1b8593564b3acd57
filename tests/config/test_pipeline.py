"""A pipeline file: what its stages are, and what is refused in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.config import pipeline
from hala_hpc.config.errors import HalaError
from hala_hpc.config.pipeline import PipelineFile

Write = Callable[..., PipelineFile]


@pytest.fixture
def read(tmp_path: Path) -> Write:
    (tmp_path / "a.yaml").write_text("name: a\n")
    (tmp_path / "sft-big.yaml").write_text("name: b\n")

    def write(stages: Any, **top: Any) -> PipelineFile:
        file = tmp_path / "whole.yaml"
        file.write_text(json.dumps({"stages": stages, **top}))
        assert pipeline.is_pipeline(file) and not pipeline.is_pipeline(tmp_path / "a.yaml")
        return pipeline.read(file)

    return write


def test_stages(read: Write, tmp_path: Path) -> None:
    file = read(
        {
            "first": {"recipe": "a.yaml", "set": {"data.limit": "3", "data": {"shape": "text"}}},
            "page": {"command": ["report", "run:first"], "when": {"first": "m*"}, "after": "first"},
        },
        set={"data.limit": "1", "run": {"workers": "2"}},
    )
    assert file.name == "whole"
    first, page = file.stages
    assert first.recipe == tmp_path / "a.yaml"
    assert first.changes == {"data": {"limit": "3", "shape": "text"}, "run": {"workers": "2"}}
    assert (page.recipe, page.changes) == (None, {}), "what is set for all recipes is not for commands"
    assert (page.command, page.when, page.after) == (["report", "run:first"], {"first": "m*"}, ["first"])


def test_each(read: Write, tmp_path: Path) -> None:
    """By a list of values, and by a mapping to what each changes besides."""
    file = read(
        {
            "sft": {"recipe": "sft-{each}.yaml", "each": ["big"], "set": {"model.name": "org/{each}"}},
            "merge-{each}-t": {
                "recipe": "a.yaml",
                "each": {"big": {"task.t": 0.5}, "tiny": None},
                "set": {"task.models.hala.name": "run:sft-{each}"},
            },
            "page": {"command": ["report", "run:merge-{each}-t"], "each": ["big", "tiny"]},
        }
    )
    names = ["sft-big", "merge-big-t", "merge-tiny-t", "page-big", "page-tiny"]
    assert [stage.name for stage in file.stages] == names
    sft, big, tiny, *_, page = file.stages
    assert sft.recipe == tmp_path / "sft-big.yaml" and sft.changes == {"model": {"name": "org/big"}}
    assert str(big.changes["task"]["t"]) == "0.5" and "t" not in tiny.changes["task"]
    assert tiny.changes["task"]["models"] == {"hala": {"name": "run:sft-tiny"}}
    assert page.command == ["report", "run:merge-tiny-t"]


def test_words_of_the_command_line(read: Write) -> None:
    """A stage's own, by the longest name that fits; all others are every recipe's."""
    file = read({"sft": {"recipe": "a.yaml"}, "sft-1.2b": {"recipe": "a.yaml"}, "sft-1": {"recipe": "a.yaml"}})
    words = file.split(["run.workers=3", "stages.sft-1.2b.model.name=x", "stages.sft.model.name=y"])
    assert words == {
        "sft": ["run.workers=3", "model.name=y"],
        "sft-1.2b": ["run.workers=3", "model.name=x"],
        "sft-1": ["run.workers=3"],
    }
    with pytest.raises(HalaError, match=r"stages.stf.model.name=x': no such stage \(did you mean 'sft'"):
        file.split(["stages.stf.model.name=x"])


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"a": {}}, "stages.a: must have either a recipe or a command"),
        ({"a": {"recipe": "a.yaml", "command": "report"}}, "either a recipe or a command"),
        ({"a": {"recipe": "b.yaml"}}, r"b.yaml: no such file \(paths are from the pipeline's own folder"),
        ({"a": {"command": ["rm", "-rf"]}}, "'rm' cannot be a stage"),
        ({"a": {"recipe": "a.yaml", "sets": {}}}, r"unknown key 'stages.a.sets' \(did you mean 'set'"),
        ({"a": {"command": "report", "set": {"x": 1}}}, "stages.a.set: is for a recipe"),
        ({"a": {"recipe": "a.yaml", "after": "b"}}, "a: no stage 'b'"),
        ({"a": {"recipe": "a.yaml", "when": {"b": "x"}}}, "a: no stage 'b'"),
        ({"a": {"recipe": "a.yaml", "each": []}}, "stages.a.each: must be a list of values"),
        ({"a/b": {"recipe": "a.yaml"}}, "'a/b' cannot be a stage's name"),
        ({"a-x": {"recipe": "a.yaml"}, "a": {"recipe": "a.yaml", "each": ["x"]}}, "two stages are called 'a-x'"),
        ([], "'stages' must be a mapping"),
    ],
)
def test_refusals(read: Write, stages: Any, words: str) -> None:
    with pytest.raises(HalaError, match=words):
        read(stages)
