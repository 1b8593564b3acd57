"""How each stage of a pipeline stands, and what is to be done next: from its folder, and from those of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, few
from hala_hpc.config.pipeline import stage_of
from hala_hpc.pipeline import standing, versions
from hala_hpc.pipeline.stages import Pipeline, Stage
from hala_hpc.pipeline.versions import FileDigests, Key
from hala_hpc.run import decisions
from hala_hpc.run.decisions import Noted
from hala_hpc.slurm import record

State = Literal["done", "running", "planned", "ready", "waiting", "held", "stopped", "cancelled", "failed", "left out"]
"""``ready``: to be planned, or a command to be run. ``planned``: to be started. ``waiting``: for what comes before it.
``held``: what comes before it has come to a halt. ``left out``: its condition does not hold."""
HALTED: Final = ("stopped", "cancelled", "failed", "held")
"""A person must look before it goes on."""
SETTLED: Final = ("done", "left out")


@dataclass(frozen=True)
class StageStatus:
    """``folder`` is that of the version that fits, where there is one; ``result`` its digest, once it is done.

    ``outcome`` is what a command printed as JSON; ``earlier`` the version before, where this is another; ``waits_for``
    names runs besides the pipeline's own that are not finished.
    """

    stage: Stage
    state: State
    reason: str = ""
    key: Key | None = None
    folder: Path | None = None
    result: str = ""
    outcome: Mapping[str, Any] | None = None
    earlier: "Version | None" = None
    waits_for: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.stage.name


@dataclass(frozen=True)
class Version:
    """A stage as it was once asked for: its key, and the folder or the outcome that came of it."""

    stage: str
    digest: str
    key: Key
    kind: str
    folder: str = ""
    outcome: Mapping[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """All stages of a pipeline as they stand; made by ``survey``."""

    pipeline: Pipeline
    stages: Mapping[str, StageStatus]
    noted: Sequence[Noted]

    def in_state(self, *states: State) -> list[StageStatus]:
        return [status for status in self.stages.values() if status.state in states]

    @property
    def finished(self) -> bool:
        return all(status.state in SETTLED for status in self.stages.values())

    @property
    def is_halted(self) -> bool:
        """Whether nothing works, can be started or is waited for, and it is not finished."""
        return not self.finished and not self.waits_for and not self.in_state("running", "planned", "ready")

    @property
    def waits_for(self) -> list[str]:
        """Runs besides the pipeline's own that stages wait for."""
        return [run for status in self.stages.values() for run in status.waits_for]

    @cached_property
    def is_cancelled(self) -> bool:
        return decisions.is_cancelled(self.noted)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.finished or self.is_halted or self.is_cancelled

    def place(self, address: str) -> str:
        """The path that ``run:STAGE/…`` stands for. Raises HalaError for a command that makes none."""
        name = stage_of(address, self.stages) or ""
        status, rest = self.stages[name], address.removeprefix(places.RUN).partition("/")[2]
        if status.folder is not None:
            return str(status.folder / rest) if rest else str(status.folder)
        path = (status.outcome or {}).get("path") or (status.outcome or {}).get("folder")
        if not isinstance(path, str):
            raise HalaError(f"{address}: the command of this stage makes nothing to take", "take it of another stage")
        return str(Path(path) / rest) if rest else path


def survey(pipeline: Pipeline) -> Survey:
    """Look at every stage. Raises HalaError, OSError for what cannot be read."""
    noted = decisions.read(pipeline.folder)
    # What failed before a person last said to go on is tried again.
    starts = [place for place, item in enumerate(noted) if item.kind == decisions.STARTING]
    counted = [
        item for place, item in enumerate(noted) if item.kind != decisions.FAILED or place > max(starts, default=0)
    ]
    known = [version for item in counted if (version := _version(item)) is not None]
    files = FileDigests(pipeline.folder)
    statuses: dict[str, StageStatus] = {}
    so_far = Survey(pipeline, statuses, noted)
    for stage in pipeline.order:
        statuses[stage.name] = _status(so_far, stage, [item for item in known if item.stage == stage.name], files)
    if pipeline.folder.is_dir():
        files.close()
    return so_far


