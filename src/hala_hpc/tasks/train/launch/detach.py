"""Run a command out of the reach of signals that are meant for our job step, yet under our control.

``python -m hala_hpc.tasks.train.launch.detach CONTROL STATUS COMMAND…``: two numbers of open pipes. Slurm signals all
processes below the tasks of a step where it tracks them by parentage (proctrack/linuxproc), and srun ends its own step
by force on SIGTERM: a preemption would kill ranks that are about to save. So srun runs below a process that is nobody's
child. Each byte that comes through CONTROL is the number of a signal for the command; its end means that the launcher
is gone, and is a SIGTERM. The exit code is written to STATUS.
"""

import os
import select
import signal
import subprocess
import sys
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """See the module. The process that was started ends at once, and its child goes on."""
    control, status, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, _pass_over)  # a handler, for what is ignored would stay so in srun
    os.set_inheritable(control, False)
    os.set_inheritable(status, False)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None:
        if not select.select([control], [], [], 0.1)[0]:
            continue
        received = os.read(control, 64)
        for asked in received or (signal.SIGTERM,):
            child.send_signal(asked)
        if not received:
            break
    os.write(status, str(child.wait()).encode())


def _pass_over(number: int, frame: FrameType | None) -> None:
    del number, frame


if __name__ == "__main__":
    main()
