"""Bad input: one clear line, exit code 2, and nothing left behind. For both commands that plan."""

import contextlib
import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.cli import main as cli
from tests.conftest import Hala

Failing = Callable[..., str]
GOOD = '{"text": "a"}\n{"text": "b"}\n'


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Failing:
    """Run a command in this process; it must fail as bad input does. Returns the line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def failing(*words: object) -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        monkeypatch.setattr(sys, "argv", ["hala", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, line = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        assert line.startswith("hala: error: ")
        assert line.count("\n") == 1
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not list(tmp_path.rglob(".*"))
        return line

    return failing


@pytest.fixture(params=[("plan",), ("plan", "--create"), ("submit",)], ids=" ".join)
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words: tuple[str, ...] = request.param
    return words


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text":\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not UTF-8: byte 0xff at byte 11 of the line"),
        ("a.jsonl", "[1]\n", "a.jsonl: row 1: a row is a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', "a.jsonl: row 2: column 'text' holds a number, not text"),
        ("a.jsonl", '{"x": 1}\n', "cannot tell which columns hold the texts (set data.columns to some of: x)"),
        ("a.jsonl", '{"messages": [{"content": "x"}]}\n', "row 1: turn 0 of 'messages' has no 'role'"),
        ("a.jsonl", '{"messages": "x"}\n', "row 1: column 'messages' holds a text, not a list of turns"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": [5]}]}', "row 1: turn 0 of 'messages' has a part"),
        ("a.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}', "none of the 1 rows holds a text to work on"),
        ("a.jsonl", '{"text": "a", "text_ar": 1}\n', "column 'text_ar' is there already"),
        ("a.jsonl", "", "no rows in "),
        ("a.json", '[{"text": "a"}, {"text": "b"', "a.json: not a valid JSON array after row 1"),
        ("a.csv", "text,b\n1,2\n3\n", "a.csv: line 3: does not have the 2 fields of the header"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode() * 99, mtime=0)[:-9], "a.jsonl.gz: row 199: cannot be read as jsonl"),
        ("a.jsonl", '{"text":\n{"text": "a"}\n{"text": 5}', "2 bad rows: "),
        ("a.jsonl", '{"text":\n{"text": "a"}', "; or data.bad_rows=set_aside leaves such rows out and counts them)"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', "a.jsonl:1: the key 'text' is there twice"),
        ("a.json", '{"data": [{"text": "a"}]}', "a.json: one object, with lists of objects in it (data.field=data if "),
        ("a.csv", "text;b\n1;2\n", "a.csv: line 1: one column named 'text;b' (data.delimiter=';' splits it)"),
        (
            "a.csv",
            b"text\ncaf\xe9\n",
            "a.csv: line 2: not UTF-8 (data.encoding names another, for example windows-1252",
        ),
        ("a.arrow", "no", "a.arrow: not readable as Arrow"),
        ("a.xlsx", "PK", "a.xlsx: cannot tell its format by its ending (save it as CSV)"),
        ("a.foo", "a", "a.foo: cannot tell its format by its ending (set data.format to "),
        ("a.parquet", "no", "a.parquet: not readable as Parquet"),
    ],
)
def test_bad_data(
    failing: Failing, write_recipe: Callable[..., Path], tmp_path: Path, command: tuple[str, ...],
    name: str, content: str | bytes, said: str,
) -> None:  # fmt: skip
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in failing(*command, write_recipe(data={"path": name}))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("run.wokers=3", "unknown key 'run.wokers' (did you mean 'workers'?"),
        ("run.workers=many", "run.workers: Value 'many'"),
        ("run.workers", "'run.workers': not of the form key=value"),
        ("run.workers=0", "run.workers: must be more than 0"),
        ("run.stall_seconds=0", "run.stall_seconds: must be more than 0"),
        ("task.kind=translat", "no task 'translat' (did you mean 'translate'?"),
        ("engine.kind=eco", "no engine 'eco' (did you mean 'echo'?"),
        ("engine.fail=x", "unknown key 'engine.fail' (did you mean 'fail_on'?"),
        ("engine.capacity=0", "engine.capacity: 0: must be at least 1"),
        ("data.shape=alpacca", "data.shape: no shape 'alpacca' (did you mean 'alpaca'? valid: alpaca, auto, columns, "),
        ("data.shape=messages", "a.jsonl: no column 'messages' (columns: text)"),
        ("data.shape=pairs", "data.columns: shape 'pairs' needs the names of its text columns (columns: text)"),
        ("data.columns={nope: 1}", "data.columns: must be a list of single values"),
        ("engine={kind: vllm, arguments: [1]}", "engine.arguments must be a mapping, not [1]"),
        ("task={kind: merge, models: [a]}", "task.models must be a mapping, not ['a']"),
        ("data.columns=[nope]", "a.jsonl: no column 'nope' (columns: text)"),
        ("data.columns=[text, text]", "data.columns: 'text' and 'text' lead to the same texts"),
        (
            "data.path=s3://bucket/a.parquet",
            "URLs cannot be read (download it first; data.hub=ORG/NAME reads from the hub)",
        ),
        ("data.path=https://x.org/a.jsonl", "URLs cannot be read"),
        ("data.delimiter=;", "data.delimiter: "),
        ("data.encoding=klingon", "data.encoding: no encoding 'klingon' (for example utf-16, windows-1252, big5)"),
        ("data.field=x", "a.jsonl: no list at data.field=x (lists: none)"),
        ("data.split=test", "a.jsonl is not a folder, so it has no split 'test' (data.split=null)"),
        ("data.bad_rows=skip", "data.bad_rows: Invalid value 'skip', expected one of ['refuse', 'set_aside']"),
        ("data.path=nope.jsonl", "nope.jsonl: no such file or folder"),
        ("data.path=*.nope", "data.path: no data files in "),
        ("data.path=[]", "give either data.path or data.hub"),
        ("data.path=[a.jsonl, a.jsonl]", "a.jsonl is named twice"),
        ("data.limit=0", "data.limit: must be at least 1, not 0"),
        ("data.limit=-1", "data.limit: must be at least 1, not -1"),
        ("task.prompt=hello", "task.prompt: holds {text} 0 times, it must hold it once"),
        ("task.suffix=''", "task.suffix: empty"),
        ("name=a/b", "name: 'a/b' cannot be a run's name"),
        ("name=.a", "name: '.a' cannot be a run's name"),
        (f"name={'x' * 300}", "cannot be a run's name"),
        ("engine={kind: vllm}", "model.name: which model?"),
        ("engine={kind: openai, url: x, concurrency: 1}", "model.name: which model does the endpoint serve?"),
    ],
)
def test_bad_words(
    failing: Failing, write_recipe: Callable[..., Path], tmp_path: Path, command: tuple[str, ...], word: str, said: str
) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    recipe = write_recipe(data={"path": "a.jsonl"}, engine={} if word.startswith("engine={") else {"kind": "echo"})
    assert said in failing(*command, recipe, word)


def test_a_model_folder_that_is_none(
    failing: Failing, write_recipe: Callable[..., Path], tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "empty").mkdir()
    for name in ("./empty", "./absent"):
        recipe = write_recipe(data={"path": "a.jsonl"}, engine={"kind": "vllm"}, model={"name": name})
        assert f"{name[2:]} is not a model folder" in failing(*command, recipe)


def test_files_of_different_shapes(
    failing: Failing, write_recipe: Callable[..., Path], tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "b.jsonl").write_text(GOOD)
    recipe = write_recipe(data={"path": ["a.jsonl", "b.jsonl"]})
    assert "some would get 'instruction_ar', all together 'text_ar'" in failing(*command, recipe)


def test_recipes_and_sites_that_are_none(failing: Failing, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "r.yaml").write_text("name: r\n")
    assert "nope.yaml: no such file" in failing(*command, "nope.yaml")
    assert "list.yaml: expected `key: value` lines, found a list" in failing(*command, "list.yaml")
    assert "no site profile 'loc' (did you mean 'local'?" in failing(*command, "r.yaml", "--site", "loc")
    assert "nope.yaml: no such file" in failing(*command, "r.yaml", "--site", "nope.yaml")


def test_words_that_are_no_command(failing: Failing) -> None:
    assert "no command 'paln' (did you mean 'plan'?" in failing("paln")
    assert "Missing argument 'RECIPE'" in failing("plan")
    assert "No such option '--bogus'" in failing("plan", "r.yaml", "--bogus")


def test_a_run_that_exists(failing: Failing, hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    recipe = write_recipe(data={"path": "a.jsonl"})
    hala("plan", recipe, "--create")
    for words in (["plan", "--create"], ["submit"]):
        assert "run 'test' exists in" in failing(*words, recipe)
        assert "`hala resume test`, or give another name=" in failing(*words, recipe)


def test_slurm_that_is_not_there(
    failing: Failing, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.jsonl").write_text(GOOD)
    recipe = write_recipe(data={"path": "a.jsonl"}, site={"executor": "slurm"})
    assert "not found (are you on a login node?" in failing("submit", recipe)
    assert not list((tmp_path / "runs").glob("*"))


def test_the_same_as_a_process(hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """No traceback, progress bar or warning comes between, where standard error is a file."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text":\n')
    for command in ("plan", "submit"):
        said = hala(command, write_recipe(data={"path": "a.jsonl"}), code=2)
        assert (said.stdout, said.stderr.count("\n")) == ("", 1)
        assert "a.jsonl:2: not valid JSON" in said.stderr


def test_help_shows_examples_as_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["plan", "--help"], ["submit", "--help"]):
        monkeypatch.setattr(sys, "argv", ["hala", *words])
        with contextlib.suppress(SystemExit):
            cli.main()
        shown = capsys.readouterr().out
        assert "\\b" not in shown
        assert any(line.startswith("  hala ") and "jobs/demo/translate.yaml" in line for line in shown.splitlines())
