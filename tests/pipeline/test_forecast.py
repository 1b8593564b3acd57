"""`hala plan` of the shipped pipelines, from end to end with ten rows a source: what each stage will come to."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.cli import main as cli
from hala_hpc.config import pipeline as files
from hala_hpc.pipeline import forecast, planning, stages
from hala_hpc.pipeline.survey import StageStatus, Survey
from tests.conftest import ROOT
from tests.data.tokenizer_kinds import KINDS, save
from tests.tasks.train.estimate.real_models import REAL

ROWS = 10
HALA, LATXA = ROOT / "jobs" / "hala" / "hala.yaml", ROOT / "jobs" / "latxa" / "latxa.yaml"
OPENORCA = {"id": "flan.1", "system_prompt": "You answer.", "question": "What is it?", "response": "It is a book."}
COLUMNS: dict[str, dict[str, Any]] = {
    "translate-openorca": OPENORCA,
    "judge-opus100": {"translation": {"en": "A book.", "ar": "كتاب."}},
    "translate-corpus": {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
    "translate-scp": {"domain": "mathematics", "problem": "What is 2 + 2?", "solution": "It is 4."},
    "translate-realign": {"instruction": "Say it.", "input": "", "output": "It."},
    "translate-lamini": {"instruction": "Say it.", "response": "It.", "instruction_source": "alpaca"},
    "translate-tulu": {
        "id": "oasst1_1",
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
        "source": "ai2-adapt-dev/oasst1_converted",
    },
    "translate-synthetic-instruct": {"prompt": "Say it.", "chosen": "It.", "rejected": "No."},
    "translate-openorca-light": OPENORCA,
    "translate-mmlu": {"question": "What is it?", "reference": "ما هو؟"},
}
"""A row of each set with its columns on the hub; of SCP and ReAlign, as far as their recipes know them."""
SIZES = {"350m": "LiquidAI/LFM2-350M", "700m": "LiquidAI/LFM2-700M", "1.2b": "LiquidAI/LFM2-1.2B"} | {
    "9b": "QCRI/Fanar-1-9B-Instruct"
}
HALA_ROWS = {
    **dict.fromkeys(("translate-mmlu-bf16", "translate-mmlu-fp8", "translate-mmlu-before"), ROWS),
    **dict.fromkeys(("translate-mmlu-after", "translate-openorca", "judge-opus100", "translate-corpus"), ROWS),
    **dict.fromkeys(("translate-scp", "translate-realign", "translate-lamini", "translate-tulu"), ROWS),
    **dict.fromkeys(("translate-synthetic-instruct", "translate-openorca-light"), ROWS),
    "mix-translator": 3 * ROWS,  # questions and answers of Open-Orca, and the pairs of OPUS-100
    "translator-1.2b": 3 * ROWS,
    "mix-instructions": 7 * ROWS,
    **{f"sft-{size}": 7 * ROWS for size in SIZES},
}
HALA_TRAININGS = ["translator-1.2b", *(f"sft-{size}" for size in SIZES)]
HALA_WITHOUT = {  # models, benchmarks and scores are no rows, and commands make none
    *("quantize-teacher", "compare-teacher", "score-teacher", "score-translator", "report"),
    *(f"{stage}-{size}" for stage in ("merge", "evaluate", "best", "publish") for size in SIZES),
}
LATXA_ROWS = dict.fromkeys(
    ("pretrain", "generate-instructions", "judge-generated", "mix-generated", "translate-instructions"), ROWS
)
CELLS = [*("010", "011", "101", "110", "111"), *("001", "010", "011", "101", "110", "111")]
CELLS += ["010", "011", "100", "101", "110", "111"]
"""The cells of Latxa's grid that are trained, by backbone: on the corpus, Basque and English instructions, or not."""
GRID_ROWS = ROWS * sum(cell.count("1") for cell in CELLS)
LATXA_WITHOUT = {"evaluate", "report"}
Plan = Callable[..., str]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """`hala plan` in this process, as whoever has nothing in the cache and no internet runs it; what it printed."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HALA_SITE", "local")

    def plan(file: Path, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hala", "plan", str(file), f"run.root={tmp_path}/runs", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out

    return plan


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of ten rows for each set that a recipe has from the hub, and the form of each model that is trained."""
    base = tmp_path_factory.mktemp("local")
    paths = {}
    for name, row in (COLUMNS | {"corpus": {"text": "Euskaraz idatzitako testua."}}).items():
        paths[name] = base / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps({"number": number, **row}) + "\n" for number in range(ROWS)))
    for name, config in REAL.items():
        paths[name] = save(KINDS["byte level"]([]), base / name.replace("/", "--"))
        (paths[name] / "config.json").write_text(json.dumps(config))
    return paths


