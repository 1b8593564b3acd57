"""Every option and argument of every command with hostile values: one line and exit code 2, or it is what was meant."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from hala_hpc.cli.main import hala as program
from hala_hpc.config import pipeline as files
from hala_hpc.config.errors import HalaError
from hala_hpc.data.files import hub
from hala_hpc.pipeline import stages
from hala_hpc.slurm import environments, profile, survey
from tests import damaged
from tests.damaged import hala
from tests.damaged import no_workers as no_workers
from tests.publish import runs as models
from tests.report import made

RUN, RECIPE = ("RUN",), ("RECIPE",)
EVALUATION = ("EVALUATION", "--to=OUT")
BASE: dict[str, tuple[str, ...]] = {
    "plan": RECIPE,
    "submit": RECIPE,
    "status": RUN,
    "why": ("PIPELINE", "a"),
    "chaos": RUN,
    "cost": RUN,
    "resume": RUN,
    "verify": RUN,
    "collect": ("RUN", "--to=OUT"),
    "publish": ("RUN", "--to=OUT", "--licence=mit", "--licence-of=r.jsonl=mit", "--dry-run"),
    "best": EVALUATION,
    "report": (*EVALUATION, "--format=csv"),
    "score": ("file.txt", "file.txt"),
    "sample": RUN,
    "explain": ("RUN", "1"),
    "redo": ("RUN", "--where=hala_row == 1", "--dry-run"),
    "logs": RUN,
    "cancel": RUN,
    "steward": ("RUN", "--dry-run"),
    "runs": ("--root=ROOT",),
    "init": ("mine", "--yes", "--no-job", "--root=ROOT", "--to=OUT"),
    "sites": (),
    "env list": (),
    "env build": ("serve-cpu", "--to=OUT"),
    "doctor": (),
    "prefetch": ("RECIPE", "model.name=./folder"),
    "worker": RUN,
}
"""Each command as it is meant."""
NOT_BUILT = "environments are not built here"
TEXTS = {
    "empty": "",
    "blank": " ",
    "minus": "-1",
    "zero": "0",
    "huge": "1e99",
    "nan": "nan",
    "long": "x" * 10_000,
    "up": "../..",
    "absent": "no/such",
    "folder": "folder",
    "file": "file.txt",
    "in a file": "file.txt/x",
    "newline": "a\nb",
    "quotes": """a 'b' "c""",
    "shell": "$(touch x)",
    "next command": ";touch x",
    "bytes": os.fsdecode(b"a\xff"),
    "arabic": "ترجمة",
    "range": "{a..b}",
    "interpolation": "${oc.env:HOME}",
    "variable": "$NOT_THERE",
    "word": "key",
    "two signs": "a=b=c",
    "no key": "=x",
    "open list": "a=[1",
    "open mapping": "a={",
    "markup": "[/red]",
}
KEYS = {
    word: word
    for word in (
        "task.kind=", "site=nonexistent", "site.name=[]", "engine.max_tokens=-1", "run=", "run=3", "run={}", "name=",
        "name=$(touch x)", "run.workers=1e99", "run.workers=nan", "run.workers=-1", "run.lease_seconds=nan",
        "run.lease_seconds=.inf", "run.flush_seconds=-1", "run.shard_rows=1e99", "run.root=", "run.root=a\nb",
        "data.path=", "data.path=../..", "data.limit=1e99", "data.limit=-1", "sampling.max_tokens=-1",
        "sampling.temperature=nan", "sampling.top_p=7", "engine.capacity=-1", "engine.kind=", "engine=[]",
        "task.target=${oc.env:HOME}", "task.target=${nope}", "task.target={a..b}", "model.name=../..", ".=1", "a..b=1",
        "site.slurm.minutes=-1", "site.executor=slurm5", "site.environments.serve=3",
        "site.shared_with=others", "site.shared_with=[group]", "site.shared_with=$(touch x)", "grid={axes: {}}",
    )
}  # fmt: skip
NAMES = {
    "minus", "zero", "huge", "nan", "newline", "quotes", "shell", "next command", "arabic", "range", "interpolation",
    "word", "two signs", "no key", "open list", "open mapping",
}  # fmt: skip
"""They could be what a file or folder is called."""
PLACES = NAMES | {"absent", "markup"}
ANY = set(TEXTS) - {"bytes"}
UNUSED = {"data.path=../..", "data.limit=-1", "sampling.max_tokens=-1", "sampling.top_p=7"}
"""Of the recipe, and not looked at by those who only want its site and its models."""
MEANT: dict[tuple[str, str], set[str]] = {
    ("plan", "site"): {"empty"},
    ("submit", "site"): set() if shutil.which("sbatch") else {"empty"},
    ("prefetch", "site"): {"empty"},
    ("doctor", "site"): {"empty"},
    ("plan", "overrides"): (ASKED := {"run={}", "run.root=a\nb", "task.target=${oc.env:HOME}", "model.name=../.."}),
    ("submit", "overrides"): ASKED,
    ("prefetch", "overrides"): {*(OTHERS := {*ASKED, *UNUSED, "name=$(touch x)"}), "engine.capacity=-1"},
    ("doctor", "overrides"): OTHERS,
    ("init", "name"): {"zero", "huge", "nan", "word", "folder", "file"},
    ("init", "account"): ANY - {"empty", "blank", "newline"},
    ("init", "root"): PLACES | {"folder", "up"},
    ("init", "serve"): PLACES | {"folder", "up"},
    ("init", "work"): PLACES | {"folder", "up"},
    ("init", "to"): PLACES,
    ("resume", "quarantine"): {"empty"},
    ("collect", "to"): PLACES,
    ("publish", "to"): PLACES,
    ("publish", "about"): {"file"},
    ("publish", "licence"): {"zero", "huge", "nan", "newline", "word", "folder", "file"},
    ("env build", "to"): PLACES,
    ("report", "to"): PLACES,
    ("report", "base"): {"empty"},
    ("report", "title"): ANY,
    ("report", "examples"): {"zero"},
    ("sample", "quarantine"): ANY - {"minus"},
    ("sample", "seed"): {"minus", "zero"},
    ("explain", "row"): {"zero"},
    ("redo", "overrides"): ASKED,
    ("redo", "quarantine"): {"empty"},
    ("redo", "name"): {"empty", "zero", "huge", "nan", "arabic", "word"},
    ("score", "references"): {"file"},
    ("score", "source"): {"file"},
    ("best", "to"): NAMES | {"file"},
    ("best", "base"): {"empty"},
    ("best", "seed"): {"minus", "zero"},
    ("logs", "lines"): {"zero"},
    ("logs", "shard"): {"zero"},
    ("runs", "root"): {"folder", "up"},
}
"""Values that are none too strange; all others are refused."""


