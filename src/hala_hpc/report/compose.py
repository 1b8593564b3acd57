"""From runs to a report: which sections there are, and in which order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hala_hpc import __version__
from hala_hpc.config.errors import HalaError
from hala_hpc.report import runs
from hala_hpc.report.page.section import Report, Section
from hala_hpc.report.runs import Run
from hala_hpc.report.sections import choice as chosen
from hala_hpc.report.sections import curve, evaluations, merges, own_report, rows, trainings, workers
from hala_hpc.tasks.evaluate import scores


@dataclass(frozen=True)
class Asked:
    """What a person may choose: the base's label, patterns of models and benchmarks, how many examples, a title."""

    base: str = ""
    models: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    examples: int = 1
    title: str = ""


def gather(paths: Sequence[Path], asked: Asked) -> Report:
    """The report on some runs, finished or not. Raises HalaError where ``asked`` names what is not there."""
    found = runs.read(paths)
    if not found:
        raise HalaError("no run to report on")
    sections = [*_scores(found, asked), runs.overview(found)]
    if trained := [run for run in found if run.kind == "train"]:
        sections.append(trainings.section(trained))
    for run in found:
        sections += [
            each for each in (merges.section(run), own_report.section(run), rows.section(run, asked.examples)) if each
        ]
    sections += [workers.section(run) for run in found]
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    title = asked.title or ", ".join(run.name for run in found[:4]) + (" …" if len(found) > 4 else "")
    return Report(title, f"Made by hala_hpc {__version__}, {made}", tuple(sections))


def _scores(found: Sequence[Run], asked: Asked) -> list[Section]:
    """Scores, and their curve over weights or steps; nothing where no run is an evaluation."""
    evaluated = [run for run in found if run.kind == "evaluate"]
    if not evaluated:
        return []
    if not any(run.status.done for run in evaluated):
        return [Section("scores", "Scores", ("No benchmark is finished yet.",))]
    together = scores.read([run.path for run in evaluated], asked.base).only(asked.models, asked.benchmarks)
    shown = [evaluations.section(together, asked.examples)]
    if drawn := curve.section(together):
        shown.append(drawn)
    return shown + [choice for run in evaluated if (choice := chosen.section(run))]
