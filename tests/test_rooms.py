"""The rooms of the package and who may import whom: read from the source, so that a shortcut is seen at once."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "hala_hpc"
MAY_IMPORT = {
    "config": set(),
    "run": {"config"},
    "data": {"config", "run"},
    "text": set(),
    "models": {"config", "run"},
    "engines": {"config", "text"},
    "training": {"config", "run", "data", "text", "models"},
    "tasks": {"config", "run", "data", "text", "engines", "models", "training", "evaluation"},
    "slurm": {"config", "run"},
    "worker": {"config", "run", "data", "text", "tasks", "engines", "models", "training", "slurm"},
    "pipeline": {"config", "run", "slurm"},
    "evaluation": {"config", "run", "data", "models", "engines"},
    "publish": {"config", "run", "data", "models", "training", "evaluation"},
    "report": {"config", "run", "data", "models", "training", "evaluation"},
}
"""Of design.md; a room may always import itself, and ``cli`` everything."""
HEAVY = ("torch", "transformers", "vllm", "deepspeed", "trl", "mergekit", "llmcompressor")
"""Imported only inside the function that needs them: the package must import in every environment."""
RANKS = "worker/rank/"
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


def test_every_room_has_a_rule() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= MAY_IMPORT.keys() | {"cli"}


@pytest.mark.parametrize("module", MODULES, ids=short)
def test_nothing_imports_upward(module: Path) -> None:
    room = module.relative_to(PACKAGE).parts[0]
    reached = {name.split(".")[1] for name in imported(module) if name.startswith("hala_hpc.")} - {"__version__", room}
    if room != "cli":
        assert reached <= MAY_IMPORT.get(room, set()), f"{short(module)} reaches {reached}"


@pytest.mark.parametrize("module", MODULES, ids=short)
def test_the_ranks_program_is_imported_by_nobody_else(module: Path) -> None:
    if not short(module).startswith(RANKS):
        assert not [name for name in imported(module) if name.startswith("hala_hpc.worker.rank")]


@pytest.mark.parametrize("module", [path for path in MODULES if not short(path).startswith(RANKS)], ids=short)
def test_heavy_libraries_wait_inside_functions(module: Path) -> None:
    assert not {name.split(".")[0] for name in names(parsed(module).body)} & set(HEAVY)


def test_the_command_starts_light() -> None:
    code = f"import sys, hala_hpc.cli.main; print([name for name in {NOT_AT_START} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
