"""The worked examples of docs/extending.md, run as they stand there: each is one new file, or a line or two."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, Hala

PAGE = (ROOT / "docs" / "extending.md").read_text()


def block(language: str, part: str) -> str:
    """The one block of a language that holds ``part``."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if part in text]
    return found


@pytest.fixture
def package(hala: Hala, tmp_path: Path) -> Path:
    """A checkout's package and sites, which ``hala`` runs, with a file of texts beside them."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "hpc", tmp_path / "hpc")
    hala.env["PYTHONPATH"] = str(tmp_path / "src")
    (tmp_path / "documents.txt").write_text("one, two\nthree\n")
    return tmp_path / "src" / "hala_hpc"


def worked(hala: Hala, recipe: Path, *words: str) -> list[dict[str, object]]:
    """The rows that a recipe makes."""
    hala("plan", recipe, "--create", *words)
    name = next((word.partition("=")[2] for word in words if word.startswith("name=")), recipe.stem)
    hala("worker", f"runs/{name}")
    assert "proven" in hala("verify", name).stdout
    hala("collect", name)
    rows: list[dict[str, object]] = pq.read_table(hala.folder / "runs" / name / "final" / "data").to_pylist()
    return rows


def test_a_task(hala: Hala, package: Path, tmp_path: Path) -> None:
    (package / "tasks" / "keywords").mkdir()
    (package / "tasks" / "keywords" / "task.py").write_text(block("python", "class Keywords(RowTask):"))
    (tmp_path / "keywords.yaml").write_text(block("yaml", "kind: keywords"))
    rows = worked(hala, tmp_path / "keywords.yaml")
    assert [row["text"] for row in rows] == ["one, two", "three"]
    assert all(isinstance(row["keywords"], list) and row["keywords"] for row in rows)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": ""}\n')
    (row,) = worked(hala, tmp_path / "keywords.yaml", "name=empty", "data.path=rows.jsonl")
    assert row["hala_row"] == 0, "a row that asks for nothing is done at once: here it is set aside"


def test_an_engine(hala: Hala, package: Path, tmp_path: Path) -> None:
    (package / "engines" / "shout.py").write_text(block("python", "class Shout:"))
    recipe = tmp_path / "loud.yaml"
    task = {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}}
    data = {"path": "documents.txt"}
    recipe.write_text(
        json.dumps({"name": "loud", "task": task, "engine": {"kind": "shout", "mark": "?"}, "data": data})
    )
    assert [row["text_ar"] for row in worked(hala, recipe)] == ["ONE, TWO?", "THREE?"]
    evaluation = {"kind": "evaluate", "models": {"a": {"name": "Org/name"}}, "benchmarks": ["aratrust"]}
    recipe.write_text(json.dumps({"name": "e", "task": evaluation, "engine": {"kind": "shout"}}))
    assert (
        "engine.kind: shout does not return log-probabilities (engine.kind=vllm)" in hala("plan", recipe, code=2).stderr
    )


def test_a_shape(hala: Hala, package: Path, tmp_path: Path) -> None:
    add(package / "data" / "shapes.py", "SHAPES:", block("python", '"summary": Known'))
    (tmp_path / "news.jsonl").write_text(json.dumps({"article": "a", "highlights": "h", "id": "7"}) + "\n")
    recipe = tmp_path / "news.yaml"
    task = {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}}
    recipe.write_text(
        json.dumps({"name": "news", "task": task, "engine": {"kind": "echo"}, "data": {"path": "news.jsonl"}})
    )
    for words in ((), ("name=named", "data.shape=summary")):
        (row,) = worked(hala, recipe, *words)
        assert (row["article_ar"], row["highlights_ar"], row["id"]) == ("«a»", "«h»", "7")
    refused = hala("plan", recipe, "data.shape=sumary", code=2).stderr
    assert "data.shape: no shape 'sumary' (did you mean 'summary'? valid: alpaca, auto, " in refused


def add(file: Path, after: str, lines: str) -> None:
    """Put the lines of an example behind the one line that begins so."""
    content = file.read_text()
    (line,) = [line for line in content.splitlines(keepends=True) if line.strip().startswith(after)]
    file.write_text(content.replace(line, line + lines))


def test_an_option_of_slurm(hala: Hala, package: Path, tmp_path: Path) -> None:
    add(package / "config" / "schema.py", "constraint: str", block("python", "exclude: str"))
    add(package / "slurm" / "script.py", '"constraint":', block("python", '"exclude":'))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps({"name": "r", "task": {"kind": "translate", "segments": {"tokens": 0}}, "engine": {"kind": "echo"}})
    )
    words = ("data.path=documents.txt", "site.executor=slurm", "site.slurm.exclude=n1")
    assert "#SBATCH --exclude=n1" in hala("plan", recipe, *words).stdout


def test_a_line_of_status(hala: Hala, package: Path, tmp_path: Path) -> None:
    taken = 'self._counters["output_tokens"] +='
    add(package / "worker" / "rows" / "loop.py", taken, block("python", "len(completion.text)"))
    add(package / "cli" / "views" / "run.py", "is_last_step =", block("python", "'characters', 0"))
    recipe = tmp_path / "r.yaml"
    task = {"kind": "translate", "prompt": "{text}", "segments": {"tokens": 0}}
    recipe.write_text(
        json.dumps({"name": "r", "task": task, "engine": {"kind": "echo"}, "data": {"path": "documents.txt"}})
    )
    worked(hala, recipe)
    assert hala.json("status", "r")["workers"][0]["counts"]["characters"] == len("«one, two»«three»")
    assert re.search(r"characters +17", hala("status", "r").stdout)
