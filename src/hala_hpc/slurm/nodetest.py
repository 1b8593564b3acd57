"""A site's test job: what its nodes do with the folder of runs, and how long a lease there must be.

It is submitted to each partition that the profile names, runs ``probe.py`` for less than a minute, and meanwhile this
machine looks at the same files. What is measured depends on the kernel's caches and on clocks, so it is measured.
"""

import contextlib
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError, few
from hala_hpc.config.schema import Environment, Recipe, Run, Site
from hala_hpc.slurm import commands, probe
from hala_hpc.slurm.script import Launch, job_text, launch, parameters
from hala_hpc.slurm.submit import without_gpus

ASK_SECONDS: Final = 3.0
LATE_SECONDS: Final = 90.0
"""How long after its start a job may go on before it is given up: its limit, and what Slurm takes to see it."""
SHORTEST_LEASE: Final = 60.0
"""Where all was measured between hosts (ours)."""
LOOK: Final = 0.1
REPORTS: Final = "report.{}.json"


@dataclass(frozen=True)
class Measured:
    """What one partition's test job showed; None where it could not be measured.

    ``behind``: seconds that a touch was seen late, and ``ahead``: that it was seen before it could be, for clocks
    disagree; the worst between two nodes and between a node and this machine. ``problems`` are for a person to mend;
    ``untested`` says why the job did not run at all.
    """

    partition: str
    hosts: tuple[str, ...] = ()
    is_between_hosts: bool = False
    links_exclusive: bool | None = None
    renames_atomic: bool | None = None
    clock_ahead: float | None = None
    fsync_median: float | None = None
    fsync_most: float | None = None
    behind: float | None = None
    ahead: float | None = None
    gpus: tuple[Mapping[str, Any], ...] = ()
    programs: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    untested: str = ""

    @property
    def is_well_measured(self) -> bool:
        """Whether leases shorter than the default are safe to derive from it."""
        sound = self.links_exclusive is True and self.renames_atomic is True and not self.problems
        return sound and self.is_between_hosts and self.behind is not None

    def lines(self) -> Iterator[str]:
        """All of it in words."""
        if self.untested:
            yield self.untested
        yield from self.facts()
        yield from (f"PROBLEM: {problem}" for problem in self.problems)

    def facts(self) -> Iterator[str]:
        """What was measured in words, a fact a line."""
        if self.hosts:
            yield f"ran on {', '.join(self.hosts)}"
        if self.links_exclusive is not None:
            yield f"links are {'exclusive' if self.links_exclusive else 'NOT EXCLUSIVE'} between two processes"
        if self.renames_atomic is not None:
            yield f"a rename is {'atomic' if self.renames_atomic else 'NOT ATOMIC'} for another reader"
        if self.clock_ahead is not None:
            yield f"file times are {self.clock_ahead:+.3f} s off the node's clock"
        if self.fsync_median is not None and self.fsync_most is not None:
            yield f"fsync takes {self.fsync_median * 1e3:,.1f} ms, at most {self.fsync_most * 1e3:,.1f} ms"
        if self.behind is not None and self.ahead is not None:
            yield f"a touch is seen up to {self.behind:.2f} s late elsewhere; clocks disagree by {self.ahead:.2f} s"
        if self.gpus:
            yield f"GPUs: {few([_gpu_words(gpu) for gpu in self.gpus], 4)}"
        yield from (f"{name}: {said}" for name, said in self.programs.items())


def _gpu_words(gpu: Mapping[str, Any]) -> str:
    return f"{gpu['name']} ({gpu['gib']} GiB)"


def lease_seconds(measured: Sequence[Measured]) -> float:
    """How long a lease must be, in tens of seconds.

    A worker beats six times in a lease. One beat may be lost; in the other four sixths, twice what a touch is seen late
    or early and ten times the slowest fsync must fit: 1.5 x (2 x (behind + ahead) + 10 x fsync). Never less than the
    default, except where all partitions were well measured between two hosts.
    """
    late = max(((each.behind or 0.0) + (each.ahead or 0.0) for each in measured), default=0.0)
    slow = max((each.fsync_most or 0.0 for each in measured), default=0.0)
    well = bool(measured) and all(each.is_well_measured for each in measured)
    least = SHORTEST_LEASE if well else Run().lease_seconds
    return max(least, math.ceil(1.5 * (2 * late + 10 * slow) / 10) * 10.0)


