"""What the plan of a training tells is what the training then does: rows, tokens, steps; and loudly where it is bad."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.cli.views import training
from hala_hpc.config.compose import thaw
from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Recipe
from hala_hpc.pipeline import lookup, planning
from hala_hpc.run import manifest, status
from hala_hpc.run.layout import RunDirectory
from hala_hpc.tasks.train import card
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.estimate import memory as estimates
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.tasks.train.prepare import task as prepare
from hala_hpc.worker import registry
from hala_hpc.worker.items import Item
from tests.data.tokenizer_kinds import KINDS, save

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "num_key_value_heads": 2, "vocab_size": 2000, "intermediate_size": 128, "tie_word_embeddings": True,
}  # fmt: skip
Planned = Callable[..., tuple[Recipe, Path]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(KINDS["byte level"]([]), tmp_path_factory.mktemp("model") / "tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def planned(tmp_path: Path, model: Path) -> Planned:
    def planned(answers: dict[str, list[int | None]], *words: str, **task: Any) -> tuple[Recipe, Path]:
        """``answers``: of each dataset, the words of each row's answer; None: a row that has none."""
        datasets = {}
        for name, lengths in answers.items():
            rows = [{"instruction": "Say it.", "output": "word " * (length or 0)} for length in lengths]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            datasets[name] = {"path": str(tmp_path / f"{name}.jsonl")}
        options = {"kind": "train", "datasets": datasets, "sequence_length": 128, "batch": {"sequences": 4}} | task
        root = {"root": str(tmp_path / "runs")}
        recipe = {"name": "t", "task": options, "model": {"name": str(model)}, "run": root}
        (tmp_path / "t.yaml").write_text(json.dumps(recipe))
        asked = lookup.load(tmp_path / "t.yaml", "local", words)
        return asked, planning.plan_run(asked, planning.check(asked), tmp_path / "runs" / "t").path

    return planned


def made(run: Path) -> None:
    """Tokenize a run of one shard, here."""
    plan = manifest.read(run / "manifest.parquet")
    recipe = thaw(run / "recipe.yaml", registry.options_of)
    directory = RunDirectory(run, plan.facts.suffix)
    output = directory.shard_output(0)
    output.parent.mkdir(parents=True, exist_ok=True)
    item = Item(plan[0], {}, output, run / "kept", check_stop=lambda: None, tell=lambda _: None)
    prepare.create(recipe).open(directory, plan).do(item)


@pytest.mark.parametrize("key", ["epochs", "tokens", "sequence_length", "datasets.one.weight"])
def test_nothing_to_train_on_is_refused_when_it_is_planned(planned: Planned, key: str) -> None:
    with pytest.raises(HalaError, match=f"^task.{key}: must be more than 0"):
        planned({"one": [5] * 20}, f"task.{key}=0")


def test_an_unknown_reporter_is_refused_when_it_is_planned(planned: Planned) -> None:
    with pytest.raises(HalaError, match=r"task\.report_to: 'wanbd' is unknown"):
        planned({"one": [5] * 20}, "task.report_to=wanbd")