def hala_words(local: dict[str, Path]) -> list[str]:
    words = []
    for name in set(COLUMNS) - {"translate-mmlu"}:
        keys = ("hub=null", "split=null", "hub_config=null", f"path={local[name]}")
        words += [f"stages.{name}.data.{key}" for key in keys]
    for name in ("bf16", "fp8", "before", "after"):
        words.append(f"stages.translate-mmlu-{name}.data.path={local['translate-mmlu']}")
    words += [f"stages.sft-{size}.model.name={local[name]}" for size, name in SIZES.items()]
    words.append(f"stages.translator-1.2b.model.name={local[SIZES['1.2b']]}")
    return [*words, *(f"stages.{name}.task.evaluation.rows=1" for name in HALA_TRAININGS)]


def latxa_words(local: dict[str, Path]) -> list[str]:
    words = [f"stages.generate-instructions.task.rows={ROWS}"]
    words += [f"stages.pretrain.model.name={local['meta-llama/Llama-3.1-8B']}"]
    words += [f"stages.grid.grid.axes.backbone.0.model.name={local['meta-llama/Llama-3.1-8B']}"]
    words += [f"stages.grid.grid.axes.backbone.2.model.name={local['meta-llama/Llama-3.1-8B-Instruct']}"]
    for stage, key in (("pretrain", "task"), ("grid", "grid.axes.corpus.1.task")):
        words += [f"stages.{stage}.{key}.datasets.corpus.{word}" for word in ("hub=null", f"path={local['corpus']}")]
    return [*words, *(f"stages.{name}.task.evaluation.rows=1" for name in ("pretrain", "grid"))]


def names(file: Path) -> list[str]:
    return [stage.name for stage in files.read(file).stages]


def forecasts(printed: str) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage["forecast"] for stage in json.loads(printed)["stages"]}


