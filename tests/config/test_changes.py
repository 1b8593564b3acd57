"""What `hala resume` changes of a frozen recipe reaches every worker that starts afterwards."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hala_hpc.config import frozen
from hala_hpc.config.compose import compose, freeze, thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe, Run
from hala_hpc.run.verify import write
from hala_hpc.worker import registry


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(
        "name: r\ntask: {kind: translate}\nengine: {kind: echo}\n"
        "site: {slurm: {extra: {exclude: n1, reservation: a}}}\n"
    )
    recipe = compose(tmp_path / "r.yaml", None, [], registry.options_of)
    (tmp_path / "recipe.yaml").write_text(freeze(recipe))
    return tmp_path


def test_a_frozen_recipe_that_was_cut_anywhere_is_refused(run: Path) -> None:
    """Many a cut leaves YAML, and a recipe that lacks its last sections."""
    path = run / "recipe.yaml"
    whole = frozen.framed(path.read_text())
    path.write_text(whole)
    assert now(run).name == frozen.read(run)["name"] == "r"
    readable = 0
    for end in range(0, len(whole) - 1, 13):
        path.write_text(whole[:end])
        for read in (lambda: frozen.read(run), lambda: now(run)):
            with pytest.raises(HalaError):
                read()
        with suppress(yaml.YAMLError):
            readable += isinstance(yaml.safe_load(whole[:end]), dict)
    assert readable > 20


def now(run: Path, *overrides: str) -> Recipe:
    return thaw(run / "recipe.yaml", registry.options_of, overrides)


def test_changed_keys_are_merged_in_order_and_the_recipe_stays(run: Path) -> None:
    planned = (run / "recipe.yaml").read_bytes()
    for words in (["run.stall_seconds=7200", "site.slurm.partition=long"], ["run.stall_seconds=9000"]):
        write(run, frozen.between(now(run), now(run, *words)))
    recipe = now(run)
    assert (recipe.run.stall_seconds, recipe.site.slurm.partition) == (9000, "long")
    assert (run / "recipe.yaml").read_bytes() == planned
    assert [path.name for path in frozen.files(run)] == ["001.yaml", "002.yaml"]
    import yaml

    told = frozen.differing(yaml.safe_load(planned), frozen.now(run))
    assert told == {"run.stall_seconds": (Run().stall_seconds, 9000), "site.slurm.partition": (None, "long")}


def test_what_is_taken_away_stays_away_and_text_stays_as_it_is(run: Path) -> None:
    asked = now(run)
    extra = {"exclude": "n1", "comment": "costs ${5}"}
    asked = replace(asked, site=replace(asked.site, slurm=replace(asked.site.slurm, extra=extra)))
    write(run, frozen.between(now(run), asked))
    assert {key: value for key, value in now(run).site.slurm.extra.items() if value is not None} == extra


def test_nothing_changed_is_nothing_written(run: Path) -> None:
    assert write(run, frozen.between(now(run), now(run, "run.workers=1"))) is None
    assert frozen.files(run) == []


def test_a_change_that_cannot_be_read_is_named(run: Path) -> None:
    (run / "changes").mkdir()
    (run / "changes" / "001.yaml").write_text("a: [")
    with pytest.raises(HalaError, match=r"changes/001\.yaml"):
        frozen.now(run)
