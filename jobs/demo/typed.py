"""Commands as a person types them, shown before they run: the demo and Hala in miniature go through them."""

import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

ROOT = Path(__file__).resolve().parents[2]
SERVE = ROOT / ".envs" / "serve-cpu" / "bin" / "python"
HALA = Path(sys.executable).with_name("hala")

console = Console(highlight=False)


def say(text: str) -> None:
    console.print(f"\n[bold]{text}[/]", soft_wrap=True)


def run(*words: object) -> str:
    """Run a command in the open, and return what it printed."""
    command = _shown(words)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    console.out(done.stdout, end="")
    return done.stdout


def watch(*words: object) -> int:
    """Run a command that draws on this terminal until it ends, and return its exit code."""
    return subprocess.run(_shown(words), check=False).returncode


def _shown(words: tuple[object, ...]) -> list[str]:
    command = [str(word) for word in words]
    shown = shlex.join(command).replace(str(HALA), "hala").replace(f"{ROOT}/", "")
    console.print(f"[cyan]$ {escape(shown)}[/]", soft_wrap=True)
    return command
