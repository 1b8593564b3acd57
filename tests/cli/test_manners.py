"""The command line's manners: what is found, what is refused in one line, what help and lists show. In this process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hala_hpc.cli import common
from hala_hpc.cli import main as cli
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup
from hala_hpc.slurm import doctor, environments
from hala_hpc.slurm.survey import file_system
from tests.conftest import ROOT

Said = tuple[int, str, str]
Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["hala", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(data={"path": "a.jsonl"})


def refused(said: Said) -> str:
    code, out, err = said
    assert (code, out, err.count("\n")) == (2, "", 1), said
    assert err.startswith("hala: error: ")
    return err


# Places


def test_options_and_names_expand_or_are_refused(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", str(tmp_path / "where"))
    assert run("plan", recipe, "--create", "run.root=$WHERE/runs")[0] == 0
    assert run("runs", "--root", "$WHERE/runs")[1].splitlines()[1].startswith("test ")
    monkeypatch.setenv("HALA_RUNS", "$WHERE/runs")
    assert json.loads(run("status", "test", "--json")[1])["run"] == "test"
    assert json.loads(run("status", "$WHERE/runs/test", "--json")[1])["run"] == "test"
    for words in (("collect", "test", "--to=$NOPE/x"), ("report", "test", "--to=$NOPE/x"), ("status", "$NOPE/x")):
        assert "there is no variable NOPE in this shell" in refused(run(*words))
    assert "no such home folder" in refused(run("collect", "test", "--to=~nobody-of-it/x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "test.yaml", "where"]


def test_runs_are_found_where_the_profile_says(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site.yaml").write_text("run: {root: ./there/runs}\nsite: {name: s}\n")
    monkeypatch.setenv("HALA_SITE", "./site.yaml")
    assert run("plan", recipe, "--create")[0] == 0
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HALA_SITE", str(tmp_path / "site.yaml"))
    assert json.loads(run("status", "test", "--json")[1])["path"] == str(tmp_path / "there/runs/test")
    monkeypatch.setenv("HALA_RUNS", str(tmp_path / "elsewhere"))
    assert lookup.runs_roots() == [tmp_path / "elsewhere", tmp_path / "there/runs"]
    assert run("status", "test", "--json")[0] == 0  # HALA_RUNS is for new runs; the profile's are found still
    monkeypatch.setenv("HALA_SITE", "")
    said = refused(run("status", "tets"))
    assert f"no run 'tets' (there are no runs in {tmp_path}/elsewhere: give its path, or set HALA_RUNS" in said
    monkeypatch.setenv("HALA_RUNS", str(tmp_path / "there/runs"))
    assert f"did you mean 'test'? runs in {tmp_path}/there/runs" in refused(run("status", "tets"))


def test_what_is_no_run_is_called_what_it_is(run: Run, recipe: Path, tmp_path: Path) -> None:
    assert run("plan", recipe, "--create")[0] == 0
    (tmp_path / "models").mkdir()
    lists = "(`hala runs` lists runs, `hala submit RECIPE` makes one)"
    assert f"{recipe} is a file, and a run is a folder {lists}" in refused(run("status", recipe))
    for words in (("verify",), ("collect",), ("cancel",), ("worker",)):
        said = refused(run(*words, "models"))
        assert f"{tmp_path}/models is a folder, but not a run: it has no manifest.parquet {lists}" in said
    assert f"(it is inside of {tmp_path}/runs/test)" in refused(run("logs", "runs/test/shards"))
    (tmp_path / "runs" / "mine").mkdir()
    assert "runs/mine exists, and is not a run (give another name=" in refused(run("submit", recipe, "name=mine"))


@pytest.mark.parametrize("words", [("collect",), ("logs",), ("publish", "--to", "x"), ("worker",), ("best",)])
def test_a_grid_is_named_as_one(run: Run, write_recipe: Callable[..., Path], words: tuple[str, ...]) -> None:
    grid = {"axes": {"to": {"eu": {"task": {"target": "Basque"}}, "ar": {}}}}
    assert run("plan", write_recipe("langs", grid=grid, data={"path": "a.jsonl"}), "--create")[0] == 0
    said = refused(run(words[0], "langs", *words[1:]))
    assert "'langs' is a grid of 2 runs (name one of them: langs/ar, langs/eu)" in said
    assert run("runs")[1].splitlines()[1].split("  ")[0] == "langs (grid of 2 runs)"
    listed = json.loads(run("runs", "--json")[1])
    assert [(row["run"], row["runs"], row["rows"]) for row in listed] == [("langs", 2, 4)]


# What is refused


def test_a_forgotten_site_is_asked_for(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for site in ("", None):
        monkeypatch.delenv("HALA_SITE") if site is None else monkeypatch.setenv("HALA_SITE", site)
        assert "which site? This machine has Slurm" in refused(run("submit", recipe))
        assert run("plan", recipe)[0] == 0
    assert not (tmp_path / "runs").exists()
    lookup.refuse_forgotten_site("local", "local")  # said, so meant
    lookup.refuse_forgotten_site("", "slurm")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    lookup.refuse_forgotten_site("", "local")


def test_workers_here_need_their_engine_here(run: Run, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    recipe = write_recipe(data={"path": "a.jsonl"}, engine={"kind": "vllm"}, model={"name": "./m"})
    assert "this Python lacks vllm (--site local-cpu has one" in refused(run("submit", recipe))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("site.environments.serve.venv=/nope", "/nope has no bin/python (make it with `hala env build serve-cpu"),
        ("site.environments.work.venv=/nope", "no environment 'serve' (valid: work)"),
    ],
)
def test_an_environment_that_is_not_there_yet_is_a_warning_of_plan_and_ends_submit(
    run: Run, recipe: Path, tmp_path: Path, word: str, said: str
) -> None:
    assert said in refused(run("submit", recipe, word))
    assert not (tmp_path / "runs").exists()
    code, told, _ = run("plan", recipe, word, "--json")
    [warning] = json.loads(told)["warnings"]
    assert code == 0 and said in warning


def test_a_run_that_exists_says_how_its_recipe_differs(run: Run, recipe: Path) -> None:
    assert run("plan", recipe, "--create")[0] == 0
    assert "exists in" in refused(run("submit", recipe))
    assert "with the same recipe" in refused(run("submit", recipe))
    said = refused(run("submit", recipe, "task.target=Basque", "run.workers=3"))
    differs = 'run.workers=3 (was 1), task.target="Basque" (was "Arabic")'
    assert f"with another recipe: {differs} (`hala resume test`" in said
    assert "run.workers=3 (was 1)" in json.loads(run("plan", recipe, "run.workers=3", "--json")[1])["warnings"][0]


@pytest.mark.parametrize("name", ["-x", "--json", ".x", "a b", "a/b"])
def test_names_that_no_command_could_be_given(run: Run, recipe: Path, name: str) -> None:
    assert "cannot be a run's name" in refused(run("plan", recipe, f"name={name}"))


@pytest.mark.parametrize(
    ("option", "key"), [("--workers", "run.workers"), ("--limit", "data.limit"), ("--mem-gb", "site.slurm.mem_gb")]
)
def test_an_option_that_is_a_key(run: Run, recipe: Path, option: str, key: str) -> None:
    assert f"No such option '{option}'" in (said := refused(run("plan", recipe, option, "3")))
    assert f"of a recipe it is a key: {key}=…" in said


def test_what_a_disk_refuses_is_one_line(run: Run, recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    assert f"{file}/x: not a directory" in refused(run("submit", recipe, f"run.root={file}/x"))
    assert "run.root: no folder can be made in" in run("plan", recipe, f"run.root={file}/x")[1]
    assert "run.root: no folder can be made in /proc" in run("plan", recipe, "run.root=/proc/x")[1]
    refused(run("submit", recipe, "run.root=/proc/x"))
    refused(run("submit", recipe, f"run.root=/tmp/{'x' * 300}"))
    assert run("plan", recipe, "--create")[0] == 0
    refused(run("report", "test", "--to", f"{file}/x"))
    refused(run("env", "build", "core", "--to", file))
    refused(run("status", "x" * 5000))


# Help, lists, words


def test_help_in_all_its_forms(run: Run) -> None:
    assert run("help", "plan") == run("plan", "--help")
    assert run("help") == run("--help") == run()
    assert run("-V") == run("--version")
    code, out, err = run("env")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: hala env [OPTIONS] COMMAND [ARGS]...\n")
    for words in (("env",), ("env", "build", "--help")):
        assert "\\b" not in (shown := run(*words)[1])
        assert any(line.startswith("  hala env build serve-c") for line in shown.splitlines())


def test_counts_have_their_nouns() -> None:
    assert [common.plural(count, "worker") for count in (0, 1, 2, 2000)] == [
        "0 workers",
        "1 worker",
        "2 workers",
        "2,000 workers",
    ]


def test_tables_in_a_pipe_have_no_blanks_at_their_ends(run: Run, recipe: Path) -> None:
    run("plan", recipe, "--create")
    for words in (("plan", recipe), ("runs",)):
        assert all(line == line.rstrip() for line in run(*words)[1].splitlines())


# Doctor and environments


def test_doctor_sees_a_profile_that_was_copied_and_not_edited(run: Run, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text((ROOT / "hpc/sites/example-h100.yaml").read_text())
    code, out, _ = run("doctor", "--site", "./mine.yaml", "site.executor=local", "--json")
    found = {finding["what"]: finding for finding in json.loads(out)}
    assert code == 1
    root = next(
        number for number, line in enumerate(profile.read_text().splitlines(), 1) if "root: /scratch/CHANGE" in line
    )
    assert f"CHANGE stands in line {root}, " in found["profile"]["detail"]
    assert "runs" not in found
    assert not Path("/scratch/CHANGE").exists()
    assert found["environment serve"]["advice"] == "hala env build serve-cuda --to /scratch/CHANGE/envs/serve"


def test_doctor_says_to_people_what_it_says_to_scripts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text((ROOT / "hpc/sites/example-h100.yaml").read_text())
    for profile, code in (("./mine.yaml", 1), ("local", 0)):
        words = ("doctor", "--site", profile, "site.executor=local")
        states = [(finding["state"], finding["what"]) for finding in json.loads(run(*words, "--json")[1])]
        shown = run(*words)
        assert shown[0] == code
        for line, (state, what) in zip(shown[1].splitlines(), states, strict=True):
            assert line.startswith(f"{state:8} {what}")


def test_doctor_knows_the_marks_of_the_example(tmp_path: Path) -> None:
    example = (ROOT / "hpc/sites/example-h100.yaml").read_text()
    (tmp_path / doctor.EXAMPLE).write_text(example)
    profile = tmp_path / "mine.yaml"
    profile.write_text(example.replace("/scratch/CHANGE", "/scratch/me").replace("gpu # CHANGE", "a100 # CHANGE"))
    told = next(doctor._unedited(profile)).detail
    marked = [
        number for number, line in enumerate(profile.read_text().splitlines(), 1) if "account: my-project" in line
    ]
    assert all(f"{number}" in told for number in marked)
    assert "a100" not in told
    profile.write_text(profile.read_text().replace("# CHANGE", "#"))
    assert not list(doctor._unedited(profile))


def test_doctor_says_that_a_site_was_not_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def findings() -> list[str]:
        return [each["what"] for each in json.loads(run("doctor", "--json")[1])]

    monkeypatch.setenv("PATH", str(tmp_path))
    assert "HALA_SITE" not in findings()
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert "HALA_SITE" not in findings()  # the tests name one
    monkeypatch.delenv("HALA_SITE")
    assert "HALA_SITE" in findings()


def test_doctor_knows_what_only_this_machine_sees(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if file_system(Path("/dev/shm")) != "tmpfs":
        pytest.skip("no tmpfs here")
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm to be asked
    for executor, seen in (("slurm", True), ("local", False)):
        words = ("doctor", f"site.executor={executor}", "run.root=/dev/shm/hala-runs", "--json")
        details = [each["detail"] for each in json.loads(run(*words)[1]) if each["what"] == "runs"]
        assert any("is on tmpfs, this machine's own" in detail for detail in details) == seen
    assert "--job: site local has no Slurm" in refused(run("doctor", "--job"))


def test_doctor_says_where_two_places_for_runs_differ(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.yaml").write_text("run: {root: there}\nsite: {name: s}\n")
    monkeypatch.setenv("HALA_RUNS", str(tmp_path / "here"))
    found = {each["what"]: each for each in json.loads(run("doctor", "--site", "./s.yaml", "--json")[1])}
    assert found["run.root"]["state"] == "warning"
    assert found["run.root"]["detail"].endswith(f"$HALA_RUNS says {tmp_path}/here; runs go to {tmp_path}/here")
    assert found["runs"]["detail"].startswith(f"{tmp_path}/here (to be made): hard links work")
    assert not (tmp_path / "here").exists()
    assert all(not each["advice"] for each in found.values() if each["state"] == "ok")
    monkeypatch.setenv("HALA_RUNS", str(tmp_path / "there"))
    assert "run.root" not in {each["what"] for each in json.loads(run("doctor", "--site", "./s.yaml", "--json")[1])}


def test_another_checkouts_environment_is_switched_only_when_told(tmp_path: Path) -> None:
    lock, target = tmp_path / "core.txt", tmp_path / "env"
    lock.write_text("click==8.0\n")
    target.mkdir()
    marker = {"digest": environments.lock_digest(lock.read_text()), "hala": "/other", "built_at": "then"}
    for digest in (marker["digest"], "older"):
        (target / environments.MARKER).write_text(json.dumps(marker | {"digest": digest}))
        with pytest.raises(HalaError, match=r"runs hala_hpc of /other, not of .* \(--switch makes it run this one"):
            environments.build_environment("core", target, locks=tmp_path, project=ROOT, echo=print)
        assert [path.name for path in target.iterdir()] == [environments.MARKER]