def _version(noted: Noted) -> Version | None:
    event = noted.event
    if noted.kind not in (decisions.PLANNED, decisions.RAN, decisions.FAILED) or "key" not in event:
        return None
    key = Key(**event["key"])
    return Version(
        event["stage"],
        key.digest,
        key,
        noted.kind,
        event.get("version", ""),
        event.get("answer"),
        event.get("error", ""),
    )


def _status(so_far: Survey, stage: Stage, known: Sequence[Version], files: FileDigests) -> StageStatus:
    last = next((item for item in reversed(known) if item.kind != decisions.FAILED), None)
    before = [so_far.stages[name] for name in so_far.pipeline.before(stage)]
    if halted := [status.name for status in before if status.state in HALTED]:
        return StageStatus(stage, "held", f"by {few(halted, 4)}", earlier=last)
    if absent := [status.name for status in before if status.state == "left out"]:
        return StageStatus(stage, "left out", f"as {few(absent, 4)}", earlier=last)
    if unfinished := [status.name for status in before if status.state != "done"]:
        return StageStatus(stage, "waiting", f"for {few(unfinished, 4)}", earlier=last)
    for name, pattern in stage.when.items():
        choice = (so_far.stages[name].outcome or {}).get("model", "")
        if not fnmatchcase(str(choice), pattern):
            return StageStatus(stage, "left out", f"{name} chose '{choice}', not '{pattern}'", earlier=last)
    results = {address: so_far.stages[stage_of(address, so_far.stages) or ""].result for address in stage.takes}
    if foreign := _unfinished(stage):
        reason = f"for the run {few(foreign, 4)}, which is not finished"
        return StageStatus(stage, "waiting", reason, earlier=last, waits_for=foreign)
    read = {path: files.digest(Path(path)) for path in versions.local_paths(stage.reads)}
    key = Key(stage.asked, results, read)
    mine = next((item for item in reversed(known) if item.digest == key.digest), None)
    earlier = next(
        (item for item in reversed(known) if item.digest != key.digest and item.kind != decisions.FAILED), None
    )
    if mine is None:
        return StageStatus(stage, "ready", _stale(key, earlier), key, earlier=earlier)
    if mine.kind == decisions.FAILED:
        return StageStatus(stage, "failed", mine.error, key, earlier=earlier)
    if mine.kind == decisions.RAN:
        return StageStatus(stage, "done", "", key, None, versions.digest_of(mine.outcome), mine.outcome, earlier)
    folder = so_far.pipeline.folder / mine.folder
    state, reason = _of_folder(folder)
    result = versions.result_of(folder) if state == "done" else ""
    return StageStatus(stage, state, reason, key, folder, result, None, earlier)


def _stale(key: Key, earlier: Version | None) -> str:
    return few(key.differences(earlier.key), 3, " and {} more") if earlier else ""


def _unfinished(stage: Stage) -> list[str]:
    """Runs besides the pipeline's own that a stage takes, and that are not finished."""
    paths = map(Path, versions.local_paths(stage.reads))
    runs = dict.fromkeys(run for path in paths if (run := versions.run_of(path)) is not None)
    return [run.name for run in runs if not all(state.finished for state in standing.read_runs(run).states)]


def _of_folder(folder: Path) -> tuple[State, str]:
    """The state of a stage that was planned, by its run or grid."""
    runs = standing.read_runs(folder)
    if all(state.finished for state in runs.states):
        return "done", ""
    if decisions.is_cancelled(runs.noted) or not runs.unfinished:
        return "cancelled", "by a person"
    last = decisions.last_decision(runs.noted)
    if last is not None and last.event["action"] == "stop":
        return "stopped", str(last.event.get("reason", ""))
    if not record.submitted(folder) and not record.unanswered(folder):
        return "planned", ""
    return "running", ""
