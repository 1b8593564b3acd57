"""One rank's keeper: starts it, passes signals on, and leaves word of how it ended.

``python -m hala_hpc.tasks.train.launch.rank_keeper MODULE RUN``, one per rank, under srun or as a child of the
launcher. A rank that stops as it was asked to, or for good, lets this process end with 0: ranks do not end at the same
moment, and srun would kill the rest when the first one fails.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

PLANNED = (0, 85, 86)
"""Exit codes that are no crash: trained, stopped on request, stopped for good."""
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
VARIABLES = (
    ("RANK", "SLURM_PROCID"),
    ("WORLD_SIZE", "SLURM_NTASKS"),
    ("LOCAL_RANK", "SLURM_LOCALID"),
    ("LOCAL_WORLD_SIZE", "HALA_RANKS_PER_NODE"),
)
PR_SET_PDEATHSIG, PR_SET_PTRACER, PR_SET_PTRACER_ANY = 1, 0x59616D61, ctypes.c_ulong(-1)


def main() -> int:
    """Run the rank to its end. See PLANNED for the exit codes."""
    from hala_hpc.tasks.train.launch import signs

    module, run = sys.argv[1:3]
    if "RANK" in os.environ:  # a child of the launcher; under srun Slurm sees to it
        _die_with_parent()
    for ours, slurms in VARIABLES:
        os.environ.setdefault(ours, os.environ.get(slurms, "1"))
    rank = int(os.environ["RANK"])
    asked: list[int] = []
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: asked.append(received))
    child = subprocess.Popen([sys.executable, "-u", "-m", module, run], preexec_fn=_become_rank)

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    for received in tuple(asked):
        pass_on(received, None)
    code = child.wait()
    signs.write_end(Path(run), os.environ["HALA_LAUNCH"], signs.End(rank, code))
    if code in PLANNED or -code in asked:  # a second signal may find it at its very end, without a handler
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
    sys.exit(main())
