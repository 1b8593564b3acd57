"""Processes that are named by a file, outlive their parent, and are ended by their own id only.

A pid file holds the pid and the process's start time, so a pid that the kernel has given to another process since is
never signalled.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

Process = tuple[int, int]  # pid, start time in clock ticks since boot


class DaemonError(RuntimeError):
    """A daemon did not come up; the message ends with the last lines of its log."""


def start_time(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot; None when it has ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command's name may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def alive(process: Process) -> bool:
    return start_time(process[0]) == process[1]


def ancestors() -> set[int]:
    """This process, its parent, and so on."""
    pids, pid = set(), os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pids


def processes_with(*variables: str) -> set[Process]:
    """The processes that were started with all of these in their environment: ``NAME=value``, or ``NAME=`` for any."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environ = path.read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile
        pid = int(path.parent.name)
        if all(_holds(environ, variable) for variable in variables) and (started := start_time(pid)):
            found.add((pid, started))
    return found


def _holds(environ: list[bytes], variable: str) -> bool:
    wanted = variable.encode()
    return any(entry.startswith(wanted) for entry in environ) if variable.endswith("=") else wanted in environ


def send(process: Process, number: signal.Signals) -> None:
    if alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process[0], number)


def end(processes: Iterable[Process], patience: float) -> None:
    """SIGTERM to all, then SIGKILL to those that are there after ``patience`` seconds."""
    processes = list(processes)
    for process in processes:
        send(process, signal.SIGTERM)
    if not wait_for(lambda: not any(map(alive, processes)), patience):
        for process in processes:
            send(process, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, processes)), 5)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Daemons:
    """The daemons of one directory: ``run/<name>.pid`` and ``log/<name>.log`` for each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        return self.root / "log" / f"{name}.log"

    def spawn(self, name: str, argv: list[str], env: dict[str, str]) -> None:
        """Start ``argv`` in a session of its own: it outlives this process, and a Ctrl-C does not reach it."""
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                argv, cwd=self.root, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._children[name] = child
        (self.root / "run" / f"{name}.pid").write_text(f"{child.pid} {start_time(child.pid) or 0}\n")

    def process(self, name: str) -> Process | None:
        """The process that was started under ``name``, alive or not."""
        try:
            pid, started = (self.root / "run" / f"{name}.pid").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid), int(started)

    def names(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "run").glob("*.pid"))

    def alive(self, name: str) -> bool:
        process = self.process(name)
        return process is not None and alive(process)

    def end(self, names: Iterable[str], patience: float = 10) -> None:
        """End these together, and forget them."""
        names = list(names)
        end([process for name in names if (process := self.process(name))], patience)
        for name in names:
            (self.root / "run" / f"{name}.pid").unlink(missing_ok=True)
            if child := self._children.pop(name, None):
                child.wait()

    def wait(self, names: Iterable[str], ready: Callable[[], bool], seconds: float) -> None:
        """Wait until ``ready``.

        Raises DaemonError, which names the first of ``names`` that ended, or all of them when time ran out.
        """
        names = list(names)
        done = wait_for(lambda: not all(map(self.alive, names)) or ready(), seconds)
        dead = [name for name in names if not self.alive(name)]
        if dead or not done:
            what = f"{dead[0]} ended" if dead else f"{', '.join(names)} not ready after {seconds:g} s"
            raise DaemonError(f"{what}; see {self.root}/log\n" + "\n".join(map(self._tail, dead[:1] or names)))

    def _tail(self, name: str, lines: int = 15) -> str:
        text = self.log(name).read_text(errors="replace") if self.log(name).exists() else ""
        return f"--- last lines of {self.log(name)}\n" + "\n".join(text.splitlines()[-lines:])