def known(forecasts: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    return {name: forecast[key] for name, forecast in forecasts.items() if forecast[key] is not None}


def lines(printed: str) -> dict[str, list[str]]:
    """The words of each stage's line in the table, by its name."""
    table = printed.partition("\n")[2].splitlines()
    return {words[0]: words[1:] for line in table if (words := line.split()) and not line.startswith((" ", "warning:"))}


def test_hala(plan: Plan, local: dict[str, Path]) -> None:
    so_far = forecasts(plan(HALA, *hala_words(local), "--json"))
    assert set(so_far) == set(names(HALA)) == set(HALA_ROWS) | HALA_WITHOUT
    assert known(so_far, "rows") == HALA_ROWS
    assert set(known(so_far, "tokens")) == set(HALA_ROWS)
    for key in ("steps", "gpu_hours"):
        assert set(known(so_far, key)) == set(HALA_TRAININGS)
        assert all(number > 0 for number in known(so_far, key).values())
    hours = [so_far[f"sft-{size}"]["gpu_hours"] for size in SIZES]
    assert sorted(hours) == hours, "larger models take longer"
    assert [name for name, forecast in so_far.items() if forecast["unknown"] or forecast["unknown_of"]] == []


def test_hala_as_people_see_it(plan: Plan, local: dict[str, Path]) -> None:
    printed = plan(HALA, *hala_words(local))
    table = lines(printed)
    assert set(names(HALA)) <= set(table)
    planned = ("translate-mmlu-bf16", "translate-mmlu-before", "judge-opus100")
    for name in names(HALA):
        rows = HALA_ROWS.get(name)
        sign = "" if name in planned else "~"
        assert table[name][0] == ("ready" if name in (*planned, "quantize-teacher") else "waiting")
        assert (table[name][1:2] == [f"{sign}{rows}"]) == (rows is not None), (name, table[name])
        assert (table[name][3:5] == ["~1", "~0.0"]) == (name in HALA_TRAININGS), (name, table[name])
    assert "hala: 41 stages: 4 ready, 37 waiting; trainings: about 0 GPU-hours\n" in printed
    assert "not known" not in printed and "?" not in printed


def test_hala_where_nothing_is_in_the_cache(plan: Plan) -> None:
    """What a new user sees: the whole graph, and for each number that is missing the set that it stands on."""
    printed = plan(HALA)
    table = lines(printed)
    assert set(names(HALA)) <= set(table)
    for name in names(HALA):
        gaps = ["?"] * ((4 if name in HALA_TRAININGS else 2) if name in HALA_ROWS else 0)
        assert [word for word in table[name] if word == "?"] == gaps, name
    why = "it is not in the cache, and the hub is out of reach (`hala prefetch RECIPE` where the hub can be reached)"
    sets = ("Open-Orca/OpenOrca", "NousResearch/Hermes-3-Dataset", "EricLu/SCP-116K", "GAIR/ReAlign-Alpaca")
    sets += ("MBZUAI/LaMini-instruction", "allenai/tulu-3-sft-mixture", "Dahoas/synthetic-instruct-gptj-pairwise")
    for name in sets:
        (line,) = [line for line in printed.splitlines() if f"'{name}'" in line]
        assert line.startswith("not known: translate-")
        assert line.endswith(f": data.hub: cannot load '{name}': {why}")
    assert f"warning: stage judge-opus100: data.hub: cannot load 'Helsinki-NLP/opus-100': {why}\n" in printed
    assert "not known: translate-mmlu-fp8, translate-mmlu-after: data.path: " in printed
    last = "not known, as they take what is not: mix-translator, translator-1.2b, mix-instructions, sft-350m, sft-700m,"
    assert printed.splitlines()[-1] == f"{last} sft-1.2b, sft-9b"


def test_latxa(plan: Plan, local: dict[str, Path]) -> None:
    so_far = forecasts(plan(LATXA, *latxa_words(local), "--json"))
    assert set(so_far) == set(names(LATXA)) == {*LATXA_ROWS, "grid"} | LATXA_WITHOUT
    assert known(so_far, "rows") == LATXA_ROWS | {"grid": GRID_ROWS}
    for key in ("steps", "gpu_hours"):
        assert set(known(so_far, key)) == {"pretrain", "grid"}
        assert all(number > 0 for number in known(so_far, key).values())
    assert so_far["grid"]["steps"] == len(CELLS), "a step of each cell that is trained"
    assert [name for name, forecast in so_far.items() if forecast["unknown"] or forecast["unknown_of"]] == []


def test_latxa_as_people_see_it(plan: Plan, local: dict[str, Path]) -> None:
    """The models of the grid are not here: so it has no GPU-hours, and the sum says that it is without them."""
    llama = "meta-llama/Llama-3.1-8B"
    words = [word for word in latxa_words(local) if "axes.backbone" not in word]
    printed = plan(LATXA, *words)
    table = lines(printed)
    assert set(names(LATXA)) <= set(table)
    assert table["pretrain"][:2] == ["ready", str(ROWS)] and table["pretrain"][3:] == ["1", "0.0"]
    assert table["grid"][1:5:2] == [f"~{GRID_ROWS}", f"~{len(CELLS)}"] and table["grid"][4] == "?"
    assert table["generate-instructions"][:2] == ["ready", str(ROWS)]
    waiting = ("judge-generated", "mix-generated", "translate-instructions")
    assert [table[name][:2] for name in waiting] == [["waiting", f"~{ROWS}"]] * len(waiting)
    assert "; trainings: about 0 GPU-hours, without grid\n" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("not known: grid: ")]
    assert f": model.name: no config.json in '{llama}': it is not in the cache, and the hub is out of reach" in line


