"""What every benchmark prints: its figures, their bar, and the machine they were measured on."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("HALA_TEST_DATA", ROOT.parent / "shared" / "data"))
SERVE = ROOT / ".envs" / "serve-cpu" / "bin" / "python"
HALA = [sys.executable, "-m", "hala_hpc.cli"]


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")  # noqa: PTH123, SIM115
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} x {model}, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )


def report(figure: str, value: float, unit: str, bar: str, good: bool) -> None:
    """One line per figure: what it is, how much, what it should be."""
    print(f"{figure:58} {value:12,.3f} {unit:10} bar: {bar:16} {'ok' if good else 'MISSED'}", flush=True)


def seconds(work: Callable[[], object], times: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median wall time of a piece of work, or its time by another clock: ``time.process_time`` is a core's own."""
    taken = []
    for _ in range(times):
        began = clock()
        work()
        taken.append(clock() - began)
    return statistics.median(taken)


def quiet(*words: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command to its end and return what it printed. Ends the benchmark with what it said where it failed."""
    done = subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True, env=env, cwd=cwd)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def environment() -> dict[str, str]:
    """Nothing of a person's own settings, and nothing asked of the internet."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HALA_", "SLURM_"))}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def data(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        sys.exit(f"{path}: no test data (set HALA_TEST_DATA)")
    return path


def title(name: str) -> None:
    print(f"{name}: {machine()}", flush=True)