def requests(recipe: Recipe) -> dict[str, Site]:
    """The sites as jobs with and without GPUs see them, by their partition; each partition is tried once."""
    both = (recipe.site, without_gpus(recipe.site))
    return {site.slurm.partition or "": site for site in reversed(both)}


def measure(recipe: Recipe, wait: float, say: Callable[[str], None]) -> list[Measured]:
    """Submit the test jobs of a site, look on, and tell what came of them. Leaves nothing in ``run.root``.

    Raises HalaError where Slurm refuses a job. Jobs that do not start within ``wait`` seconds are cancelled.
    """
    root = Path(recipe.run.root)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".test-", dir=root, ignore_cleanup_errors=True) as name:
        jobs: list[_Job] = []
        try:
            for number, (partition, site) in enumerate(requests(recipe).items()):
                folder = Path(name, str(number))
                folder.mkdir()
                jobs.append(_submit(replace(recipe, site=site), partition, folder))
                say(f"test job {jobs[-1].id} in partition {partition or '(the default)'}: less than a minute")
            _follow(jobs, wait)
        finally:
            left = [job.id for job in jobs if not job.is_over]
            with contextlib.suppress(HalaError):
                commands.cancel(left)
        return [_measured(job, wait) for job in jobs]


@dataclass
class _Job:
    """One test job, and what this machine saw of its beacon."""

    id: str
    partition: str
    folder: Path
    state: str = "PENDING"
    reason: str = ""
    started: float | None = None
    is_over: bool = False
    is_given_up: bool = False
    samples: list[probe.Sample] = field(default_factory=list)


def request_of(recipe: Recipe) -> Recipe:
    """The recipe whose worker is the test job: small and short, of two processes, on two nodes where there are."""
    asked = replace(
        recipe.site.slurm,
        nodes_per_worker=1,
        gpus_per_worker=min(1, recipe.site.slurm.gpus_per_worker),
        cpus_per_worker=1,
        mem_gb=None if recipe.site.slurm.mem_gb is None else min(1.0, recipe.site.slurm.mem_gb),
        minutes=1,
        signal_seconds=10,
        max_running=None,
        extra={**recipe.site.slurm.extra, "nodes": "1-2", "ntasks": 2, "requeue": False},
    )
    return replace(recipe, name="test", site=replace(recipe.site, slurm=asked))


def _submit(recipe: Recipe, partition: str, folder: Path) -> _Job:
    names = [name for name, environment in recipe.site.environments.items() if _is_built(environment)]
    programs = {f"Python of {name}": _program(launch(recipe.site, name)) for name in names}
    programs["this Python"] = _program(Launch(shlex.quote(sys.executable)))
    places = [recipe.run.root, recipe.site.cache, *(recipe.site.environments[name].venv for name in names)]
    paths = [place for place in places if place and Path(place).exists()]
    (folder / "spec.json").write_text(json.dumps({"paths": paths, "programs": programs}))
    request = parameters(request_of(recipe), Launch(shlex.quote(sys.executable)))
    # -I: the folder of the program must not be where Python looks for its own modules.
    command = shlex.join([sys.executable, "-I", "-u", probe.__file__, str(folder)])
    script = folder / "test.sbatch"
    script.write_text(job_text(request, command, folder))
    with commands.outside_any_job(request.options):
        said = commands.run("sbatch", "--parsable", str(script))
    return _Job(said.strip().partition(";")[0], partition, folder)


def _is_built(environment: Environment) -> bool:
    """Whether there is something to start; a venv that is still to be built is no fault of the nodes."""
    return environment.container is not None or not environment.venv or Path(environment.venv, "bin/python").exists()


def _program(started: Launch) -> str:
    """A line of shell that starts an environment's Python as for a worker; empty where only srun could do that."""
    if started.srun:
        return "echo 'in a container of pyxis: not tried'"
    lines = "\n".join(started.setup)
    return f"{lines}\n{started.python} -c 'import sys, hala_hpc, submitit; print(\"Python\", sys.version.split()[0])'"


def _follow(jobs: Sequence[_Job], wait: float) -> None:
    """Look at the beacons until all jobs are over, or did not start in time, or run for too long."""
    began, asked = time.monotonic(), -math.inf
    while left := [job for job in jobs if not job.is_over and not job.is_given_up]:
        if time.monotonic() - asked > ASK_SECONDS:
            asked = time.monotonic()
            _ask(left)
        for job in left:
            if job.started is not None and (look := probe.sample(job.folder / "beacon", job.folder / "clock.login")):
                job.samples.append(look)
            since, limit = (began, wait) if job.started is None else (job.started, LATE_SECONDS)
            job.is_given_up = time.monotonic() - since > limit
        time.sleep(LOOK)


