"""Every command on every kind of damaged run: one line and the right exit code, never a traceback."""

from pathlib import Path

import pytest

from hala_hpc.run import digests
from tests import damaged, test_flips
from tests.damaged import DAMAGES, copied, hala
from tests.damaged import no_workers as no_workers

NEEDED = ("recipe.yaml", "manifest.parquet")
"""What no run can do without."""
NO_RECIPE = ("collect", "collect --partial", "logs", "logs of a shard")
"""These read the plan and not the recipe."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status", "RUN"),
    "status --json": ("status", "RUN", "--json"),
    "cost": ("cost", "RUN"),
    "verify": ("verify", "RUN"),
    "collect": ("collect", "RUN", "--to", "OUT"),
    "collect --partial": ("collect", "RUN", "--partial", "--to", "OUT"),
    "report": ("report", "RUN", "--to", "OUT"),
    "logs": ("logs", "RUN"),
    "logs of a shard": ("logs", "RUN", "0"),
    "cancel": ("cancel", "RUN"),
    "steward": ("steward", "RUN"),
    "chaos": ("chaos", "RUN", "--yes"),
    "best": ("best", "RUN"),
    "runs": ("runs", "--root", "ROOT"),
    "runs --json": ("runs", "--root", "ROOT", "--json"),
    "publish": ("publish", "RUN", "--to", "OUT", "--licence", "mit", "--dry-run"),
    "plan": ("plan", "RECIPE", "--create"),
    "submit": ("submit", "RECIPE"),
    "worker": ("worker", "RUN"),
    "resume": ("resume", "RUN"),
    "resume --damaged": ("resume", "RUN", "--damaged"),
    "resume --quarantine": ("resume", "RUN", "--quarantine"),
}
KINDS = {"finished": damaged.finished, "unfinished": damaged.unfinished}
OF_ITEMS = {"trained": test_flips.trained, "merged": test_flips.merged, "evaluated": test_flips.evaluated}
"""Runs whose shards are folders, put there by hand: their recipes are no whole ones."""
NEEDS_RECIPE = (
    *("plan", "submit", "cost", "worker", "verify", "resume", "resume --damaged", "resume --quarantine", "steward"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in (KINDS | OF_ITEMS).items()}
    for run in made.values():
        (run / "logs" / "7_log.out").write_text("hello\n")
    return made


def files(run: Path) -> list[str]:
    """Each kind of file of a run."""
    patterns = ("recipe.yaml", "manifest.parquet", "shards/000/*.parquet", "ledger/*.jsonl", "logs/*.out")
    kept = [path for pattern in (*patterns, "partial/000/*", "leases/000/*") for path in sorted(run.glob(pattern))]
    return [str(path.relative_to(run)) for path in kept if path.is_file()]


OUTPUT = "shards/000/000000"
OUTPUTS = {
    "trained": ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "hala.json"),
    "merged": ("config.json", "model-00001-of-00002.safetensors", "hala.json"),
    "evaluated": ("result.json", "samples.parquet"),
}
"""Files of their first shard; each has ``.digests.json`` too."""
FOLDERS = ("shards", "shards/000", "partial", "partial/000", "leases", "leases/000", "leases/workers", "ledger", "logs")
KINDS_OF_FILE = ("recipe.yaml", "manifest.parquet", "shards", "ledger", "logs", "partial", "leases")


def cases() -> list[tuple[str, str, str, str]]:
    """Kind of run, kind of file, damage, command."""
    of_files = [(kind, name, damage) for kind in KINDS for name in KINDS_OF_FILE for damage in DAMAGES]
    of_folders = [
        (kind, folder, damage)
        for kind in KINDS
        for folder in FOLDERS
        for damage in ("folder removed", "a file instead", "stray files")
    ]
    of_items = [
        (kind, name, damage)
        for kind, names in OUTPUTS.items()
        for name in (
            "recipe.yaml",
            "manifest.parquet",
            "ledger",
            *(f"{OUTPUT}/{each}" for each in (*names, digests.NAME)),
        )
        for damage in DAMAGES
    ]
    of_items += [(kind, folder, "folder removed") for kind in OUTPUTS for folder in ("shards", "ledger", "leases")]
    whole = [(*case, command) for case in [*of_files, *of_folders] for command in COMMANDS]
    return whole + [(*case, command) for case in of_items for command in COMMANDS if command not in NEEDS_RECIPE]


def spoil(run: Path, name: str, damage: str) -> bool:
    """False where this run has no such file."""
    import shutil

    if damage == "folder removed":
        shutil.rmtree(run / name)
    elif damage == "a file instead":
        shutil.rmtree(run / name)
        (run / name).write_bytes(b"x")
    elif damage == "stray files":
        for stray in (".nfs0001", "000000.parquet~", "notes.txt", "x"):
            (run / name / stray).write_bytes(b"\0")
        (run / name / "a folder").mkdir()
    else:
        found = (
            name if name.startswith(OUTPUT) else next((one for one in files(run) if one.split("/")[0] == name), None)
        )
        if found is None:
            return False
        DAMAGES[damage](run / found)
    return True


def told(command: str, code: int, said: str) -> None:
    """What is true of every answer."""
    assert code in (0, 1, 2), said
    if code == 2:
        lines = [line for line in said.splitlines() if line.startswith("hala: error:")]
        assert len(lines) == 1 or command.startswith("worker"), said
    assert "Traceback" not in said


def expected(kind: str, name: str, damage: str, command: str) -> set[int]:
    """The exit codes that are right."""
    if command.startswith("runs"):
        return {0}
    if command in ("plan", "submit"):
        return {2}  # the name is taken, whatever became of what is there
    if command in ("cancel", *NO_RECIPE) and name == "recipe.yaml" and damage not in ("removed", "a folder"):
        return {0, 2}
    if command == "cancel" and name == "manifest.parquet":
        return {0, 2}  # jobs are found without it
    if name in NEEDED and damage != "garbage after it":
        return {2}
    if kind in OF_ITEMS and name.startswith(OUTPUT) and command in ("collect", "publish"):
        old = name.endswith(digests.NAME) and damage == "removed"  # as folders are that have no such list
        return {0, 2} if old or (kind, command) == ("evaluated", "publish") else {2}
    if kind == "finished" and name == "shards" and damage != "stray files":
        spoiled = {"verify": {1}, "collect": {2}, "collect --partial": {0, 2}, "publish": {2}}
        return spoiled.get(command, {0, 1, 2})
    return {0, 1, 2}


def check(runs: dict[str, Path], place: Path, case: tuple[str, str, str, str]) -> None:
    kind, name, damage, command = case
    run = copied(runs[kind], place)
    recipe = runs[kind].parents[1] / f"{run.name}.json"  # of item runs there is none, and nobody plans them here
    if not spoil(run, name, damage):
        return
    words = {"RUN": run, "OUT": place / "out", "ROOT": run.parent, "RECIPE": recipe}
    asked = [str(words.get(word, word)) for word in COMMANDS[command]]
    if command in ("plan", "submit"):
        asked.append(f"run.root={place}")
    code, said = hala(*asked)
    told(command, code, said)
    assert code in expected(kind, name, damage, command), said


@pytest.mark.cases(cases, few=60, seed=9)
def test_case(runs: dict[str, Path], tmp_path: Path, no_workers: list[str], case: tuple[str, str, str, str]) -> None:
    check(runs, tmp_path, case)
