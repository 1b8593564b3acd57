"""The rooms of the package and who may import whom: read from the source, so that a shortcut is seen at once."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "hala_hpc"
KERNEL = {"config", "run", "data", "text", "engines", "slurm", "models"}
MAY_IMPORT = {
    "config": set(),
    "text": set(),
    "run": {"config"},
    "data": {"config", "run", "text"},
    "engines": {"config", "text"},
    "slurm": {"config", "run"},
    "models": {"config", "run"},
    "worker": KERNEL,
    "tasks": KERNEL | {"worker"},
    "pipeline": KERNEL | {"worker", "tasks"},
    "publish": KERNEL | {"tasks"},
    "report": KERNEL | {"tasks"},
}
"""Of docs/design.md; a room may always import itself, and ``cli`` everything."""
HEAVY = ("torch", "transformers", "vllm", "deepspeed", "trl", "mergekit", "llmcompressor")
"""Imported only inside the function that needs them: the package must import in every environment."""
RANKS = "tasks/train/rank/"
"""The program of a training's ranks. Torch is what it is about: it is imported at the top there, and they by nobody."""
NOT_AT_START = ("pyarrow", "torch", "transformers", "omegaconf", "rich", "submitit", "datasets", "openai", "yaml")
MODULES = sorted(PACKAGE.rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@cache
def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


@cache
def imported(module: Path) -> list[str]:
    """Dotted names of all imports, also those inside functions."""
    return list(names(ast.walk(parsed(module))))


def names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they reach"
            yield node.module or ""
            if node.module == "hala_hpc":
                yield from (f"hala_hpc.{name.name}" for name in node.names)


def modules_of(module: Path) -> set[str]:
    """The modules of ours that one imports, wherever in it, as ``short`` names them."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hala_hpc"):
            inside = PACKAGE.joinpath(*(node.module or "").split(".")[1:])
            named = [inside / f"{name.name}.py" for name in node.names]
            whole = [path for path in named if path.is_file()]
            if len(whole) < len(named):  # a name of the module itself, or of the package
                whole.append(
                    inside.with_suffix(".py") if inside.with_suffix(".py").is_file() else inside / "__init__.py"
                )
            found |= {short(path) for path in whole if path.is_file()}
    return found


def test_every_room_has_a_rule() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == MAY_IMPORT.keys() | {"cli"}


@pytest.mark.parametrize("module", MODULES, ids=short)
def test_nothing_imports_upward(module: Path) -> None:
    room = module.relative_to(PACKAGE).parts[0]
    reached = {name.split(".")[1] for name in imported(module) if name.startswith("hala_hpc.")} - {"__version__", room}
    if room != "cli":
        assert reached <= MAY_IMPORT.get(room, set()), f"{short(module)} reaches {reached}"


@pytest.mark.parametrize("module", [path for path in MODULES if short(path).startswith("tasks/")], ids=short)
def test_no_task_imports_another(module: Path) -> None:
    kind = short(module).split("/")[1]
    others = {name.split(".")[2] for name in imported(module) if name.startswith("hala_hpc.tasks.")} - {kind}
    assert not others, f"{short(module)} reaches {others}"


@pytest.mark.parametrize("module", MODULES, ids=short)
def test_private_names_stay_in_their_module(module: Path) -> None:
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hala_hpc"):
            assert not [
                name.name for name in node.names if name.name.startswith("_") and not name.name.startswith("__")
            ]
    modules = {Path(name).stem for name in modules_of(module)}
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert not node.attr.startswith("_") or node.attr.startswith("__"), f"{node.value.id}.{node.attr}"


def test_there_is_no_circle() -> None:
    """Also not through imports inside functions: what waits for them would be read in circles all the same."""
    needed = {short(module): modules_of(module) - {short(module)} for module in MODULES}
    TopologicalSorter(needed).prepare()  # raises CycleError, which names one


@pytest.mark.parametrize("module", MODULES, ids=short)
def test_the_ranks_program_is_imported_by_nobody_else(module: Path) -> None:
    if not short(module).startswith(RANKS):
        assert not [name for name in imported(module) if name.startswith("hala_hpc.tasks.train.rank")]


@pytest.mark.parametrize("module", [path for path in MODULES if not short(path).startswith(RANKS)], ids=short)
def test_heavy_libraries_wait_inside_functions(module: Path) -> None:
    assert not {name.split(".")[0] for name in names(parsed(module).body)} & set(HEAVY)


def test_the_command_starts_light() -> None:
    code = f"import sys, hala_hpc.cli.main; print([name for name in {NOT_AT_START} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