def _ask(jobs: Sequence[_Job]) -> None:
    with contextlib.suppress(HalaError):  # a controller that is slow now answers later
        states = {state.job: state for state in commands.states([job.id for job in jobs])}
        for job in jobs:
            state = states.get(job.id)
            job.is_over = state is None or state.state in commands.ENDED
            job.state, job.reason = (state.state, state.reason) if state else ("forgotten", "")
            if job.started is None and state is not None and state.state == "RUNNING":
                job.started = time.monotonic()
            if job.started is not None and not job.is_over:
                probe.names(job.folder)  # or NFS goes on to say that there is no beacon


def _measured(job: _Job, wait: float) -> Measured:
    there = probe.names(job.folder)
    reports = [json.loads((job.folder / name).read_bytes()) for name in map(REPORTS.format, (0, 1)) if name in there]
    if job.started is None and not job.is_over and not reports:
        reason = f" ({job.reason})" if job.reason not in ("", "None") else ""
        return Measured(job.partition, untested=f"the test job did not start within {wait:.0f} s{reason}")
    if not reports or "touches" not in reports[0]:
        return Measured(job.partition, problems=(_nothing(job),))
    first, second = reports[0], reports[1] if len(reports) > 1 else {}
    sides = [
        found for samples in (job.samples, second.get("samples", [])) if (found := delay(first["touches"], samples))
    ]
    boots = {report["boot"] or report["host"] for report in reports}
    return Measured(
        job.partition,
        tuple(f"{report['node'] or report['host']}" for report in reports),
        len(boots) > 1,
        _exclusive(reports),
        _atomic(second),
        float(first["clock_ahead"]),
        float(first["fsync"]["median"]),
        float(first["fsync"]["most"]),
        max((behind for behind, _ in sides), default=None),
        max((ahead for _, ahead in sides), default=None),
        tuple(first["gpus"]),
        {name: _words(answer) for name, answer in first["programs"].items()},
        tuple(_problems(first, reports, second)),
    )


def delay(touches: Sequence[float], samples: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """How late, and how much too early, the touches of a file were seen, in seconds; None where nobody looked.

    Only looks between the first and the last touch count: what was the newest then is known.
    """
    pairs = []
    for before, seen, after in samples:
        if touches and touches[0] <= before and after <= touches[-1]:
            newest = max(touch for touch in touches if touch <= before)
            pairs.append((newest - seen, seen - after))
    if not pairs:
        return None
    return max(0.0, *(late for late, _ in pairs)), max(0.0, *(early for _, early in pairs))


def _exclusive(reports: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether no name was two processes'; None where they did not race."""
    races = [report["links"] for report in reports if "links" in report]
    if len(races) < 2 or not all(race["lost"] for race in races):
        return None
    return not set(races[0]["won"]) & set(races[1]["won"])


def _atomic(reader: Mapping[str, Any]) -> bool | None:
    seen = reader.get("renames")
    return not (seen["torn"] or seen["missing"]) if seen and seen["reads"] else None


def _words(answer: Mapping[str, Any]) -> str:
    last = (str(answer["said"]).splitlines() or [""])[-1]
    return last if answer["code"] == 0 else f"does not start: {last or answer['code']}"


def _problems(
    first: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], second: Mapping[str, Any]
) -> Iterator[str]:
    """What would make runs fail there."""
    if _exclusive(reports) is False:
        yield "links are not exclusive: no run is safe on this file system"
    if _atomic(second) is False:
        yield "a rename is not atomic: no run is safe on this file system"
    yield from (f"{path} is not there on the node" for path, seen in first["paths"].items() if seen == "no")
    yield from (
        f"{name} does not start on the node: {_words(answer)}"
        for name, answer in first["programs"].items()
        if answer["code"] != 0
    )


def _nothing(job: _Job) -> str:
    """Why a job that ran left no report."""
    logs = [path for path in sorted(job.folder.glob("*log.out")) if path.stat().st_size]
    last = logs[0].read_text("utf-8", "replace").strip().splitlines()[-1] if logs else ""
    why = last or f"do the nodes see {job.folder.parents[1]}, and {sys.executable}?"
    return f"the test job ended ({job.state}) without a report: {why}"