def test_rows_of_stages_and_of_files_add_up(plan: Plan, tmp_path: Path) -> None:
    """Of weights, samples and limits what they leave; of a model that is not here all but the GPU-hours."""
    row = {"instruction": "Say it.", "output": "word " * 99}
    for name, count in (("four", 4), ("three", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row | {"n": at}) + "\n" for at in range(count)))
    pair = {"columns": ["instruction", "output"]}
    translate = {"task": {"kind": "translate"}, "engine": {"kind": "echo"}, "data": {"path": "four.jsonl"} | pair}
    sources = {"half": {"path": "run:first", "weight": 0.5}, "two": {"path": "three.jsonl", "sample": 2}}
    datasets = {"twice": {"path": "run:mix", "weight": 2.0}, "once": {"path": "three.jsonl"} | pair}
    train = {"kind": "train", "datasets": datasets, "sequence_length": 128, "batch": {"sequences": 1}, "packing": True}
    recipes = {
        "rows": translate,
        "mix": {"task": {"kind": "mix", "sources": {key: value | pair for key, value in sources.items()}}},
        "train": {"task": train, "model": {"name": "org/model"}},
    }
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"name": name} | recipe))
    both = {"data.path": ["run:first", "three.jsonl"], "data.limit": 6}
    listed = {"first": {"recipe": "rows.yaml"}, "second": {"recipe": "rows.yaml", "set": both}}
    listed |= {name: {"recipe": f"{name}.yaml"} for name in ("mix", "train")}
    (tmp_path / "whole.yaml").write_text(json.dumps({"stages": listed}))
    printed = plan(tmp_path / "whole.yaml", "--json")
    so_far = forecasts(printed)
    assert known(so_far, "rows") == {"first": 4, "second": 6, "mix": 4, "train": 7}
    of_row = so_far["first"]["tokens"] // 4
    assert known(so_far, "tokens") == {
        "first": 4 * of_row,
        "second": 6 * of_row,
        "mix": 4 * of_row,
        "train": 11 * of_row,
    }
    assert so_far["train"]["steps"] == -(-11 * of_row // 128)
    assert (so_far["train"]["gpu_hours"], json.loads(printed)["gpu_hours"]) == (None, None)
    assert so_far["train"]["unknown"].startswith("model.name: no config.json in 'org/model': it is not in the cache")


def test_what_was_planned_keeps_its_numbers(plan: Plan, local: dict[str, Path], tmp_path: Path) -> None:
    """A training that was submitted is in the sum of GPU-hours as before."""
    options = {"kind": "train", "datasets": {"corpus": {"path": str(local["corpus"]), "kind": "text"}}}
    recipe = {"task": options | {"batch": {"sequences": 2}}, "model": {"name": str(local["meta-llama/Llama-3.1-8B"])}}
    (tmp_path / "train.yaml").write_text(json.dumps({"name": "train"} | recipe))
    (tmp_path / "whole.yaml").write_text(json.dumps({"stages": {"train": {"recipe": "train.yaml"}}}))
    planned = forecasts(plan(tmp_path / "whole.yaml", "--json"))["train"]
    assert planned["is_planned"] and planned["rows"] == ROWS and planned["gpu_hours"] > 0
    whole = stages.compose(files.read(tmp_path / "whole.yaml"), "local", (f"run.root={tmp_path}/runs",))
    (stage,) = whole.stages
    folder = whole.folder / "train"
    planning.plan(stage.runs(folder, lambda value, _: value), folder)
    now = Survey(whole, {"train": StageStatus(stage, "running", folder=folder)}, [])
    assert asdict(forecast.forecasts(now, {})["train"]) == planned | {"unknown_of": ()}
