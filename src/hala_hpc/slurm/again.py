"""A worker that a signal killed starts again at once, by the script of its job: the GPUs stay its own meanwhile.

What kills a step kills all that is in it, so the script does this, outside of ``srun``. It is the script of an array of
workers only: of a training's launcher the ranks may be left, in a step of their own. Where the job itself is to end,
Slurm sends SIGTERM to the script too, which ends it.
"""

import signal
from typing import Final

MOST: Final = 3
"""Times that a job starts its worker again (ours): at the fourth death on one row at the latest, that row is set aside
(see ``worker.rows``), and what kills a worker every time comes to a steward."""
SIGNALS: Final = (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV)
"""Those of a crash, and of ``kill -9``: others are a stop, or somebody's will."""
EARLY_SECONDS: Final = 60
"""Slurm sends its notice of the time limit up to so much early."""
LIFE: Final = "HALA_LIFE"
"""Variable with the number of times that a job has started its worker, this one included."""
NO_MEMORY: Final = r"(slurmstepd|srun)[^ ]*: .*(oom.?kill|out of memory|memory limit)"
"""Slurm's words of a memory kill, in small letters: of cgroups (versions differ) and of its accounting. The next worker
would end the same, and a steward gives it more."""
_LOG_BYTES: Final = 65_536
"""How much of the log's end has Slurm's words."""


def function(minutes: int, signal_seconds: int) -> list[str]:
    """Lines of bash after which ``srun`` starts again what a signal killed.

    Parameters
    ----------
    minutes : of the job, as long as Slurm does not tell it when it ends (before 23.02).
    signal_seconds : before its end the job is told to stop: a worker that starts then would not be told any more.
    """
    codes = " | ".join(str(128 + number) for number in sorted(SIGNALS))
    return [
        "# A worker that a signal killed starts again here; not where memory did not suffice.",
        "srun() {",
        "    local life=0 code size end log=/proc/$$/fd/1",
        "    end=${SLURM_JOB_END_TIME:-$(($(date +%s) - SECONDS + " + str(60 * minutes) + "))}",
        "    while :; do",
        "        life=$((life + 1)) code=0 size=0",
        '        if [ -f "$log" ]; then size=$(stat -L -c %s "$log") || size=0; fi',
        f'        {LIFE}=$life command srun "$@" || code=$?',
        f'        case $code in {codes}) ;; *) return "$code" ;; esac',
        '        local said="hala: the worker was killed by signal $((code - 128))"',
        '        if [ -f "$log" ] && tail -c "+$((size + 1))" "$log" | tail -c ' + str(_LOG_BYTES) + " |",
        f"            grep -a -i -E '{NO_MEMORY}' >/dev/null; then",
        '            echo "$said, for lack of memory: its job ends" >&2',
        f'        elif [ "$life" -gt {MOST} ]; then',
        f'            echo "$said, after {MOST} new starts: its job ends" >&2',
        f"        elif [ $((end - $(date +%s))) -lt {signal_seconds + EARLY_SECONDS} ]; then",
        '            echo "$said, and the time of its job is nearly over: it ends" >&2',
        "        else",
        f'            echo "$said; it starts again ($life of {MOST})" >&2',
        "            continue",
        "        fi",
        '        return "$code"',
        "    done",
        "}",
    ]
