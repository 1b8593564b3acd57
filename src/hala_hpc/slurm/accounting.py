"""What Slurm's accounting says: of what jobs were given and used, or that there is none."""

import re
from collections.abc import Collection

from hala_hpc.config.errors import HalaError
from hala_hpc.run.cost import Allocation
from hala_hpc.slurm import commands

ASK_SECONDS = 5.0
"""Accounting is a database of its own, and only about the past: nobody should wait for it."""
COST_SECONDS = 60.0
"""For what a whole run took somebody may wait: such an answer has a line for each step of each job."""
MOST_JOBS = 500
"""Named in one question: a command line has an end."""
FIELDS = (
    "JobID,State,Submit,Eligible,Start,End,ElapsedRaw,AllocNodes,AllocCPUS,AllocTRES,TotalCPU,MaxRSS,ConsumedEnergyRaw"
)
"""What is asked of allocations, with times as seconds since 1970, sizes in bytes, energy in joules."""
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def ask(jobs: Collection[str], fields: str, *options: str, seconds: float = ASK_SECONDS) -> str | None:
    """What sacct prints of some jobs, a line each with ``|`` between. None where it is off, or does not answer."""
    # Times as numbers, whatever the time zones of login node and controller.
    words = ("env", "SLURM_TIME_FORMAT=%s", "sacct", "--noheader", "--parsable2", f"--format={fields}", *options)
    try:
        done = commands.said(*words, f"--jobs={','.join(jobs)}", seconds=seconds)
    except HalaError:
        return None
    return None if done.returncode != 0 or "disabled" in done.stderr else done.stdout


def allocations(jobs: Collection[str]) -> list[Allocation] | None:
    """All that some jobs, arrays or tasks of them were given, requeued attempts too. None as ``ask``."""
    names, lines = list(jobs), list[str]()
    for start in range(0, len(names), MOST_JOBS):
        options = ("--duplicates", "--noconvert")
        if (text := ask(names[start : start + MOST_JOBS], FIELDS, *options, seconds=COST_SECONDS)) is None:
            return None
        lines.append(text)
    return parse("".join(lines))


def parse(text: str) -> list[Allocation]:
    """Allocations out of ``sacct --parsable2`` in our format; a job that has not started yet has none.

    A job's line is followed by those of its steps, which alone say how much memory was used.
    """
    given: list[Allocation] = []
    for row in commands.rows(text, len(FIELDS.split(","))):
        name, state, submit, eligible, start, end, elapsed, nodes, cpus, tres, used, peak, energy = row
        job, _, step = name.partition(".")
        if step:
            if given and given[-1].job == job and (size := _size(peak)) is not None:
                given[-1] = given[-1].with_peak(size)
            continue
        granted = dict(pair.split("=", 1) for pair in tres.split(",") if "=" in pair)
        if not start.isdigit() or not elapsed.isdigit():
            given.append(Allocation(job, state, started=0.0, ended=None, seconds=0.0))  # its steps are none of others'
            continue
        given.append(
            Allocation(
                job=job,
                state=state.partition(" by ")[0],
                started=float(start),
                ended=float(end) if end.isdigit() else None,
                seconds=float(elapsed),
                submitted=float(submit) if submit.isdigit() else None,
                eligible=float(eligible) if eligible.isdigit() else None,
                nodes=int(nodes or 0),
                cpus=int(cpus or 0),
                gpus=_gpus(granted),
                memory=_size(granted.get("mem", "")),
                cpu_seconds=seconds_of(used),
                energy=int(energy) if energy.isdigit() and int(energy) < _NO_ENERGY and int(energy) > 0 else None,
            )
        )
    return [allocation for allocation in given if allocation.started > 0]


_NO_ENERGY = 2**32 - 2
"""Slurm's NO_VAL, which some versions print where a node's energy is not measured."""


def seconds_of(text: str) -> float | None:
    """``1-02:03:04`` and ``03:04.500`` as seconds; None for what is no such time."""
    if (time := _TIME.fullmatch(text)) is None:
        return None
    days, hours, minutes = (int(part or 0) for part in time.group(1, 2, 3))
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(time[4])


def _size(text: str) -> int | None:
    """Bytes of ``216879104``, ``2000M`` or ``1.5G``."""
    if (size := re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)) is None:
        return None
    return int(float(size[1]) * _UNITS[size[2]])


def _gpus(granted: dict[str, str]) -> int | None:
    """The GPUs of an allocation; None where accounting does not count them (AccountingStorageTRES)."""
    if (whole := granted.get("gres/gpu", "")).isdigit():
        return int(whole)
    typed = [int(count) for name, count in granted.items() if name.startswith("gres/gpu:") and count.isdigit()]
    return sum(typed) if typed else None
