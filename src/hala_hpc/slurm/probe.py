"""What a site's test job does on its nodes: a file of its own, of the standard library, so nothing else need be there.

``python -I probe.py FOLDER``, by two processes, on two nodes where the job has them. FOLDER is in the folder of runs
and holds ``spec.json``; each process leaves ``report.RANK.json``. Names that somebody else made are looked for in a
listing after a file of our own was made and removed beside them: a node of NFS then asks its server, not its memory.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""All of it takes less, and Slurm ends what takes longer."""
MEET_SECONDS = 10.0
RACE_SECONDS = 2.0
"""How long links, and then renames, are raced for."""
BEAT_SECONDS = 18.0
"""How long a file is touched while others look: longer than NFS at first keeps what it knows of a file (3 s)."""
BEAT = 0.5
CHECK_SECONDS = 12.0
"""For a program that is tried: each is started alone, and a first import from a shared disk is slow."""
FSYNCS = 20
SIZE = 65_536
Sample = tuple[float, float, float]
"""The file server's time before a look at the beacon, the time of the beacon's last touch as seen, and after it."""


def main(folder: Path) -> None:
    """One of the two processes."""
    rank, size = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    spec = json.loads((folder / "spec.json").read_text())
    clock = folder / f"clock.{rank}"
    report: dict[str, Any] = {
        "host": socket.gethostname(),
        "node": os.environ.get("SLURMD_NODENAME", ""),
        "boot": _first_line(Path("/proc/sys/kernel/random/boot_id")),
        "clock_ahead": _file_time(clock) - time.time(),
    }
    if size > 1 and _met(folder, rank, size):
        report["links"] = _links(folder, rank)
        report["renames"] = _renamed(folder) if rank == 0 else _read(folder)
    if rank == 0:
        report["fsync"] = _fsyncs(folder / "fsync")
        report["paths"] = {path: _seen(Path(path)) for path in spec["paths"]}
        report["gpus"] = _gpus()
        report["touches"] = _touches(folder / "beacon")
        report["programs"] = {name: _answer(command) for name, command in spec["programs"].items()}
    elif size > 1:
        report["samples"] = _samples(folder / "beacon", clock)
    left = folder / f".report.{rank}"
    left.write_text(json.dumps(report))
    left.rename(folder / f"report.{rank}.json")


def sample(beacon: Path, clock: Path) -> "Sample | None":
    """One look at a file that somebody else touches; None where it is not there."""
    before = _file_time(clock)
    try:
        seen = beacon.stat().st_mtime
    except OSError:
        return None
    return before, seen, _file_time(clock)


def names(folder: Path) -> "set[str]":
    """What is in a folder now, as its server knows it."""
    mine = folder / f".look.{socket.gethostname()}.{os.getpid()}"
    mine.touch()
    mine.unlink()
    return {path.name for path in folder.iterdir()}


def _file_time(path: Path) -> float:
    path.touch()
    os.utime(path)
    return path.stat().st_mtime


def _met(folder: Path, rank: int, size: int) -> bool:
    """Whether all processes are there."""
    (folder / f"here.{rank}").touch()
    ends = time.monotonic() + MEET_SECONDS
    wanted = {f"here.{number}" for number in range(size)}
    while not wanted <= names(folder):
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


def _links(folder: Path, rank: int) -> "dict[str, Any]":
    """The names that were ours, of those that all processes link at the same time, and how many were taken.

    Whoever is behind runs past the taken ones, so all are soon at the same name.
    """
    own, race = folder / f"own.{rank}", folder / "race"
    own.touch()
    race.mkdir(exist_ok=True)
    won, lost, number = [], 0, 0
    ends = time.monotonic() + RACE_SECONDS
    while time.monotonic() < ends:
        name = race / str(number)
        try:
            os.link(own, name)
            won.append(number)
            time.sleep(0.004)  # else a fast disk is given thousands of names
        except FileExistsError:
            if name.samefile(own):  # the answer to a link was lost on the way, and it was asked again
                won.append(number)
            else:
                lost += 1
        number += 1
    return {"won": won, "lost": lost}


def _renamed(folder: Path) -> "dict[str, int]":
    """Replace one file by another of the same name, again and again."""
    count, ends = 0, time.monotonic() + RACE_SECONDS
    while time.monotonic() < ends:
        new = folder / ".renamed.new"
        new.write_bytes((b"a", b"b")[count % 2] * SIZE)
        new.rename(folder / "renamed")
        count += 1
    return {"renames": count}


def _read(folder: Path) -> "dict[str, int]":
    """Read the file that is replaced: it is one or the other, and always there."""
    counts = {"reads": 0, "torn": 0, "missing": 0, "stale": 0}
    ends = time.monotonic() + RACE_SECONDS
    while time.monotonic() < ends:
        try:
            data = (folder / "renamed").read_bytes()
        except FileNotFoundError:
            counts["missing"] += counts["reads"] > 0  # else the other one has not begun
            continue
        except OSError:  # ESTALE: NFS says that the file was replaced while it was read
            counts["stale"] += 1
            continue
        counts["reads"] += 1
        counts["torn"] += data not in (b"a" * SIZE, b"b" * SIZE)
    return counts


def _fsyncs(path: Path) -> "dict[str, float]":
    """Seconds that it takes to make 4 KiB durable."""
    seconds = []
    with path.open("wb") as file:
        for _ in range(FSYNCS):
            began = time.monotonic()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            seconds.append(time.monotonic() - began)
    return {"median": statistics.median(seconds), "most": max(seconds)}


def _touches(beacon: Path) -> "list[float]":
    """Touch a file for a while; the times that the file server gave."""
    times, ends = [], time.monotonic() + BEAT_SECONDS
    while time.monotonic() < ends:
        times.append(_file_time(beacon))
        time.sleep(BEAT)
    return times


def _samples(beacon: Path, clock: Path) -> "list[Sample]":
    looks, ends = [], time.monotonic() + BEAT_SECONDS
    names(beacon.parent)
    while time.monotonic() < ends:
        if (look := sample(beacon, clock)) is not None:
            looks.append(look)
        time.sleep(0.1)
    return looks


def _seen(path: Path) -> str:
    """Whether a path is there: no, yes, or writable."""
    if not path.exists():
        return "no"
    return "writable" if path.is_dir() and os.access(str(path), os.W_OK | os.X_OK) else "yes"


def _gpus() -> "list[dict[str, Any]]":
    """Name and memory (GiB) of each GPU that nvidia-smi shows."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = _answer(query)
    lines = [line.rpartition(",") for line in answer["said"].splitlines()] if answer["code"] == 0 else []
    return [{"name": name.strip(), "gib": round(float(mib) / 1024, 1)} for name, _, mib in lines if name]


def _answer(command: "str | list[str]") -> "dict[str, Any]":
    """How a program ended, and its last words; a line of shell goes to bash."""
    words = ["bash", "-c", command] if isinstance(command, str) else command
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {
            "code": None,
            "said": f"no answer within {CHECK_SECONDS:.0f} s" if hasattr(error, "cmd") else str(error),
        }
    return {"code": done.returncode, "said": (done.stdout if done.returncode == 0 else done.stderr).strip()[-1_000:]}


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
