"""Two small programs that stand between the launcher and what it starts, and pass signals on.

``python -m hala_hpc.tasks.train.launch.keepers detach CONTROL STATUS COMMAND…``: two numbers of open pipes. Slurm
signals all processes below the tasks of a step where it tracks them by parentage (proctrack/linuxproc), and srun ends
its own step by force on SIGTERM: a preemption would kill ranks that are about to save. So srun runs below a process
that is nobody's child. Each byte that comes through CONTROL is the number of a signal for the command; its end means
that the launcher is gone, and is a SIGTERM. The exit code is written to STATUS.

``python -m hala_hpc.tasks.train.launch.keepers rank MODULE RUN``, one per rank, under srun or as a child of the
launcher, starts the rank and leaves word of how it ended. A rank that stops as it was asked to, or for good, lets this
process end with 0: ranks do not end at the same moment, and srun would kill the rest when the first one fails.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from hala_hpc.slurm.allocation import STOP_SIGNALS
from hala_hpc.tasks.train.launch import signs

PR_SET_PDEATHSIG, PR_SET_PTRACER, PR_SET_PTRACER_ANY = 1, 0x59616D61, ctypes.c_ulong(-1)


def detach(control: int, status: int, command: list[str]) -> None:
    """Run a command out of reach. The process that was started ends at once, and its child goes on."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (*STOP_SIGNALS, signal.SIGHUP):
        signal.signal(number, lambda _, __: None)  # a handler, for what is ignored would stay so in srun
    os.set_inheritable(control, False)
    os.set_inheritable(status, False)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None:
        if not select.select([control], [], [], 0.1)[0]:
            continue
        received = os.read(control, 64)
        for sent in received or (signal.SIGTERM,):
            child.send_signal(sent)
        if not received:
            break
    os.write(status, str(child.wait()).encode())


def keep_rank(module: str, run: str) -> int:
    """Run a rank to its end. Its exit code, but 0 for one that is planned."""
    if "RANK" in os.environ:  # a child of the launcher; under srun Slurm sees to it
        _die_with_parent()
    here = signs.place()
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    child = subprocess.Popen([sys.executable, "-u", "-m", module, run], preexec_fn=_become_rank)
    for early in tuple(received):
        child.send_signal(early)
    code = child.wait()
    signs.write_end(Path(run), here.launch, signs.End(here.rank, code))
    if code in signs.PLANNED or -code in received:  # a second signal may find it at its very end, without a handler
        return 0
    return code if code > 0 else 128 - code


def _become_rank() -> None:
    """In the child: end when the keeper does, and let py-spy look at it where Linux would only let ancestors."""
    _die_with_parent()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    if sys.argv[1] == "detach":
        detach(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(keep_rank(*sys.argv[2:4]))
