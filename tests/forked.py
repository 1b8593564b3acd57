"""``hala`` as processes forked from one that has imported other people's libraries: their start is most of a command.

Of ours that one has imported no module, so a command still imports what it needs, in its own order; its environment,
folder, pipes, exit code and end are its own. ``python -m tests.forked SOCKET`` is that process, one a session.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
LIBRARIES = ("click", "numpy", "omegaconf", "orjson", "pyarrow.parquet", "rich.console", "rich.table", "yaml")
"""None of these starts a thread, or looks at more of its environment than ``STARTED_WITH`` has."""
STARTED_WITH = ("PYTHON", "OMP_", "LD_", "LC_", "LANG", "TZ")
"""Variables that count when a process starts: where a command has others than this session, it is started afresh."""


def run(words: Sequence[str], folder: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """``python -m hala_hpc.cli WORDS``, as subprocess.run captures it."""
    command = [sys.executable, "-m", "hala_hpc.cli", *words]
    address, variables = _server()
    if _of_start(env) != variables:
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    pipes = [os.pipe(), os.pipe()]
    order = json.dumps({"words": list(words), "folder": str(folder), "env": env}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as answers:
        connection.connect(address)
        socket.send_fds(connection, [order[:1]], [end for _, end in pipes])
        connection.sendall(order[1:])
        for _, end in pipes:
            os.close(end)
        pid = int(answers.readline())
        try:
            with ThreadPoolExecutor(len(pipes)) as pool:
                out, err = pool.map(_all_of, [begin for begin, _ in pipes])
            return subprocess.CompletedProcess(command, int(answers.readline()), out, err)
        except BaseException:  # a time-out
            os.kill(pid, signal.SIGKILL)
            raise


def _of_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(STARTED_WITH)}


def _all_of(pipe: int) -> str:
    with open(pipe, encoding="utf-8") as file:
        return file.read()


@cache
def _server() -> tuple[str, dict[str, str]]:
    """Where it listens, and what it was started with; it ends with this process, for it reads a pipe of ours."""
    address, variables = f"\0hala-tests-{os.getpid()}", _of_start(os.environ)  # no file: it goes with the server
    command = [sys.executable, "-m", "tests.forked"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        words = [*command, str(listener.fileno())]
        server = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    atexit.register(server.communicate)
    return address, variables


def serve(listener: socket.socket) -> None:
    """Until standard input ends; each command has a process that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for name in LIBRARIES:
        importlib.import_module(name)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                wait_for(connection)


def wait_for(connection: socket.socket) -> None:
    """Start a command, tell its process id, then its exit code. In the command's process this returns to nobody."""
    first, pipes, _, _ = socket.recv_fds(connection, 1, 2)
    with connection.makefile("rb") as file:
        order = json.loads(first + file.readline())
    if (pid := os.fork()) == 0:
        become(order, pipes)
    for pipe in pipes:
        os.close(pipe)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(order: dict[str, Any], pipes: Sequence[int]) -> NoReturn:
    """Be ``python -m hala_hpc.cli``, to its exit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for pipe, standard in zip(pipes, (1, 2), strict=True):
        os.dup2(pipe, standard)
        os.close(pipe)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[0] = order["folder"]
    sys.argv = ["hala", *order["words"]]
    runpy.run_module("hala_hpc.cli", run_name="__main__", alter_sys=True)
    raise SystemExit


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