@pytest.mark.parametrize("packing", [True, False])
def test_the_steps_are_those_of_the_training(planned: Planned, packing: bool) -> None:
    asked, run = planned({"one": [5] * 21, "two": [30] * 9}, packing=packing, epochs=2)
    told = estimates.summary(asked, run)
    for nested in train.prepare_runs(run, asked):
        made(nested)
    order = index.build(Prepared(train.prepare_runs(run, asked)), asked.task, True, run / "index")
    assert told["estimated_steps"] == order.steps
    if not packing:
        assert order.steps == -(-2 * 30 // 4)  # 15: no rounding down
    assert told["estimated_tokens_trained"] == order.report["tokens"]
    assert [each["is_exact"] for each in told["datasets"]] == [True, True]


def test_a_training_on_little_of_its_data_is_told_of_loudly(planned: Planned, capsys: Any) -> None:
    """In plan, status and card."""
    answers = {"chats": [5] * 6 + [None] * 194 + [400] * 100, "good": [5] * 50 + [None]}
    asked, run = planned(answers, too_long="drop")
    told = estimates.summary(asked, run)
    first, second = told["datasets"]
    assert (first["rows"], first["used"], first["dropped"]) == (300, 6, {"empty": 194, "too long": 100})
    assert (second["used"], second["dropped"]) == (50, {"empty": 1})
    line = "dataset chats: only 6 of 300 rows are used (194 empty, 100 too long)"
    training.show_plan(told)
    shown = capsys.readouterr().out
    assert shown.count("only") == shown.count(line) == 1
    assert "194 empty, 100 too long" in shown.splitlines()[1]
    state = training.read(run, status.read(run, 10, 3))
    assert state is not None
    assert state.loud == [line]
    assert state.rows()[0] == ("data", f"[bold red]{line}[/]")
    part = {"name": "chats", "kind": "chat", "weight": 1, "rows": 300, "dropped_rows": 294, "tokens": 9, "hub": None}
    record = card.provenance(run) | {"parameters": 1, "files": {}}
    record["datasets"] = [part | {"dropped": first["dropped"], "sources": []}]
    said = card.render(record)
    assert "**Only 6 of 300 rows of chats were used.**" in said
    assert "| 294 (194 empty, 100 too long) |" in said


@pytest.mark.parametrize(
    ("name", "change"),
    [("tokenizer.json", ('": 1998', '": 1999')), ("chat_template.jinja", ("assistant", "Assistant"))],
)
def test_shared_tokens_are_named_by_the_tokenizer_itself(
    planned: Planned, model: Path, tmp_path: Path, name: str, change: tuple[str, str]
) -> None:
    """Two ids are swapped, or a role is called otherwise, in a file that looks as it did."""
    file = Path(shutil.copytree(model, tmp_path / "mine")) / name
    asked, run = planned({"one": [5]}, f"model.name={file.parent}", prepared=str(tmp_path / "prepared"))
    (place,) = train.prepare_runs(run, asked)
    assert place.parent == tmp_path / "prepared" and place == train._shared(asked, "one")
    whole, before = file.read_text(), file.stat()
    pieces = [piece.replace(*reversed(change)) for piece in whole.split(change[0])]
    file.write_text(change[1].join(pieces))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.read_text() != whole) and file.stat().st_size == before.st_size
    assert train._shared(asked, "one") != place


def test_notes_of_datasets_are_those_of_the_training(planned: Planned, tmp_path: Path) -> None:
    asked, run = planned({"one": [5, 6], "two": [7]}, sequence_length=64)
    assert manifest.read(run / "manifest.parquet").facts.notes == {}
    for name in ("one", "two"):
        row = {"instruction": "What is <eos>?", "output": "An end."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    run = planning.plan_run(asked, planning.check(asked), tmp_path / "runs" / "again").path
    note = "rows with words of control tokens, which are text in them"
    assert manifest.read(run / "manifest.parquet").facts.notes == {f"{note} (one)": 1, f"{note} (two)": 1}
    assert f"- 1 {note} (one)" in card.render(card.provenance(run) | {"parameters": 1, "files": {}})


def test_what_does_not_fit_is_said_in_so_many_words(planned: Planned, capsys: Any) -> None:
    asked, run = planned({"one": [5]}, "site.slurm.gpu_memory_gb=0.01")
    told = estimates.summary(asked, run)
    assert told["assumed"]["gpu"] == "H100 of 0.01 GB"
    assert not told["memory"][0]["fits"]
    training.show_plan(told)
    shown = " ".join(capsys.readouterr().out.split())
    assert "does not fit on what the site gives it (1x1 (site)): it needs 0.0" in shown
    assert "<0.001 GPU-hours" in shown
    assert "1 epochs" in shown
    assert told["disk"] == {"checkpoints": 12 * told["weights"] * 3, "model": 2 * told["weights"]}
    asked.site.slurm.gpu_memory_gb = None
    told = estimates.summary(asked, run)
    assert told["memory"][0]["fits"]
    training.show_plan(told)
    assert "does not fit" not in capsys.readouterr().out
