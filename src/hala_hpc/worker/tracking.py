"""What a worker counts, for those who watch: a text file for Prometheus, and trackio. Where `run.track` asks for it.

Neither needs a server. Each worker writes a file of its own, whole or not at all, and takes it away when it ends; one
that was killed leaves its file, which the next worker of the run removes once the heartbeat is old.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Environment, Recipe, Site, Track
from hala_hpc.run.files import beside, meant_by
from hala_hpc.run.layout import RunDirectory

PROMETHEUS, TRACKIO = "prometheus", "trackio"
SECONDS: Final = 15.0
"""Between two versions of a file; whoever reads such files does so a few times a minute."""
SUFFIX: Final = ".prom"
PROJECT: Final = "hala_hpc"
"""The project that a run is filed under where none is named."""
UNCOUNTED: Final = frozenset(("time", "step", "launch", "pid", "shard", "attempt"))
"""Numbers of an event that measure nothing."""


class Reporter(NamedTuple):
    """``log`` takes a step and its scalars."""

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


class Reporters:
    """Several, by their names. Nothing that fails in one ends the work: it is said, and goes on without that one."""

    def __init__(self, reporters: Mapping[str, Reporter]) -> None:
        self._reporters = dict(reporters)
        self._step = 0

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._each(lambda reporter: reporter.log(step, scalars))

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """What stands in a worker's ledger: its sums are logged, by the words of the ledger."""
        if event == "progress" and self._reporters:
            self._step += 1
            self.log(self._step, {name: float(value) for name, value in fields.items() if is_number(value)})

    def close(self) -> None:
        self._each(lambda reporter: reporter.close())

    def _each(self, act: Callable[[Reporter], None]) -> None:
        for name, reporter in tuple(self._reporters.items()):
            try:
                act(reporter)
            except Exception as error:  # noqa: BLE001  charts are others' code, and never worth a worker
                sys.stderr.write(f"hala: no more {name}: {type(error).__name__}: {error}\n")
                del self._reporters[name]


def of_run(track: Track, run: RunDirectory, worker: str, lease_seconds: float) -> dict[str, Reporter]:
    """The reporters that a recipe asks for, of one worker, or ('') of a training.

    Raises HalaError where one cannot be had.
    """
    reporters = {}
    if track.prometheus:
        folder = Path(track.prometheus)
        _sweep(folder, run, lease_seconds)
        name = f"{run.name}.{worker}" if worker else run.name
        labels = {"run": run.name} | ({"worker": worker} if worker else {})
        reporters[PROMETHEUS] = text_file(folder / f"{name}{SUFFIX}", labels)
    if track.trackio:
        reporters[TRACKIO] = trackio(run.path, worker or run.name, run.name, track.trackio, "run.track.trackio")
    return reporters


def text_file(file: Path, labels: Mapping[str, str], seconds: float = SECONDS) -> Reporter:
    """A text file in Prometheus' format, renewed every so many seconds, and removed at the end.

    Raises HalaError where it cannot be written to begin with.
    """
    written = [float("-inf")]

    def log(_: int, scalars: dict[str, float]) -> None:
        if time.monotonic() - written[0] >= seconds:
            write_text(file, exposition(scalars, labels))
            written[0] = time.monotonic()

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, exposition({}, labels))
    except OSError as error:
        reason = error.strerror or str(error)
        raise HalaError(f"run.track.prometheus: {file}: {reason}", "a folder that workers may write to") from error
    return Reporter(log, lambda: file.unlink(missing_ok=True))


def write_text(file: Path, text: str) -> None:
    """Replace a file whole: a reader never sees half. Not kept through a power cut, for it is soon written anew."""
    temporary = beside(file)
    try:
        temporary.write_text(text)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)


def exposition(scalars: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """Prometheus' text format: a gauge for each number (a new worker begins at 0), and when that was."""
    shown = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    by_name: dict[str, float] = {}
    for name, value in scalars.items():
        if name not in UNCOUNTED:
            by_name.setdefault("hala_" + re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_"), value)
    by_name["hala_written_timestamp_seconds"] = round(time.time(), 3)
    return "".join(f"# TYPE {name} gauge\n{name}{{{shown}}} {value!r}\n" for name, value in by_name.items())


def trackio(run: Path, name: str, group: str, project: str, key: str) -> Reporter:
    """Files in ``RUN/trackio``, for ``trackio show`` there. ``key`` is the recipe's, for errors."""
    os.environ.setdefault("TRACKIO_DIR", str(run / TRACKIO))
    os.environ.setdefault("TRACKIO_STORAGE_MODE", "jsonl")  # its database would not bear several writers on every disk
    package = package_of(TRACKIO, TRACKIO, key)
    package.init(project=project, name=name, group=group, resume="allow", embed=False)
    return Reporter(lambda step, scalars: package.log(scalars, step=step), package.finish)


def package_of(module: str, name: str, key: str) -> Any:
    """A package that only charts need. Raises HalaError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"install {name} in the environment of the task, or leave it out"
        raise HalaError(f"{key}: the package {name} is missing ({error})", hint) from error


def check(recipe: Recipe, environment: str) -> None:
    """Refuse trackio where it is known not to be installed where the workers of an environment run. Raises HalaError.

    What modules or a container bring along is not known here: there a worker says it when it starts.
    """
    if not recipe.run.track.trackio or _has(recipe.site, environment, TRACKIO) is not False:
        return
    where = recipe.site.environments.get(environment, Environment()).venv or sys.prefix
    hint = f"{where}/bin/python -m pip install trackio, or leave run.track.trackio out"
    raise HalaError(f"run.track.trackio: the package trackio is missing in {where}, where workers run", hint)


def _has(site: Site, name: str, package: str) -> bool | None:
    """Whether an environment has a package; None where that cannot be told from here."""
    environment = site.environments.get(name)
    if environment is None:
        return importlib.util.find_spec(package) is not None
    if environment.container is not None or environment.modules or environment.python or not environment.venv:
        return None
    folder = Path(environment.venv)
    return any(folder.glob(f"lib/python3*/site-packages/{package}/__init__.py")) if folder.is_dir() else None


def _sweep(folder: Path, run: RunDirectory, lease_seconds: float) -> None:
    """Remove the files of this run's workers that are gone without having done so."""
    for file in folder.glob("*"):
        name = meant_by(file.name)
        if not (name.startswith(f"{run.name}.") and name.endswith(SUFFIX)):
            continue
        beacon = run.workers / name.removeprefix(f"{run.name}.").removesuffix(SUFFIX)
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > lease_seconds and not _is_alive(beacon, lease_seconds):
                file.unlink()


def _is_alive(beacon: Path, lease_seconds: float) -> bool:
    try:
        return time.time() - beacon.stat().st_mtime < 10 * lease_seconds  # clocks may differ: rather leave it
    except FileNotFoundError:
        return False


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number; truth values are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