class Outside:
    """Notes what this process writes outside of a folder; an audit hook stays for good, so there is one."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.written: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or event not in self.EVENTS:
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        for path in args[:2] if event in ("os.rename", "os.link") else args[:1]:
            if isinstance(path, (str, bytes)):
                whole = os.path.realpath(os.fsdecode(path))
                if not whole.startswith(str(self.folder)) and not self.is_cache(whole):
                    self.written.append(f"{event} {whole}")

    EVENTS = ("open", "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.chmod")

    @staticmethod
    def is_cache(path: str) -> bool:
        return "__pycache__" in path or path == os.devnull


@pytest.fixture(scope="module")
def outside() -> Outside:
    return Outside()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    run = damaged.finished(folder)
    (run / "logs" / "7_log.out").write_text("hello\n")
    (folder / "recipe.json").write_text((folder / "r.json").read_text().replace('"name": "r"', '"name": "new"'))
    evaluation = made.evaluation(
        folder / "runs" / "e", [made.Model("base", 0.5), made.Model("tuned", 0.6)], {"aratrust": ["ethics"]}
    )
    merge = models.merged(folder / "runs" / "merge", [{"name": "Org/base"}])
    (folder / "whole.yaml").write_text('{"stages": {"a": {"recipe": "r.json"}}}')
    pipeline = stages.compose(files.read(folder / "whole.yaml"), "", (f"run.root={folder / 'pipelines'}",))
    stages.save(pipeline)
    folders = {"RUN": run, "RECIPE": folder / "recipe.json", "EVALUATION": evaluation, "MERGE": merge}
    return folders | {"PIPELINE": pipeline.folder}


@pytest.fixture
def words(
    whole: dict[str, Path], outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: list[str]
) -> Iterator[dict[str, str]]:
    """What the words of ``BASE`` stand for, three folders down, so that what is above ``../..`` is still inside."""

    def refuse(*_: object, **__: object) -> None:
        raise HalaError(NOT_BUILT)

    monkeypatch.setattr(environments, "_uv", refuse)
    monkeypatch.setattr(hub, "_is_reachable", lambda endpoint: False)
    # A cluster with one partition and no accounts; it would take what is asked for.
    shape = survey.Shape(8, 32_000, 1)
    partition = survey.Partition("only", True, None, ((shape, 2),))
    cluster = survey.Cluster("here", "22.05", (partition,), (), None, False, 1001)
    monkeypatch.setattr(survey, "look", lambda: cluster)
    monkeypatch.setattr(profile, "would_take", lambda request: None)
    place = tmp_path / "a" / "b" / "c"
    (place / "folder").mkdir(parents=True)
    (place / "folder" / "notes.txt").write_text("mine\n")
    (place / "file.txt").write_text("mine\n")
    found = {name: str(damaged.copied(path, place)) for name, path in whole.items() if path.is_dir()}
    recipe = place / "recipe.json"
    recipe.write_text(whole["RECIPE"].read_text().replace(str(whole["RUN"].parent), str(place)))
    monkeypatch.chdir(place)
    monkeypatch.setenv("HALA_RUNS", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outside.written.clear()
    outside.folder = tmp_path
    yield found | {"RECIPE": str(recipe), "OUT": str(place / "out"), "ROOT": str(place)}
    outside.folder = None


def commands() -> dict[str, click.Command]:
    """The tree, as the program has it."""
    found: dict[str, click.Command] = {}
    ctx = click.Context(program)
    for name in program.list_commands(ctx):
        command = program.get_command(ctx, name)
        assert command is not None
        within = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {each}": one for each, one in within.items()} or {name: command}
    return found


def cases() -> list[tuple[str, str, str]]:
    """Command, option or argument, name of the value."""
    return [
        (name, str(one.name), value)
        for name, command in commands().items()
        for one in command.params
        for value in (TEXTS | KEYS if one.name == "overrides" else TEXTS)
    ]


def asked(command: str, param: str, value: str) -> list[str]:
    """The words of a command line in which one thing is hostile."""
    option = next(one for one in commands()[command].params if one.name == param)
    base = list(BASE[command])
    if param == "item":
        base[0] = "MERGE"
    if isinstance(option, click.Option):
        base = [word for word in base if not word.startswith(f"{option.opts[-1]}=") or option.multiple]
        return [*command.split(), *base, f"{option.opts[-1]}={value}"]
    if param == "row":
        return [command, base[0], value]
    if param in ("overrides", "shard", "systems"):
        return [*command.split(), *base, value]
    return [*command.split(), value, *base[1:]]


def check(words: dict[str, str], outside: Outside, case: tuple[str, str, str]) -> None:
    command, param, name = case
    value = (TEXTS | KEYS)[name]
    given = [
        "=".join(words.get(part, part) for part in word.split("=")) if word != value else word
        for word in asked(command, param, value)
    ]
    code, said = hala(*given)
    outside.folder = None
    assert (code == 0 or NOT_BUILT in said) == (name in MEANT.get((command, param), ())), said
    assert "Traceback" not in said
    if code != 0:
        lines = [line for line in said.splitlines() if line.startswith("hala: error: ")]
        assert (code, len(lines)) == (2, 1), said
        assert NOT_BUILT in said or is_named(lines[0], command, param, value), said
    assert outside.written == []
    assert not list(Path(words["ROOT"]).rglob("x")), "the shell was asked"


def is_named(line: str, command: str, param: str, value: str) -> bool:
    """Whether an error tells the option, argument or key by its name, or repeats what it was given."""
    option = next(one for one in commands()[command].params if one.name == param)
    shown = " ".join(value.encode("utf-8", "backslashreplace").decode().split())
    words = [option.opts[-1], f"[{param.upper()}]", shown[:80] or "''", repr(value)[1:-1], value.partition("=")[0]]
    if not value.startswith("/") and "/" in value:  # a path is told as it is found on the disk
        words += [str(Path(value).resolve()), *(str(path) for path in Path(value).resolve().parents if path.is_file())]
    return any(word and word in line for word in words)


def test_no_command_is_left_out() -> None:
    assert set(BASE) == set(commands())
    swept = {(command, param) for command, param, _ in cases()}
    assert swept == {(name, one.name) for name, command in commands().items() for one in command.params}
    assert set(MEANT) <= swept


@pytest.mark.cases(cases, few=60, seed=3)
def test_case(words: dict[str, str], outside: Outside, case: tuple[str, str, str]) -> None:
    check(words, outside, case)
